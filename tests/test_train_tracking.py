"""MLflow: what its own client finds of a run, and what a store that is dead, silent or broken costs."""

import json
import os
import shutil
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlparse
from urllib.request import url2pathname

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from pipeline.cli.main import main
from pipeline.config import TrackingSection, load_config
from pipeline.ingest.index import load_index
from pipeline.model.bundle import METRICS, load_bundle
from pipeline.train.tracking import RunFacts, Tracker, flatten, tracking_uri
from tests.conftest import Trained

FACTS = RunFacts("tiny", {"train.seed": "0"}, "index", "a" * 64)


@pytest.fixture(scope="module")
def client(trained: Trained) -> MlflowClient:
    return MlflowClient(trained.uri)


@pytest.fixture(scope="module")
def run(client: MlflowClient, trained: Trained) -> Run:
    return client.get_run(load_bundle(trained.bundle).manifest.provenance.mlflow_run_id)


@pytest.fixture
def store(trained: Trained, tmp_path: Path) -> Path:
    """A store of one's own, made sooner than by MLflow."""
    return Path(shutil.copy(trained.store, tmp_path / "mlflow.db"))


# What is recorded


def test_every_setting_is_a_parameter(run: Run, trained: Trained) -> None:
    config = load_config(trained.config, [f"tracking.uri={trained.uri}"])
    assert run.data.params == flatten(config.published())
    assert run.data.params["train.head.weight_decays"] == "10.0,3.0"
    assert (run.info.run_name, run.info.status) == ("tiny", "FINISHED")


def test_every_epoch_and_every_figure_is_a_metric(client: MlflowClient, run: Run, trained: Trained) -> None:
    metrics = json.loads(load_bundle(trained.bundle).read(METRICS))
    for name in ("train_loss", "tune_loss", "learning_rate"):
        history = {metric.step: metric.value for metric in client.get_metric_history(run.info.run_id, name)}
        wanted = {step: epoch[name] for step, epoch in enumerate(metrics["epochs"]) if name in epoch}
        assert history == pytest.approx(wanted, rel=1e-4)  # the head is fitted in float64
    evaluation = metrics["evaluation"]
    assert run.data.metrics["test_auroc"] == pytest.approx(evaluation["macro"]["auroc"]["value"])
    pneumonia = evaluation["labels"]["PNEUMONIA"]["metrics"]
    assert run.data.metrics["test_PNEUMONIA_sensitivity"] == pytest.approx(pneumonia["sensitivity"]["value"])


def test_the_data_set_is_named_with_its_digest(run: Run, trained: Trained) -> None:
    index = load_index(trained.index)
    (given,) = run.inputs.dataset_inputs
    assert given.dataset.name == index.name
    assert index.sha256.startswith(given.dataset.digest)
    assert len(given.dataset.digest) == 36


def test_the_bundle_is_an_artefact_and_a_registered_version(client: MlflowClient, run: Run, trained: Trained) -> None:
    version = client.get_model_version_by_alias("octray-tiny", "candidate")
    assert version.run_id == run.info.run_id
    assert version.source == f"{run.info.artifact_uri}/bundle"
    stored = load_bundle(Path(url2pathname(urlparse(version.source).path)))
    assert stored.manifest == load_bundle(trained.bundle).manifest
    listed = {artifact.path for artifact in client.list_artifacts(run.info.run_id, "bundle/plots")}
    assert listed == {f"bundle/plots/{name}.png" for name in ("roc", "pr", "reliability", "confusion")}


def test_names_that_mlflow_does_not_take_are_changed_and_kept(store: Path) -> None:
    tracker = Tracker(TrackingSection(uri=f"sqlite:///{store}"), FACTS)
    tracker.log_metrics({"test_A+B (wet) / 1:2_auroc": 0.5})
    tracker.finish()
    found = MlflowClient(f"sqlite:///{store}").get_run(tracker.run_id)
    assert found.data.metrics == {"test_A_B _wet_ _ 1_2_auroc": 0.5}
    assert found.info.status == "FINISHED"


def test_a_store_below_a_new_folder_is_made(store: Path, tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path / 'new' / 'deep' / 'mlflow.db'}"
    (tmp_path / "new" / "deep").mkdir(parents=True)
    shutil.move(store, tmp_path / "new" / "deep")
    assert Tracker(TrackingSection(uri=uri), FACTS).run_id


def test_the_environment_is_left_as_it_was(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "77")
    before = dict(os.environ)
    assert Tracker(TrackingSection(uri=f"sqlite:///{store}"), FACTS).run_id
    assert dict(os.environ) == before


def test_the_place_is_the_setting_then_the_environment_then_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://mlflow.example.org")
    assert tracking_uri(TrackingSection(uri="sqlite:///a.db")) == "sqlite:///a.db"
    assert tracking_uri(TrackingSection()) == "https://mlflow.example.org"
    assert not (tmp_path / "mlruns").exists()
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert tracking_uri(TrackingSection()) == "sqlite:///mlruns/mlflow.db"
    assert (tmp_path / "mlruns").is_dir()


def test_nothing_is_recorded_where_tracking_is_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    tracker = Tracker(TrackingSection(enabled=False), FACTS)
    tracker.log_metrics({"tune_loss": 1.0})
    tracker.finish()
    assert (tracker.run_id, capsys.readouterr().err, list(tmp_path.iterdir())) == ("", "", [])


# A store that does not work


def said_once(text: str) -> bool:
    """Whether one sentence, and nothing of MLflow's own, says that the run is not recorded."""
    lines = [line for line in text.splitlines() if line.strip() and "━" not in line]
    return len(lines) == 1 and lines[0].startswith("octray: MLflow does not record the run (")


@contextmanager
def silent() -> Iterator[tuple[str, list[socket.socket]]]:
    """A server that takes every connection and never answers."""
    taken: list[socket.socket] = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def accept() -> None:
            while True:
                try:
                    taken.append(server.accept()[0])
                except OSError:
                    return

        thread = threading.Thread(target=accept)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.getsockname()[1]}", taken
        finally:
            server.shutdown(socket.SHUT_RDWR)
            thread.join()
            for connection in taken:
                connection.close()


@pytest.mark.slow
def test_a_silent_server_costs_one_connection_one_sentence_and_no_result(
    trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["train", str(trained.config), "--index", str(trained.index), "--out", str(tmp_path / "bundle")]
    with silent() as (uri, taken):
        assert main([*words, f"tracking.uri={uri}", "train.finetune.epochs=0"]) == 0
        assert len(taken) == 1
    assert load_bundle(tmp_path / "bundle").manifest.provenance.mlflow_run_id == ""
    assert said_once(capsys.readouterr().err)


def test_a_server_that_is_not_there_costs_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    use(f"http://127.0.0.1:{port}")
    assert said_once(capsys.readouterr().err)


def use(uri: str) -> None:
    """Do with a store that does not work what a run does."""
    tracker = Tracker(TrackingSection(uri=uri), FACTS)
    tracker.log_metrics({"tune_loss": 1.0})
    tracker.finish()
    assert tracker.run_id == ""


@pytest.mark.parametrize("uri", ["sqlite:///{}/a-file/mlflow.db", "sqlite:///{}", "sqlite:///{}/a-file", "gibberish://{}"])
def test_a_store_that_cannot_be_opened_is_tried_once(uri: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a-file").write_text("no database at all" * 100)
    use(uri.format(tmp_path))
    assert said_once(capsys.readouterr().err)


def test_a_store_that_dies_in_the_middle_costs_one_sentence(
    store: Path, trained: Trained, capsys: pytest.CaptureFixture[str]
) -> None:
    tracker = Tracker(TrackingSection(uri=f"sqlite:///{store}"), FACTS)
    tracker.log_metrics({"tune_loss": 1.0}, 1)
    assert tracker.run_id
    assert capsys.readouterr().err == ""
    store.write_bytes(b"no database any more" * 1000)
    tracker.log_metrics({"tune_loss": 0.9}, 2)
    tracker.log_bundle(trained.bundle, "octray-tiny")
    tracker.finish()
    assert said_once(capsys.readouterr().err)


def test_a_run_that_is_no_longer_there_costs_one_sentence(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tracker = Tracker(TrackingSection(uri=f"sqlite:///{store}"), FACTS, run_id="f" * 32)
    tracker.log_metrics({"tune_loss": 1.0})
    assert said_once(capsys.readouterr().err)
