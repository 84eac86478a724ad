"""Training on a Ray cluster of two nodes: the bytes of `torchrun` whatever is killed, and one sentence if it cannot be."""

import csv
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

import pytest
from mlflow import MlflowClient

from pipeline.cli.main import main
from pipeline.config import load_config
from pipeline.errors import InputError
from pipeline.ingest.index import load_index
from pipeline.model.bundle import METRICS, WEIGHTS, load_bundle
from pipeline.train import sweep as sweep_module
from pipeline.version import software_versions
from tests.conftest import Trained
from tests.server_ray import RayCluster, running_ray
from tests.test_job_cluster import PLAIN, SECONDS, start, titles
from tests.test_train_kills import contents, torchrun, words_of


@pytest.fixture(scope="module")
def cluster() -> Iterator[RayCluster]:
    pytest.importorskip("ray", reason="Ray is not here: pip install 'octray[cluster]'")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GLOO_SOCKET_IFNAME", "lo")
        with running_ray(2) as cluster:
            yield cluster


def running(cluster: RayCluster) -> list[int]:
    """Return the processes that are training on the cluster, in the order of their numbers."""
    return sorted(number for number, title in titles(cluster).items() if title.startswith(b"ray::Process.run"))


def await_file(path: Path, process: "subprocess.Popen[str]", after: float = 0.0) -> float:
    """Wait until a file has been written again, and return when it was."""
    deadline = time.monotonic() + SECONDS
    while not (path.is_file() and path.stat().st_mtime > after):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.002)
    return path.stat().st_mtime


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/environ").is_file(), reason="finds the processes in /proc")
def test_killed_again_and_again_two_processes_end_with_the_bytes_of_torchrun(
    cluster: RayCluster, trained: Trained, tmp_path: Path
) -> None:
    settings = [f"model.weights={trained.bundle / WEIGHTS}", "train.augment.cutmix=0.5", "train.finetune.epochs=40"]
    settings += ["train.finetune.patience=40"]
    with torchrun(words_of(trained, tmp_path / "torchrun" / "bundle", *settings)) as process:
        said = process.communicate()[1]
    assert process.returncode == 0, said
    out, written = tmp_path / "ray" / "bundle", 0.0
    with start(cluster, [*words_of(trained, out, *settings), "--processes", "2"]) as process:
        for which in (0, -1):
            written = await_file(out.parent / "bundle.work" / "checkpoint.safetensors", process, written)
            at_work = running(cluster)
            assert len(at_work) == 2
            os.kill(at_work[which], signal.SIGKILL)
        said = process.communicate(timeout=SECONDS)[1]
    assert process.returncode == 0, said
    assert contents(load_bundle(out)) == contents(load_bundle(tmp_path / "torchrun" / "bundle"))
    assert [path.name for path in out.parent.iterdir()] == ["bundle"]
    assert not running(cluster)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/environ").is_file(), reason="finds the processes in /proc")
def test_a_cluster_that_goes_away_leaves_a_checkpoint_with_which_this_machine_goes_on(trained: Trained, tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="Ray is not here: pip install 'octray[cluster]'")
    out = tmp_path / "bundle"
    with running_ray(1) as cluster, start(cluster, words_of(trained, out)) as process:
        await_file(tmp_path / "bundle.work" / "checkpoint.safetensors", process)
        for number in titles(cluster).keys() - {process.pid}:
            with suppress(ProcessLookupError):
                os.kill(number, signal.SIGKILL)
        said = process.communicate(timeout=SECONDS)[1]
    assert process.returncode == 2, said
    assert "octray: The Ray cluster does not answer any more. What was finished is kept: start the cluster, and" in said
    assert "Traceback" not in said
    assert main([*words_of(trained, out), "--resume"]) == 0
    expected = load_bundle(trained.bundle)
    assert load_bundle(out).read(WEIGHTS) == expected.read(WEIGHTS)
    assert load_bundle(out).read(METRICS) == expected.read(METRICS)


def refusal(cluster: RayCluster, given: list[str], program: str = PLAIN) -> str:
    """Return the last sentence of a run that ends with exit code 2."""
    with start(cluster, given, program) as process:
        error = process.communicate(timeout=SECONDS)[1]
    assert process.returncode == 2, error
    assert "Traceback" not in error
    return [line for line in error.splitlines() if line.startswith("octray: ")][-1].removeprefix("octray: ")


@pytest.mark.slow
def test_a_fault_of_the_configuration_is_told_as_on_this_machine(cluster: RayCluster, trained: Trained, tmp_path: Path) -> None:
    told = refusal(cluster, words_of(trained, tmp_path / "bundle", "model.architecture=resnet17"))
    assert told.startswith("model.architecture: ")


IMPATIENT = f"import pipeline.workers.ray_cluster as cluster; cluster._START_SECONDS = 5.0; {PLAIN}"


@pytest.mark.slow
def test_more_processes_than_free_cpus_are_refused(cluster: RayCluster, trained: Trained, tmp_path: Path) -> None:
    told = refusal(cluster, [*words_of(trained, tmp_path / "bundle"), "--processes", "3"], IMPATIENT)
    assert told.startswith("The Ray cluster does not start 3 processes of octray. Check that so many CPUs are free")


def test_what_a_machine_of_the_cluster_lacks_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = pytest.importorskip("pipeline.workers.ray_cluster", reason="Ray is not here: pip install 'octray[cluster]'")
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    code, process = dict(software_versions()), cluster.Process()
    for absent in (tmp_path, tmp_path / "absent", tmp_path / "absent.zip"):
        with pytest.raises(InputError, match="A machine of the Ray cluster does not see the folder there, or sees it empty"):
            process.ready(code, {absent: "there"}, tmp_path)
    with pytest.raises(InputError, match="A machine of the Ray cluster does not see the folder absent, in which octray was st"):
        process.ready(code, {}, tmp_path / "absent")
    with pytest.raises(InputError, match="A machine of the Ray cluster has another version of octray. Install the same there"):
        process.ready(code | {"octray": "another"}, {}, tmp_path)


@pytest.mark.parametrize(
    ("engine", "variables", "message"),
    [
        (["--engine", "ray", "--address", "127.0.0.1:1"], {}, "The Ray cluster must ask for a token"),
        (["--engine", "ray", "--processes", "0"], {}, "--processes must be 1 or more. Got 0 instead."),
        (["--processes", "2"], {}, "--processes needs --engine ray. On one machine, start several processes with torchrun."),
        (
            ["--engine", "ray"],
            {"TORCHELASTIC_RUN_ID": "two", "RANK": "0"},
            "octray starts the processes itself. Leave out",
        ),
    ],
)
def test_what_cannot_be_started_is_said_before_any_cluster_is_asked(
    engine: list[str],
    variables: Mapping[str, str],
    message: str,
    trained: Trained,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("ray", reason="Ray is not here: pip install 'octray[cluster]'")
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert main([*words_of(trained, tmp_path / "bundle"), *engine]) == 2
    assert message in capsys.readouterr().err


def test_without_ray_it_is_said_how_to_get_it(
    trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)  # as if it were not installed
    assert main([*words_of(trained, tmp_path / "bundle"), "--engine", "ray"]) == 2
    assert "pip install 'octray[cluster]'" in capsys.readouterr().err


# Sweeps


NO_BUNDLE = (
    """
import sys
import pipeline.train.sweep as module
from pipeline.errors import InputError
def train(*_, **__): raise InputError("no bundle")
module.train = train
"""
    + PLAIN
)
"""The search alone, without the training at its end."""
SPACE = "train.finetune.learning_rate: {log_uniform: [1e-4, 1e-2]}\ntrain.finetune.groups: [1, 2]\n"


def trials_of(out: Path) -> list[dict[str, str]]:
    with (out / "trials.csv").open(newline="") as file:
        return [{key: value for key, value in row.items() if key != "trial"} for row in csv.DictReader(file)]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/environ").is_file(), reason="finds the processes in /proc")
def test_trials_side_by_side_are_the_same_whatever_is_killed(cluster: RayCluster, trained: Trained, tmp_path: Path) -> None:
    space, store = tmp_path / "space.yaml", shutil.copy(trained.store, tmp_path / "mlflow.db")
    space.write_text(SPACE)
    words = ["sweep", str(trained.config), "--index", str(trained.index), "--search", str(space), "train.finetune.epochs=4"]
    tracking = [f"tracking.uri=sqlite:///{store}", "tracking.experiment=side-by-side"]
    here, lost, stopped = (tmp_path / name for name in ("here", "lost", "stopped"))

    def search(out: Path, trials: int, *more: str) -> "subprocess.Popen[str]":
        return start(cluster, [*words, *more, "--processes", "2", "--trials", str(trials), "--out", str(out)], NO_BUNDLE)

    with search(lost, 4, *tracking) as process:  # a process of the cluster is killed while it trains
        while not (at_work := running(cluster)):
            assert process.poll() is None, process.communicate()[1]
        os.kill(at_work[0], signal.SIGKILL)
        said = process.communicate(timeout=SECONDS)[1]
    assert "octray: no bundle" in said.splitlines()
    with search(stopped, 4, "tracking.enabled=false") as process:  # octray itself is killed
        await_file(stopped / "trials.csv", process)
        process.kill()
    with search(stopped, 4, "tracking.enabled=false") as process:
        said = process.communicate(timeout=SECONDS)[1]
    assert "octray: no bundle" in said.splitlines()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sweep_module, "train", lambda *_, **__: pytest.fail("trials only"))
        patch.setattr(sweep_module._Sweep, "train_best", lambda *_: None)
        config = load_config(trained.config, ["train.finetune.epochs=4", "tracking.enabled=false"])
        sweep_module.sweep(config, load_index(trained.index), here, space=space, trials=2)

    assert [trial["state"] for trial in trials_of(lost)] == ["complete"] * 4
    assert trials_of(stopped) == trials_of(lost)
    assert trials_of(here) == trials_of(lost)[:2], "values and figures are those of this machine"
    client = MlflowClient(f"sqlite:///{store}")
    experiment = client.get_experiment_by_name("side-by-side")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    (parent,) = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    children = [run for run in runs if run is not parent]
    assert {run.data.tags["mlflow.parentRunId"] for run in children} == {parent.info.run_id}
    assert {run.info.status for run in children} == {"FINISHED"}
    best = [min(one.value for one in client.get_metric_history(run.info.run_id, "tune_loss")) for run in children]
    assert sorted(best) == pytest.approx(sorted(float(trial["value"]) for trial in trials_of(lost)))
