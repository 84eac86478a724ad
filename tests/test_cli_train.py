"""`octray train` as a user starts it: what it says, what a kill costs, and what it does where it cannot go on."""

import json
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from mlflow import MlflowClient
from safetensors import safe_open

from pipeline.cli.main import main
from pipeline.model.bundle import GRAPH, MANIFEST, METRICS, WEIGHTS, Bundle, load_bundle
from pipeline.train import fit
from tests.conftest import Trained

EPOCHS = 10


def arguments(trained: Trained, out: Path, *more: str) -> list[str]:
    return ["train", str(trained.config), "--index", str(trained.index), "--out", str(out), *more]


def test_it_says_where_the_bundle_lies_and_keeps_messages_apart(trained: Trained) -> None:
    bundle = load_bundle(trained.bundle)
    assert trained.stdout == (
        f"bundle {bundle.manifest.bundle_id} written to {trained.bundle}\n"
        f"figures and limits: {trained.bundle / 'MODEL_CARD.md'}\n"
    )
    (rare,) = (line for line in trained.stderr.splitlines() if line.strip() and "━" not in line)
    assert rare.startswith(
        "octray: The label NORMAL occurs in only 16 patients: 7 in train, 3 in tune, 3 in calibration, 3 in test"
    )
    assert [f"epoch {number} " in trained.stderr for number in range(1, EPOCHS + 1)] == [True] * EPOCHS


# A run that is stopped


def start(words: list[str]) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "pipeline.cli.main", *words]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def stop(words: list[str], checkpoint: Path, number: int) -> tuple[int, str]:
    """Start a run, and send it a signal once its checkpoint has been written twice more."""

    def version() -> int:
        return checkpoint.stat().st_ino if checkpoint.is_file() else 0

    seen = {version()}
    with start(words) as process:
        while len(seen) < 3:
            assert process.poll() is None, process.communicate()[1]
            seen.add(version())
            time.sleep(0.002)
        process.send_signal(number)
        said = process.communicate()[1]
    return process.returncode, said


def finished_epochs(checkpoint: Path) -> int:
    with safe_open(checkpoint, framework="numpy") as file:
        return int(json.loads(file.metadata()["state"])["course"]["epoch"])


def parts(bundle: Bundle) -> dict[str, object]:
    """Everything of a bundle that the clock has no part in."""
    metrics = json.loads(bundle.read(METRICS))
    return {
        "weights": bundle.read(WEIGHTS),
        "graph": bundle.read(GRAPH),
        "metrics": metrics,
        "calibration": asdict(bundle.manifest.calibration),
        "points": bundle.manifest.operating_points,
    }


@pytest.mark.usefixtures("interruptible")
@pytest.mark.slow
def test_a_run_that_is_killed_and_interrupted_ends_like_one_that_was_not(
    trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, work = tmp_path / "bundle", tmp_path / "bundle.work"
    checkpoint = work / "checkpoint.safetensors"
    words = arguments(
        trained, out, f"tracking.uri={trained.uri}", "tracking.experiment=resumed", "tracking.model_name=resumed", "--resume"
    )
    code, _ = stop(words, checkpoint, signal.SIGKILL)
    assert code == -signal.SIGKILL
    killed_after = finished_epochs(checkpoint)
    assert 1 <= killed_after < EPOCHS
    code, said = stop(words, checkpoint, signal.SIGINT)
    assert (code, said.splitlines()[-1]) == (130, "octray: Interrupted. What was finished is kept.")
    assert killed_after < finished_epochs(checkpoint) < EPOCHS
    assert not (out / MANIFEST).exists()

    frames = (work / "frames.npy").stat().st_mtime_ns
    assert main([*arguments(trained, out, "train.seed=1"), "--resume"]) == 2
    assert capsys.readouterr().err.endswith(
        "octray: bundle.work belongs to a run with another configuration, index or file of weights. "
        "Give the same ones to resume it, or leave out --resume to start again.\n"
    )
    assert (work / "frames.npy").stat().st_mtime_ns == frames

    assert main(words) == 0
    assert not work.exists()
    assert parts(load_bundle(out)) == parts(load_bundle(trained.bundle))
    check_recorded(trained, load_bundle(out))


def check_recorded(trained: Trained, bundle: Bundle) -> None:
    """The three starts are one run of MLflow, and no epoch is missing in it."""
    client = MlflowClient(trained.uri)
    experiment = client.get_experiment_by_name("resumed")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.run_id == bundle.manifest.provenance.mlflow_run_id
    assert run.info.status == "FINISHED"
    epochs = json.loads(bundle.read(METRICS))["networks"][0]["epochs"]
    history = client.get_metric_history(run.info.run_id, "tune_loss")
    assert len(history) == len(epochs), "every step is there once"
    found = {metric.step: metric.value for metric in history}
    assert found == {step: pytest.approx(epoch["tune_loss"], rel=1e-4) for step, epoch in enumerate(epochs)}


@pytest.mark.slow
def test_a_killed_run_that_is_begun_again_ends_in_mlflow(trained: Trained, tmp_path: Path) -> None:
    out = tmp_path / "bundle"
    words = arguments(trained, out, f"tracking.uri={trained.uri}", "tracking.experiment=begun", "tracking.model_name=begun")
    assert stop(words, tmp_path / "bundle.work" / "checkpoint.safetensors", signal.SIGKILL)[0] == -signal.SIGKILL
    client = MlflowClient(trained.uri)

    def states() -> dict[str, str]:
        experiment = client.get_experiment_by_name("begun")
        assert experiment is not None
        return {run.info.run_id: run.info.status for run in client.search_runs([experiment.experiment_id])}

    (killed,) = states()
    assert states() == {killed: "RUNNING"}
    assert main([*words, "train.way=probe"]) == 0
    assert states() == {killed: "KILLED", load_bundle(out).manifest.provenance.mlflow_run_id: "FINISHED"}


@pytest.mark.slow
def test_training_uses_the_cores_that_it_is_given(trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen, before = [], torch.get_num_threads()
    export = fit.export_graph

    def look_and_export(*arguments: object) -> bytes:
        seen.append(torch.get_num_threads())
        return export(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(fit, "export_graph", look_and_export)
    words = arguments(trained, tmp_path / "bundle", "tracking.enabled=false", "train.way=probe", "train.threads=0")
    torch.set_num_threads(5)
    try:
        assert main([*words, "--cores", "3"]) == 0
    finally:
        torch.set_num_threads(before)
    assert set(seen) == {3}


# A run that cannot go on


@pytest.mark.slow
def test_a_loss_that_is_not_a_number_ends_with_advice_and_touches_no_bundle(
    trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "bundle"
    shutil.copytree(trained.bundle, out)
    assert main(arguments(trained, out, "tracking.enabled=false", "train.finetune.learning_rate=1e30")) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.splitlines()[-1] == (
        "octray: The loss of epoch 1 is not a number. Lower train.finetune.learning_rate (now 1e+30), or limit the gradient "
        "with train.finetune.clip_norm=1, and train again."
    )
    assert load_bundle(out).manifest == load_bundle(trained.bundle).manifest


@pytest.mark.parametrize("place", [".", "/", "a-file"])
def test_a_place_that_cannot_hold_a_bundle_is_refused_before_any_work(
    place: str, trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    inside = tmp_path / "inside"
    inside.mkdir()
    monkeypatch.chdir(inside)
    (inside / "a-file").touch()
    words = arguments(trained, Path(place), "tracking.enabled=false", "preprocessing.size=32", "model.weights=bundled")
    assert main(words) == 2
    said = capsys.readouterr().err
    if place == ".":  # a folder like any other; the run ends with its next fault
        assert "bundled weights exist for" in said
        assert (tmp_path / "inside.work").is_dir()
    else:
        assert said.endswith(
            f"octray: A bundle cannot be written to {place}: it is not a folder of its own. Choose another --out.\n"
        )
        assert [path.name for path in inside.iterdir()] == ["a-file"]
