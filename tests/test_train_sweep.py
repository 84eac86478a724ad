"""Sweeps: what a search space may say, which frames trials see, and what a kill costs."""

import csv
import io
import shutil
import signal
import sqlite3
import statistics
import subprocess
import sys
import time
from contextlib import closing, redirect_stdout
from pathlib import Path
from typing import Any

import optuna
import pytest
from mlflow import MlflowClient

from pipeline.cli.main import main
from pipeline.config import Config, load_config
from pipeline.errors import ConfigError, InputError, TrainingError
from pipeline.frames import Split
from pipeline.ingest.index import Index, load_index
from pipeline.model.bundle import CONFIG, load_bundle
from pipeline.train import sweep as sweep_module
from pipeline.train.fit import Fitting
from pipeline.train.search_space import SearchSpace
from pipeline.train.sweep import sweep
from pipeline.train.trainer import Course
from tests.conftest import Trained

RATES = {"train.finetune.learning_rate": {"log_uniform": [1e-4, 1e-2]}, "train.finetune.groups": [1, 2]}
QUICK = ("train.finetune.epochs=2", "train.cache_features=false")
UNTRACKED = (*QUICK, "tracking.enabled=false")


@pytest.fixture(scope="module")
def index(trained: Trained) -> Index:
    return load_index(trained.index)


def table(folder: Path) -> list[dict[str, str]]:
    with (folder / "trials.csv").open(newline="") as file:
        return list(csv.DictReader(file))


# What a search space may say


@pytest.mark.parametrize(
    ("space", "expected"),
    [
        ({"train.finetune.lerning_rate": [1, 2]}, "Did you mean train.finetune.learning_rate?"),
        ({"train.finetun.groups": [1, 2]}, "train.finetun is not a setting of octray. Did you mean train.finetune?"),
        ({"train.way": {"choice": ["staged", "full"]}}, "needs one of choices, uniform, log_uniform, integers"),
        ({"train.way": {"choice": ["staged", "full"]}}, "Did you mean choices?"),
        ({"train.way": "full"}, "Got 'full' instead."),
        ({"train.way": ["full"]}, "choices must be two different values or more"),
        ({"train.way": ["full", "half"]}, "train.way: Input should be 'probe', 'staged' or 'full'. Got 'half' instead."),
        ({"train.finetune.groups": {"integers": [3, 1]}}, "integers must be two numbers, the lower one first. Got [3, 1]"),
        ({"train.finetune.groups": {"integers": [1, 2.5]}}, "integers must be two whole numbers"),
        ({"train.finetune.groups": {"integers": [0, 2]}}, "train.finetune.groups: Input should be greater than or equal to 1"),
        ({"train.finetune.weight_decay": {"uniform": [0.1]}}, "uniform must be two numbers"),
        ({"train.finetune.weight_decay": {"uniform": ["a", "b"]}}, "uniform must be two numbers"),
        ({"train.finetune.weight_decay": {"uniform": 0.1}}, "uniform must be a list. Got 0.1 instead."),
        ({"train.finetune.weight_decay": {"log_uniform": [0, 1]}}, "log_uniform must start above zero"),
        ({"data.normal_label": ["NORMAL", "PNEUMONIA"]}, "A sweep searches settings of model, preprocessing and train."),
        ({"train.seed": [1, 2]}, "train.seed is not for a search"),
        ({"train.imbalance": ["none", "focal"]}, "trials would be compared by different figures"),
        ({"train.way": ["probe", "staged"]}, "trials would be compared by different figures"),
        ({}, "The search space is empty."),
    ],
)
def test_a_space_that_cannot_be_searched_says_why(space: dict[str, Any], expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        SearchSpace(space, load_config("smoke"))
    assert expected in str(caught.value)


def test_the_loss_may_be_searched_if_trials_are_compared_by_auroc() -> None:
    config = load_config("smoke", ["train.finetune.monitor=tune_auroc"])
    space, study = SearchSpace({"train.imbalance": ["none", "focal"]}, config), optuna.create_study()
    assert {space.suggest(study.ask())["train.imbalance"] for _ in range(10)} == {"none", "focal"}


def test_every_fault_of_a_space_is_said_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        SearchSpace({"train.finetune.groups": {"integers": [3, 1]}, "train.wy": [1, 2]}, load_config("smoke"))
    assert [fault.split()[0] for fault in caught.value.faults] == ["train.finetune.groups:", "train.wy"]


def test_values_come_from_the_space_and_are_set(tmp_path: Path) -> None:
    file = tmp_path / "space.yaml"
    file.write_text(
        """
        train.finetune.learning_rate: {log_uniform: [1e-5, 1e-2]}
        train.finetune.label_smoothing: {uniform: [0.1, 0.2]}
        train.finetune.groups: {integers: [2, 4]}
        train.head.weight_decays: [[0.1, 1], [10]]
        train.augment:
          choices:
            - {rotate_degrees: 10, gamma: 0.1}
            - {flip_columns: true}
        """
    )
    space, study = SearchSpace(file, load_config("smoke")), optuna.create_study()
    configs = [space.configuration(space.suggest(study.ask())) for _ in range(20)]
    tunes = [config.train.finetune for config in configs]
    assert all(1e-5 <= tune.learning_rate <= 1e-2 and 0.1 <= tune.label_smoothing <= 0.2 for tune in tunes)
    assert min(tune.learning_rate for tune in tunes) < 1e-4 < max(tune.learning_rate for tune in tunes)
    assert {tune.groups for tune in tunes} == {2, 3, 4}
    assert {config.train.head.weight_decays for config in configs} == {(0.1, 1.0), (10.0,)}
    augments = {(one.rotate_degrees, one.gamma, one.flip_columns) for one in (config.train.augment for config in configs)}
    assert augments == {(10, 0.1, False), (0, 0, True)}
    assert {config.train.finetune.batch_size for config in configs} == {16}  # as configured


@pytest.mark.parametrize("text", ["[1, 2]", "a: [", None])
def test_a_file_that_is_no_space_says_so(text: str | None, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "space.yaml").write_text(text)
    with pytest.raises(ConfigError, match=r"space\.yaml"):
        SearchSpace(tmp_path / "space.yaml", load_config("smoke"))


@pytest.mark.parametrize("several", ["train.folds=3", "train.seeds=[1,2]"])
def test_several_networks_are_not_searched(several: str, tmp_path: Path, index: Index, trained: Trained) -> None:
    with pytest.raises(ConfigError, match="A sweep searches the settings of one network"):
        sweep(load_config(trained.config, [several]), index, tmp_path / "sweep", space=RATES, trials=1)


def test_a_sweep_runs_in_one_process(trained: Trained, index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "two")
    with pytest.raises(ConfigError, match="Start it without torchrun"):
        sweep(load_config(trained.config), index, tmp_path / "sweep", space=RATES, trials=1)


# A sweep


class Swept:
    """A sweep of three trials, by the command line, with MLflow; and the frames that it read."""

    def __init__(self, folder: Path, trained: Trained) -> None:
        self.out, self.uri = folder / "sweep", f"sqlite:///{shutil.copy(trained.store, folder / 'mlflow.db')}"
        self.space, self.read = folder / "space.yaml", list[set[Split]]()
        self.space.write_text("train.finetune.learning_rate: {log_uniform: [1e-4, 1e-2]}\npreprocessing.size: [64, 48]\n")
        self.words = ["sweep", str(trained.config), *QUICK, "--index", str(trained.index), "--search", str(self.space)]
        self.words += ["--out", str(self.out), f"tracking.uri={self.uri}", "tracking.experiment=sweeps", "--trials"]
        prepared = sweep_module.prepared_frames

        def look(records: Any, *arguments: Any) -> Any:
            for number, frame in enumerate(prepared(records, *arguments)):
                if number == 0:
                    self.read.append({record.split for record in records})
                yield frame

        with pytest.MonkeyPatch.context() as patch, redirect_stdout(io.StringIO()) as said:
            patch.setattr(sweep_module, "prepared_frames", look)
            assert main([*self.words, "3"]) == 0
        self.said = said.getvalue()


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory, trained: Trained) -> Swept:
    return Swept(tmp_path_factory.mktemp("swept"), trained)


def test_the_best_trial_by_the_tune_split_becomes_the_bundle(swept: Swept) -> None:
    trials = table(swept.out)
    assert [trial["state"] for trial in trials] == ["complete"] * 3
    best = min(trials, key=lambda trial: float(trial["value"]))
    config, bundle = load_config(swept.out / "best.yaml"), load_bundle(swept.out / "bundle")
    assert config.train.finetune.learning_rate == float(best["train.finetune.learning_rate"])
    assert config.preprocessing.size == int(best["preprocessing.size"]) == bundle.manifest.preprocessing.size
    assert load_config(bundle.path / CONFIG).train == config.train
    assert swept.said.splitlines()[0] == f"3 trials finished, 0 pruned, 0 failed: {swept.out / 'trials.csv'}"
    assert swept.said.splitlines()[1].startswith(f"best: trial {best['trial']}, {float(best['value']):.6g} (the tune loss")
    assert f"  preprocessing.size: {best['preprocessing.size']}" in swept.said.splitlines()
    assert swept.said.splitlines()[-1] == f"bundle {bundle.manifest.bundle_id} written to {swept.out / 'bundle'}"
    assert {path.name for path in swept.out.iterdir()} == {"best.yaml", "bundle", "lock", "trials.csv", "trials.db"}


def test_trials_see_the_train_and_the_tune_split_alone_and_share_their_frames(swept: Swept) -> None:
    sizes = {trial["preprocessing.size"] for trial in table(swept.out)}
    assert swept.read == [{Split.TRAIN, Split.TUNE}] * len(sizes)
    assert len(sizes) < 3


def test_mlflow_has_a_run_for_the_sweep_and_a_child_for_each_trial(swept: Swept) -> None:
    client = MlflowClient(swept.uri)
    experiment = client.get_experiment_by_name("sweeps")
    assert experiment is not None
    runs = {run.info.run_id: run for run in client.search_runs([experiment.experiment_id])}
    (parent,) = [run for run in runs.values() if "mlflow.parentRunId" not in run.data.tags]
    assert {run.data.tags["mlflow.parentRunId"] for run in runs.values() if run is not parent} == {parent.info.run_id}
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    assert parent.data.params["space.preprocessing.size"] == "choices [64, 48]"
    trials = table(swept.out)
    assert parent.data.metrics["best_value"] == pytest.approx(min(float(trial["value"]) for trial in trials))
    names = {run.info.run_name: run for run in runs.values()}
    assert names.keys() == {"tiny-sweep", "tiny-trial-0", "tiny-trial-1", "tiny-trial-2", "tiny"}
    for trial in trials:
        child = names[f"tiny-trial-{trial['trial']}"]
        assert child.data.params["train.finetune.learning_rate"] == trial["train.finetune.learning_rate"]
        losses = client.get_metric_history(child.info.run_id, "tune_loss")
        assert min(metric.value for metric in losses) == pytest.approx(float(trial["value"]))
    assert names["tiny"].info.run_id == load_bundle(swept.out / "bundle").manifest.provenance.mlflow_run_id


def test_a_sweep_that_is_done_does_nothing_again(swept: Swept, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("train", "Fitting"):
        monkeypatch.setattr(sweep_module, name, lambda *_, **__: pytest.fail("it trained again"))
    with redirect_stdout(io.StringIO()) as said:
        assert main([*swept.words, "3"]) == 0
    assert said.getvalue() == swept.said


def test_another_search_does_not_go_on_in_the_same_folder(swept: Swept, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*swept.words, "3", "train.seed=1"]) == 2
    assert capsys.readouterr().err.splitlines()[-1] == (
        "octray: sweep holds a sweep of another configuration, index or search space. Give the same ones to go on with it, or "
        "choose another --out."
    )


def untracked(trained: Trained, *overrides: str) -> Config:
    return load_config(trained.config, [*UNTRACKED, *overrides])


@pytest.fixture
def no_bundle(monkeypatch: pytest.MonkeyPatch) -> None:
    """The search alone, without the training at its end."""

    def stop(*_: object, **__: object) -> None:
        raise InputError("no bundle")

    monkeypatch.setattr(sweep_module, "train", stop)


def search(trained: Trained, index: Index, out: Path, trials: int, *overrides: str, space: Any = RATES) -> list[dict[str, str]]:
    """Run the trials of a sweep, and return the table of them."""
    with pytest.raises(InputError, match="no bundle"):
        sweep(untracked(trained, *overrides), index, out, space=space, trials=trials)
    return table(out)


@pytest.mark.usefixtures("no_bundle")
def test_trials_that_fall_behind_the_median_are_pruned(
    trained: Trained, index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def learn(fitting: Fitting, _: object) -> tuple[dict[str, float], Course]:
        course = Course(best_epoch=4)
        for epoch in range(5):
            course.history.append({"tune_loss": fitting._config.train.finetune.learning_rate / (1 + epoch)})
            fitting._log(course.history[-1], epoch)
        return {}, course

    monkeypatch.setattr(Fitting, "learn", learn)
    trials = search(trained, index, tmp_path / "sweep", 12)
    stored = optuna.load_study(study_name="sweep", storage=f"sqlite:///{tmp_path / 'sweep' / 'trials.db'}").trials
    states = [trial.state.name.lower() for trial in stored]
    assert [trial["state"] for trial in trials] == states
    assert states[:5] == ["complete"] * 5
    assert 0 < states.count("pruned") < 7
    for trial in stored[5:]:
        before = [one for one in stored[: trial.number] if one.state is optuna.trial.TrialState.COMPLETE]
        is_behind = trial.intermediate_values[2] > statistics.median(one.intermediate_values[2] for one in before)
        assert (trial.state is optuna.trial.TrialState.PRUNED) == is_behind
        assert max(trial.intermediate_values) == (2 if is_behind else 4)


@pytest.mark.usefixtures("no_bundle")
def test_a_pruned_trial_stops_training_at_once(
    trained: Trained, index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(optuna.Trial, "should_prune", lambda trial: trial.number == 1)
    trials = search(trained, index, tmp_path / "sweep", 2)
    assert [(trial["state"], trial["epochs"]) for trial in trials] == [("complete", "2"), ("pruned", "0")]
    assert [path.name[:6] for path in (tmp_path / "sweep" / "work").iterdir()] == ["frames"]


@pytest.mark.usefixtures("no_bundle")
def test_the_monitored_figure_compares_trials(trained: Trained, index: Index, tmp_path: Path) -> None:
    space = {"train.imbalance": ["none", "focal"]}
    search(trained, index, tmp_path / "sweep", 2, "train.finetune.monitor=tune_auroc", space=space)
    study = optuna.load_study(study_name="sweep", storage=f"sqlite:///{tmp_path / 'sweep' / 'trials.db'}")
    assert study.direction is optuna.study.StudyDirection.MAXIMIZE
    assert [trial.value for trial in study.trials] == [max(trial.intermediate_values.values()) for trial in study.trials]


@pytest.mark.usefixtures("no_bundle")
def test_a_probe_is_compared_by_the_loss_of_its_head(trained: Trained, index: Index, tmp_path: Path) -> None:
    space = {"train.augment.flip_columns": [True, False]}
    trials = search(trained, index, tmp_path / "sweep", 3, "train.way=probe", space=space)
    by_choice = {trial["train.augment.flip_columns"]: trial["value"] for trial in trials}
    assert len(by_choice) == 2
    assert all(trial["value"] == by_choice[trial["train.augment.flip_columns"]] for trial in trials)


def test_values_that_cannot_be_trained_fail_alone(trained: Trained, index: Index, tmp_path: Path) -> None:
    space = {"train.finetune.learning_rate": [1e-3, 1e30]}
    result = sweep(untracked(trained), index, tmp_path / "sweep", space=space, trials=4)
    trials = table(tmp_path / "sweep")
    assert {(trial["train.finetune.learning_rate"], trial["state"]) for trial in trials} == {
        ("0.001", "complete"),
        ("1e+30", "fail"),
    }
    assert "is not a number. Lower train.finetune.learning_rate" in next(trial["reason"] for trial in trials if trial["reason"])
    assert (result.finished + result.failed, result.settings) == (4, {"train.finetune.learning_rate": 0.001})


def test_no_trial_that_finished_says_why(trained: Trained, index: Index, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"No trial of 2 came to its end. The first one failed: The .*loss .*not a number"):
        sweep(untracked(trained), index, tmp_path / "sweep", space={"train.finetune.learning_rate": [1e29, 1e30]}, trials=2)


def test_a_folder_of_something_else_is_left_alone(trained: Trained, index: Index) -> None:
    with pytest.raises(InputError, match="it is a file, a bundle or an index"):
        sweep(untracked(trained), index, trained.index, space=RATES, trials=1)


@pytest.mark.usefixtures("no_bundle")
def test_two_processes_do_not_share_a_sweep(trained: Trained, index: Index, tmp_path: Path) -> None:
    out = tmp_path / "sweep"
    running = sweep_module._opened(untracked(trained), index, out, SearchSpace(RATES, untracked(trained)))
    with running, pytest.raises(InputError, match="Another octray runs the sweep in sweep"):
        sweep(untracked(trained), index, out, space=RATES, trials=1)


def test_a_storage_that_is_damaged_is_named(trained: Trained, index: Index, tmp_path: Path) -> None:
    (tmp_path / "trials.db").write_bytes(b"no database at all, but long enough to look at" * 50)
    with pytest.raises(InputError, match=r"trials\.db in .* cannot be read"):
        sweep(untracked(trained), index, tmp_path, space=RATES, trials=1)


# A sweep that is killed


def reports(storage: Path) -> int:
    """How many epochs all trials of a running sweep have reported."""
    if not storage.is_file():
        return 0
    with closing(sqlite3.connect(f"file:{storage}?mode=ro", uri=True)) as database:
        try:
            return int(database.execute("SELECT COUNT(*) FROM trial_intermediate_values").fetchone()[0])
        except sqlite3.OperationalError:  # no table yet
            return 0


@pytest.mark.slow
@pytest.mark.usefixtures("no_bundle")
def test_a_killed_sweep_goes_on_as_if_it_had_not_been(trained: Trained, index: Index, tmp_path: Path) -> None:
    unbroken = search(trained, index, tmp_path / "unbroken", 4)
    out, space = tmp_path / "killed", tmp_path / "space.yaml"
    space.write_text("train.finetune.learning_rate: {log_uniform: [1e-4, 1e-2]}\ntrain.finetune.groups: [1, 2]\n")
    command = [sys.executable, "-m", "pipeline.cli.main", "sweep", str(trained.config), "--index", str(trained.index)]
    command += ["--search", str(space), "--out", str(out), "--trials", "50", *UNTRACKED]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        while reports(out / "trials.db") < 4:  # three of the first trial, so the second one is running
            assert process.poll() is None, process.communicate()[1]
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
    left = optuna.load_study(study_name="sweep", storage=f"sqlite:///{out / 'trials.db'}").trials
    (killed,) = [trial for trial in left if trial.state is optuna.trial.TrialState.RUNNING]
    frames = {path: path.stat().st_mtime_ns for path in out.glob("work/frames-*/frames.npy")}
    assert len(frames) == 1

    resumed = search(trained, index, out, 4)
    assert {path: path.stat().st_mtime_ns for path in frames} == frames  # they are not read again
    stored = optuna.load_study(study_name="sweep", storage=f"sqlite:///{out / 'trials.db'}").trials
    assert stored[killed.number].state is optuna.trial.TrialState.FAIL
    (repeated,) = [trial for trial in stored if trial.user_attrs.get("repeats") == killed.number]
    assert repeated.params == killed.params
    assert [without_number(trial) for trial in resumed] == [without_number(trial) for trial in unbroken]


def without_number(trial: dict[str, str]) -> dict[str, str]:
    return {key: value for key, value in trial.items() if key != "trial"}


@pytest.mark.usefixtures("no_bundle")
def test_an_interrupted_trial_ends_in_mlflow_and_is_repeated(
    trained: Trained, index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = shutil.copy(trained.store, tmp_path / "mlflow.db")
    config = load_config(trained.config, [*QUICK, f"tracking.uri=sqlite:///{store}", "tracking.experiment=stopped"])

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Fitting, "learn", interrupt)
        with pytest.raises(KeyboardInterrupt):
            sweep(config, index, tmp_path / "sweep", space=RATES, trials=1)
    with pytest.raises(InputError, match="no bundle"):
        sweep(config, index, tmp_path / "sweep", space=RATES, trials=1)
    client = MlflowClient(f"sqlite:///{store}")
    experiment = client.get_experiment_by_name("stopped")
    assert experiment is not None
    states = {run.info.run_name: run.info.status for run in client.search_runs([experiment.experiment_id])}
    assert states == {"tiny-sweep": "FAILED", "tiny-trial-0": "KILLED", "tiny-trial-1": "FINISHED"}
