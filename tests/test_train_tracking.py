"""MLflow: what its own client finds of a run, and what a store that is dead, silent, slow or broken costs."""

import getpass
import json
import os
import platform
import re
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from importlib import metadata
from pathlib import Path
from urllib.parse import urlparse
from urllib.request import url2pathname

import mlflow.data
import numpy as np
import pytest
from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.environment_variables import MLFLOW_HTTP_REQUEST_TIMEOUT
from mlflow.exceptions import MlflowException
from mlflow.models import Model
from mlflow.types import Schema
from mlflow.utils import validation
from pyarrow import parquet

from octray import Predictor, discover, read_frames
from pipeline.cli.main import main
from pipeline.config import TrackingSection, load_config
from pipeline.errors import ConfigError, InputError
from pipeline.frames import Split
from pipeline.ingest.index import load_index
from pipeline.model.bundle import METRICS, Provenance, load_bundle
from pipeline.train import tracking
from pipeline.train.mlflow_client import client_settings, tracking_uri
from pipeline.train.outbox import RunLog, logs_in, outbox_of
from pipeline.train.tracking import Tracker, flatten, sync_runs
from pipeline.train.workspace import open_workspace
from tests.builders import make_bundle
from tests.conftest import ROOT, Trained
from tests.server_mlflow import Proxy, mlflow_server, proxy_of

FACTS = {
    "name": "tiny",
    "parameters": {"train.seed": "0"},
    "dataset": {"name": "index", "digest": "a" * 36, "source_type": "local", "source": "{}"},
}


def begun(settings: TrackingSection, out: Path, key: str = "key", measured: bool = False) -> Tracker:
    """A run of MLflow as `train` begins it, by default without the load of the machine."""
    return Tracker(settings.model_copy(update={"system_metrics": measured}), out=out, key=key, **FACTS)


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
    assert run.data.tags["octray.weights"] == "random"


def test_every_epoch_and_every_figure_is_a_metric(client: MlflowClient, run: Run, trained: Trained) -> None:
    metrics = json.loads(load_bundle(trained.bundle).read(METRICS))
    for name in ("train_loss", "tune_loss", "learning_rate"):
        history = {metric.step: metric.value for metric in client.get_metric_history(run.info.run_id, name)}
        wanted = {step: epoch[name] for step, epoch in enumerate(metrics["networks"][0]["epochs"]) if name in epoch}
        assert history == pytest.approx(wanted, rel=1e-4)  # the head is fitted in float64
    evaluation = metrics["evaluation"]
    assert run.data.metrics["test_auroc"] == pytest.approx(evaluation["macro"]["auroc"]["value"])
    pneumonia = evaluation["labels"]["PNEUMONIA"]["metrics"]
    assert run.data.metrics["test_PNEUMONIA_sensitivity"] == pytest.approx(pneumonia["sensitivity"]["value"])


def test_who_ran_which_octray_where_is_a_tag(run: Run) -> None:
    assert run.data.tags["mlflow.user"] == getpass.getuser()
    assert (run.data.tags["octray.host"], run.data.tags["octray.version"]) == (platform.node(), metadata.version("octray"))
    assert run.data.tags.get("mlflow.source.git.commit", "") == provenance_of(run).git_commit


def provenance_of(run: Run) -> Provenance:
    return load_bundle(Path(url2pathname(urlparse(f"{run.info.artifact_uri}/bundle").path))).manifest.provenance


def test_the_machine_is_measured_under_mlflows_own_names(client: MlflowClient, run: Run) -> None:
    names = {name for name in run.data.metrics if name.startswith("system/")}
    assert names >= {"system/cpu_utilization_percentage", "system/system_memory_usage_megabytes"}
    history = client.get_metric_history(run.info.run_id, "system/system_memory_usage_megabytes")
    assert [metric.step for metric in history] == list(range(len(history)))


def test_the_data_set_has_a_source_and_columns(run: Run, trained: Trained) -> None:
    index = load_index(trained.index)
    (given,) = run.inputs.dataset_inputs
    source = mlflow.data.get_source(given)
    assert (source._get_source_type(), Path(source.load())) == ("local", index.sources[0])
    columns = Schema.from_json(json.dumps(json.loads(given.dataset.schema)["mlflow_colspec"])).input_dict()
    table = parquet.read_schema(trained.index / "frames.parquet")
    assert list(columns) == table.names
    assert (str(columns["label.PNEUMONIA"].type), columns["label.PNEUMONIA"].required) == ("DataType.boolean", False)
    assert json.loads(given.dataset.profile)["splits"]["train"]["frames"] == len(index.of(Split.TRAIN))


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
    assert listed == {
        f"bundle/plots/{name}.png" for name in ("roc", "pr", "reliability", "decision_curve", "confusion", "most_probable")
    }


def test_names_that_mlflow_does_not_take_are_changed_and_kept(store: Path) -> None:
    tracker = begun(TrackingSection(uri=f"sqlite:///{store}"), store.parent / "bundle")
    tracker.log_metrics({"test_A+B (wet) / 1:2_auroc": 0.5})
    tracker.finish()
    found = MlflowClient(f"sqlite:///{store}").get_run(tracker.run_id)
    assert found.data.metrics == {"test_A_B _wet_ _ 1_2_auroc": 0.5}
    assert found.info.status == "FINISHED"


def test_a_store_below_a_new_folder_is_made(store: Path, tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path / 'new' / 'deep' / 'mlflow.db'}"
    (tmp_path / "new" / "deep").mkdir(parents=True)
    shutil.move(store, tmp_path / "new" / "deep")
    assert begun(TrackingSection(uri=uri), tmp_path / "bundle").run_id


def test_the_environment_is_left_as_it_was(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "77")
    before = dict(os.environ)
    assert begun(TrackingSection(uri=f"sqlite:///{store}"), store.parent / "bundle").run_id
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
    tracker = begun(TrackingSection(enabled=False), tmp_path / "bundle")
    tracker.log_metrics({"tune_loss": 1.0})
    tracker.finish()
    assert (tracker.run_id, capsys.readouterr().err, list(tmp_path.iterdir())) == ("", "", [])


# What MLflow can run

RUN_MODEL = """
import json, sys

import mlflow
import numpy as np
import pandas as pd

mlflow.set_tracking_uri(sys.argv[1])
model = mlflow.pyfunc.load_model("models:/octray-tiny@candidate")
paths = model.predict(pd.DataFrame({"path": sys.argv[3:]}))
pixels = model.predict(pd.DataFrame({"pixels": list(np.load(sys.argv[2]))}))
for wrong in (sys.argv[3:], pd.DataFrame({"pixels": [np.full((4, 4), 2.0)]})):
    try:
        model.predict(wrong)
    except ValueError as error:
        print(error)
print(json.dumps([table.to_dict("records") for table in (paths, pixels)]))
"""


@pytest.mark.slow
def test_mlflow_runs_a_registered_bundle_in_a_fresh_process_without_unpickling(trained: Trained, tmp_path: Path) -> None:
    file = next(path for path in sorted(trained.studies.rglob("*")) if path.suffix == ".dcm")
    (tmp_path / "broken.dcm").write_text("no image")
    (found,) = discover(file)
    (frame,) = read_frames(found)
    np.save(tmp_path / "pixels.npy", frame.pixels[None].astype(np.float64))
    words = [trained.uri, str(tmp_path / "pixels.npy"), str(file), str(tmp_path / "broken.dcm")]
    here = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    here |= {"MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false"}
    done = subprocess.run([sys.executable, "-c", RUN_MODEL, *words], capture_output=True, text=True, cwd=tmp_path, env=here)
    assert done.returncode == 0, done.stderr
    no_column, too_bright, answers = done.stdout.splitlines()[-3:]
    assert no_column == "Give a DataFrame with a column path or pixels."
    assert too_bright == "Row 0 needs a path, or pixels of shape (rows, columns) from 0 to 1. Got the shape (4, 4) instead."
    from_files, (from_pixels,) = json.loads(answers)
    (expected,) = Predictor(load_bundle(trained.bundle)).predict([frame], heatmaps=False)
    for row in (from_files[0], from_pixels):
        assert (row["row"], row["reason"]) == (0, "")
        for one in expected.predictions:
            assert row[f"probability.{one.label}"] == pytest.approx(one.probability, abs=0.02)
            assert row[f"state.{one.label}"] == one.state
    assert [(row["row"], row["source"], row["reason"]) for row in from_files[1:]] == [(1, "broken.dcm", "not_an_image")]


def test_what_mlflow_runs_says_what_it_takes_and_gives(client: MlflowClient, trained: Trained) -> None:
    source = client.get_model_version_by_alias("octray-tiny", "candidate").source
    model = Model.load(url2pathname(urlparse(source).path))
    assert model.signature.inputs.input_names() == ["path", "pixels"]
    labels = load_bundle(trained.bundle).manifest.labels
    answers = [f"{kind}.{label}" for label in labels for kind in ("probability", "state")]
    assert model.signature.outputs.input_names() == ["row", "source", "frame_number", "reason", *answers]
    names = {path.name for path in Path(url2pathname(urlparse(source).path)).rglob("*")}
    assert names >= {"MLmodel", "mlflow_model.py", "requirements.txt"}
    assert not [name for name in names if name.endswith((".pkl", ".pickle", ".pt"))]


def test_a_resumed_run_that_had_registered_its_bundle_keeps_its_version(store: Path, tmp_path: Path) -> None:
    uri, client = f"sqlite:///{store}", MlflowClient(f"sqlite:///{store}")
    place = TrackingSection(uri=uri, experiment="twice")
    versions = []
    for seed, status in ((0, "KILLED"), (1, "FINISHED")):
        bundle = make_bundle(tmp_path / "bundle", temperature=1.0 + seed)
        tracker = begun(place, bundle.path)
        tracker.log_bundle(bundle.path, "octray-twice")
        tracker.finish(status)
        versions.append(client.search_model_versions("name = 'octray-twice'"))
    assert [len(found) for found in versions] == [1, 1]
    assert versions[1][0].tags["octray.bundle_id"] == bundle.manifest.bundle_id
    assert load_bundle(Path(url2pathname(urlparse(versions[1][0].source).path))).manifest == bundle.manifest


# A new store

BEGIN = """
import sys
from pathlib import Path

from pipeline.config import TrackingSection
from pipeline.train.tracking import Tracker

tracker = Tracker(
    TrackingSection(uri=sys.argv[1], experiment="new"),
    out=Path(sys.argv[2]),
    key=sys.argv[2],
    name=sys.argv[2],
    parameters={},
    dataset={"name": "index", "digest": "a", "source_type": "local", "source": "{}"},
)
tracker.log_metrics({"tune_loss": 1.0}, 1)
tracker.finish()
"""


def begin(uri: str, name: str, folder: Path) -> "subprocess.Popen[str]":
    here = os.environ | {"PYTHONPATH": os.pathsep.join(["", str(ROOT), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, "-c", BEGIN, uri, name]
    return subprocess.Popen(command, cwd=folder, env=here, stderr=subprocess.PIPE, text=True)


def ended(process: "subprocess.Popen[str]") -> tuple[int, str]:
    _, said = process.communicate()
    return process.returncode, said


@pytest.mark.slow
def test_three_runs_at_once_make_one_new_store(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path / 'new' / 'mlflow.db'}"
    runs = [begin(uri, name, tmp_path) for name in ("first", "second", "third")]
    assert [ended(run) for run in runs] == [(0, "")] * 3
    with warnings.catch_warnings(action="ignore"):  # of SQLAlchemy about MLflow, if it is used here for the first time
        client = MlflowClient(uri)
        found = client.search_runs([client.get_experiment_by_name("new").experiment_id])
    assert {run.info.run_name: run.info.status for run in found} == dict.fromkeys(("first", "second", "third"), "FINISHED")
    assert {run.data.metrics["tune_loss"] for run in found} == {1.0}
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["mlflow.db"]


@pytest.mark.slow
def test_a_kill_while_a_store_is_made_leaves_nothing_that_the_next_run_cannot_use(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    (tmp_path / "runs").mkdir()
    killed = begin(uri, "killed", tmp_path / "runs")
    while killed.poll() is None and not any(path.stat().st_size for path in tmp_path.glob(".mlflow.db.part/*.db")):
        pass  # until some of the tables are there
    killed.kill()
    ended(killed)
    assert {path.name for path in tmp_path.iterdir()} == {".mlflow.db.part", "runs"}
    assert ended(begin(uri, "next", tmp_path / "runs")) == (0, "")
    assert {path.name for path in tmp_path.iterdir()} == {"mlflow.db", "runs"}


# A store that does not work


def said_once(text: str) -> bool:
    """Whether one sentence, and nothing of MLflow's own, says that the run is not recorded; the index has too few patients."""
    lines = [line for line in text.splitlines() if line.strip() and "━" not in line and "occurs in only" not in line]
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
def test_a_silent_server_costs_one_sentence_and_no_result(
    trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["train", str(trained.config), "--index", str(trained.index), "--out", str(tmp_path / "bundle")]
    with silent() as (uri, taken):
        assert main([*words, f"tracking.uri={uri}", "tracking.seconds=2", "train.way=probe"]) == 0
        assert taken
    assert load_bundle(tmp_path / "bundle").manifest.provenance.mlflow_run_id == ""
    assert said_once(capsys.readouterr().err)


def test_a_server_that_is_not_there_costs_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    use(f"http://127.0.0.1:{port}", tmp_path)
    assert said_once(capsys.readouterr().err)


def use(uri: str, folder: Path) -> None:
    """Do with a store that does not work what a run does."""
    tracker = begun(TrackingSection(uri=uri), folder / "bundle")
    tracker.log_metrics({"tune_loss": 1.0})
    tracker.finish()
    assert tracker.run_id == ""


@pytest.mark.parametrize("uri", ["sqlite:///{}/a-file/mlflow.db", "sqlite:///{}", "sqlite:///{}/a-file", "gibberish://{}"])
def test_a_store_that_cannot_be_opened_is_tried_once(uri: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a-file").write_text("no database at all" * 100)
    use(uri.format(tmp_path), tmp_path)
    assert said_once(capsys.readouterr().err)


def test_a_store_that_dies_in_the_middle_costs_one_sentence(
    store: Path, trained: Trained, capsys: pytest.CaptureFixture[str]
) -> None:
    tracker = begun(TrackingSection(uri=f"sqlite:///{store}"), store.parent / "bundle")
    tracker.log_metrics({"tune_loss": 1.0}, 1)
    assert tracker.run_id
    assert capsys.readouterr().err == ""
    store.write_bytes(b"no database any more" * 1000)
    tracker.log_metrics({"tune_loss": 0.9}, 2)
    tracker.log_bundle(trained.bundle, "octray-tiny")
    tracker.finish()
    assert said_once(capsys.readouterr().err)


def test_a_run_that_is_no_longer_there_costs_one_sentence(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tracker = begun(TrackingSection(uri=f"sqlite:///{store}"), store.parent / "bundle")
    MlflowClient(f"sqlite:///{store}").delete_run(tracker.run_id)
    tracker.log_metrics({"tune_loss": 1.0})
    tracker.finish()
    assert said_once(capsys.readouterr().err)


# A store that refuses a part, and one that comes back


def settings(uri: object, **others: str) -> TrackingSection:
    """Settings that are not checked first, so that MLflow has to refuse them."""
    return TrackingSection.model_construct(**(TrackingSection().model_dump() | {"uri": str(uri)} | others))


@pytest.mark.parametrize(
    ("alias", "name", "sentence"),
    [
        ("latest", "octray-tiny", "'latest' alias name (case insensitive) is reserved"),
        ("candidate", "chest/xray", "Invalid model name 'chest/xray'. Names cannot contain '/' or ':'"),
    ],
)
def test_what_mlflow_refuses_is_said_in_its_own_words_and_the_run_ends(
    store: Path, trained: Trained, capsys: pytest.CaptureFixture[str], alias: str, name: str, sentence: str
) -> None:
    tracker = begun(settings(f"sqlite:///{store}", alias=alias), store.parent / "bundle")
    tracker.log_bundle(trained.bundle, name)
    tracker.finish()
    said = capsys.readouterr().err
    assert said_once(said)
    assert sentence in said
    assert "octray sync" in said
    assert MlflowClient(f"sqlite:///{store}").get_run(tracker.run_id).info.status == "FINISHED"


def test_artefacts_that_cannot_be_written_leave_a_run_that_ends_and_can_be_registered_later(
    store: Path, trained: Trained, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file lies in the place of the folder for artefacts; permissions would not stop an administrator."""
    uri = f"sqlite:///{store}"
    (store.parent / "artifacts").write_text("no folder")
    bundle = make_bundle(store.parent / "bundle")
    tracker = begun(TrackingSection(uri=uri, experiment="blocked"), bundle.path)
    tracker.log_bundle(bundle.path, "octray-blocked")
    tracker.finish("FAILED")
    said = capsys.readouterr().err
    assert said_once(said)
    assert "Not a directory" in said or "File exists" in said
    assert str(store.parent) not in said
    client = MlflowClient(uri)
    assert client.get_run(tracker.run_id).info.status == "FAILED"
    (store.parent / "artifacts").unlink()
    where = [f"tracking.uri={uri}", "tracking.experiment=blocked", "tracking.model_name=octray-blocked"]
    for _ in range(2):
        assert main(["bundle", "register", str(bundle.path), *where, "tracking.alias=good"]) == 0
        assert capsys.readouterr().out == "registered as version 1 of octray-blocked, alias good\n"
    version = client.get_model_version_by_alias("octray-blocked", "good")
    assert version.run_id == tracker.run_id
    assert load_bundle(Path(url2pathname(urlparse(version.source).path))).manifest == bundle.manifest
    assert client.get_run(tracker.run_id).info.status == "FINISHED"


@pytest.mark.parametrize("run_id", ["", "f" * 32], ids=["no run", "a run that is gone"])
def test_a_bundle_without_a_run_gets_one_and_only_one(
    store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], run_id: str
) -> None:
    made = make_bundle(tmp_path / "made")
    origin = made.manifest.provenance.model_dump() | {"mlflow_run_id": run_id}
    bundle = make_bundle(tmp_path / "bundle", provenance=origin)
    words = ["bundle", "register", str(bundle.path), f"tracking.uri=sqlite:///{store}", "tracking.experiment=later"]
    for alias in ("candidate", "second"):
        assert main([*words, f"tracking.alias={alias}"]) == 0
        assert capsys.readouterr().out == f"registered as version 2 of octray-tiny, alias {alias}\n"
    client = MlflowClient(f"sqlite:///{store}")
    (found,) = client.search_runs([client.get_experiment_by_name("later").experiment_id])
    assert (found.info.status, found.data.params) == ("FINISHED", {"name": "tiny"})
    assert client.get_model_version_by_alias("octray-tiny", "second").run_id == found.info.run_id


def test_the_figures_of_a_bundle_that_is_registered_later_are_recorded(store: Path, trained: Trained, tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path / 'other.db'}"
    shutil.copy(store, tmp_path / "other.db")
    client = MlflowClient(uri)
    first = client.get_run(load_bundle(trained.bundle).manifest.provenance.mlflow_run_id)
    client.delete_run(first.info.run_id)
    assert main(["bundle", "register", str(trained.bundle), f"tracking.uri={uri}", "tracking.experiment=again"]) == 0
    (again,) = client.search_runs([client.get_experiment_by_name("again").experiment_id])
    figures = {name: value for name, value in first.data.metrics.items() if re.match("(patient_)?test_", name)}
    assert again.data.metrics == pytest.approx(figures)
    assert again.data.params == first.data.params


def test_only_settings_of_tracking_can_be_given_to_register(
    bundle: object, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bundle", "register", str(tmp_path / "bundle"), "train.seed=3"]) == 2
    assert "train.seed=3: only settings of tracking can be given here" in capsys.readouterr().err


def test_a_bundle_that_cannot_be_registered_is_said_in_mlflows_words(
    bundle: object, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mlflow.db").write_text("no database at all" * 100)
    assert main(["bundle", "register", str(tmp_path / "bundle"), f"tracking.uri=sqlite:///{tmp_path / 'mlflow.db'}"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("octray: MLflow could not register the bundle: (sqlite3.DatabaseError) file is not a database.")
    assert len(said.splitlines()) == 1


def test_a_killed_run_that_is_begun_again_ends_as_killed(store: Path, tmp_path: Path) -> None:
    place, client = TrackingSection(uri=f"sqlite:///{store}"), MlflowClient(f"sqlite:///{store}")

    def begin(resume: bool) -> Tracker:
        return begun(place, tmp_path / "bundle", open_workspace(tmp_path / "bundle", "facts", resume).run_key)

    def kill(tracker: Tracker) -> None:
        assert tracker._log is not None
        tracker._log.unlock()  # as the end of the process does

    killed = begin(resume=False)
    kill(killed)
    resumed = begin(resume=True)
    assert resumed.run_id == killed.run_id
    assert client.get_run(killed.run_id).info.status == "RUNNING"
    kill(resumed)
    open_workspace(tmp_path / "bundle", "facts", resume=False)  # killed before it could open MLflow
    again = begin(resume=False)
    again.finish()
    assert [client.get_run(one.run_id).info.status for one in (killed, again)] == ["KILLED", "FINISHED"]
    assert not outbox_of(tmp_path / "bundle").exists()


def test_a_run_that_another_process_writes_is_left_alone(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking, "_LAST_BREATH", 0.2)
    place = TrackingSection(uri=f"sqlite:///{store}")
    first = begun(place, tmp_path / "bundle")
    with pytest.raises(InputError, match=r"^Another octray writes to bundle\."):
        begun(place, tmp_path / "bundle")
    assert [(one.name, one.run_id) for one in sync_runs(tmp_path / "bundle")] == [("tiny", "")]
    first.finish()


def test_an_interrupt_while_a_run_begins_ends_it(tmp_path: Path, interruptible: None) -> None:
    with silent() as (uri, taken):
        threading.Thread(target=interrupt_after, args=(taken,)).start()
        with pytest.raises(KeyboardInterrupt):
            begun(TrackingSection(uri=uri, seconds=2), tmp_path / "bundle")
    (log,) = logs_in(outbox_of(tmp_path / "bundle"))
    assert log.status == "KILLED"


def interrupt_after(taken: list[socket.socket]) -> None:
    """Press Ctrl+C as soon as the server is asked for something."""
    while not taken:
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGINT)


def test_a_resumed_run_has_every_step_once(store: Path, tmp_path: Path) -> None:
    place, out = TrackingSection(uri=f"sqlite:///{store}"), tmp_path / "bundle"
    killed = begun(place, out, measured=True)
    killed.log_metrics({"head_tune_loss": 0.7})
    killed.log_metrics({"tune_loss": 0.5, "train_loss": 0.6}, 1)
    killed.finish("KILLED")
    for _ in range(2):  # the second is killed before its first epoch
        resumed = begun(place, out, measured=True)
        resumed.log_metrics({"head_tune_loss": 0.7})
        resumed.log_metrics({"tune_loss": 0.5, "train_loss": 0.6}, 1)
        resumed.finish("KILLED")
    resumed = begun(place, out, measured=True)
    resumed.log_metrics({"tune_loss": 0.5, "train_loss": 0.6}, 1)
    resumed.log_metrics({"tune_loss": 0.4, "train_loss": 0.5}, 2)
    resumed.finish()
    client = MlflowClient(place.uri)
    assert steps(client, resumed.run_id, "tune_loss") == [(1, 0.5), (2, 0.4)]
    assert steps(client, resumed.run_id, "head_tune_loss") == [(0, 0.7)]
    measured = steps(client, resumed.run_id, "system/cpu_utilization_percentage")
    assert [step for step, _ in measured] == [0, 1, 2, 3], "one at the end of each of the four starts"
    assert client.get_run(resumed.run_id).info.status == "FINISHED"
    assert not outbox_of(out).exists()


def steps(client: MlflowClient, run_id: str, name: str) -> list[tuple[int, float]]:
    return sorted((metric.step, metric.value) for metric in client.get_metric_history(run_id, name))


# A server that drips, and what is recorded later


@contextmanager
def dripping() -> Iterator[str]:
    """A server whose answer comes byte by byte and never ends, so that no time-out of a single read is met."""
    over = threading.Event()

    def answer(connection: socket.socket) -> None:
        with connection, suppress(OSError):
            connection.recv(65536)
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 1000000\r\n\r\n")
            while not over.wait(0.1):
                connection.sendall(b" ")

    def accept() -> None:
        with suppress(OSError):
            while True:
                threads.append(threading.Thread(target=answer, args=(server.accept()[0],)))
                threads[-1].start()

    with socket.create_server(("127.0.0.1", 0)) as server:
        threads = [threading.Thread(target=accept)]
        threads[0].start()
        try:
            yield f"http://127.0.0.1:{server.getsockname()[1]}"
        finally:
            over.set()
            server.shutdown(socket.SHUT_RDWR)
            for thread in threads:
                thread.join()


def test_a_dripping_server_is_given_up_and_the_run_recorded_later(
    store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle, uri, began = make_bundle(tmp_path / "bundle"), f"sqlite:///{store}", time.monotonic()
    with dripping() as url:
        tracker = begun(TrackingSection(uri=url, experiment="dripped", seconds=1), bundle.path)
        child = tracker.child("network-1", "tiny-network-1", {"train.seed": "1"})
        for step in range(3):
            child.log_metrics({"tune_loss": 1 - step / 10}, step)
        child.finish()
        tracker.log_metrics({"test_auroc": 0.9})
        tracker.log_bundle(bundle.path, "octray-dripped")
        tracker.finish()
    assert tracker.run_id == ""
    assert time.monotonic() - began < 300, "an answer that never ends was waited for"
    said = capsys.readouterr().err
    assert said_once(said)
    assert "it is slower than the 1 seconds that it may cost a run" in said
    assert "`octray sync bundle` records it later" in said

    class Killed(BaseException):
        pass

    really = RunLog.mark
    for allowed in [0, 1, 2] * 4:
        left = iter(range(allowed))

        def mark(log: RunLog, run_id: str, sent: int, left: Iterator[int] = left) -> None:
            if next(left, None) is None:
                raise Killed  # MLflow has the line, and the process ends before it could note that
            really(log, run_id, sent)

        with monkeypatch.context() as patch, suppress(Killed):
            patch.setattr(RunLog, "mark", mark)
            sync_runs(bundle.path, uri)
    assert main(["sync", str(bundle.path), "--store", uri]) == 0
    assert main(["sync", str(bundle.path), "--store", uri]) == 0
    assert capsys.readouterr().out.endswith("Nothing is left to record.\n")
    client = MlflowClient(uri)
    found = client.search_runs([client.get_experiment_by_name("dripped").experiment_id])
    (run,) = [one for one in found if "mlflow.parentRunId" not in one.data.tags]
    (part,) = [one for one in found if one is not run]
    assert part.data.tags["mlflow.parentRunId"] == run.info.run_id
    assert steps(client, part.info.run_id, "tune_loss") == [(0, 1.0), (1, 0.9), (2, 0.8)]
    assert steps(client, run.info.run_id, "test_auroc") == [(0, 0.9)]
    assert (run.data.params, part.data.params) == ({"train.seed": "0"}, {"train.seed": "1"})
    assert {one.info.status for one in found} == {"FINISHED"}
    assert run.data.tags["octray.bundle_id"] == bundle.manifest.bundle_id
    assert [one.dataset.name for one in run.inputs.dataset_inputs] == ["index"]
    (version,) = client.search_model_versions("name = 'octray-dripped'")
    assert version.run_id == run.info.run_id
    assert load_bundle(Path(url2pathname(urlparse(version.source).path))).manifest == bundle.manifest


def test_a_bundle_that_is_gone_is_said_by_sync(store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
    bundle = make_bundle(tmp_path / "bundle")
    tracker = begun(TrackingSection(uri=url, experiment="gone"), bundle.path)
    tracker.log_bundle(bundle.path, "octray-gone")
    tracker.finish()
    shutil.rmtree(bundle.path)
    assert main(["sync", str(bundle.path)]) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("octray: MLflow could not record the run tiny: ")
    assert main(["sync", str(bundle.path), "--store", f"sqlite:///{store}"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("tiny: recorded as run ")
    assert f"The bundle {bundle.manifest.bundle_id} of the run tiny is no longer there and was not recorded." in said


def test_sync_of_what_is_not_there_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sync", str(tmp_path / "nothing")]) == 2
    assert capsys.readouterr().err.startswith("octray: There is no nothing. Give what was given to `octray train`")


def test_sync_of_a_folder_that_is_no_run_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "studies").mkdir()
    assert main(["sync", str(tmp_path / "studies")]) == 2
    assert capsys.readouterr().err.startswith("octray: Nothing was trained to studies, so there is nothing to record. Give")


def test_the_cure_that_mlflow_names_is_passed_on(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with closing(sqlite3.connect(store)) as database, database:
        database.execute("UPDATE alembic_version SET version_num = '728d730b5ebd'")
    use(f"sqlite:///{store}", store.parent)
    said = capsys.readouterr().err
    assert said_once(said)
    assert "mlflow db upgrade" in said


def test_passwords_are_neither_shown_nor_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    use(f"http://anna:secret@127.0.0.1:{port}", tmp_path)
    said = capsys.readouterr().err
    assert said_once(said)
    assert "secret" not in said
    assert str(port) in said
    (log,) = logs_in(outbox_of(tmp_path / "bundle"))
    assert log.head["uri"] == f"http://127.0.0.1:{port}"


# Names that MLflow does not take


def is_taken(check: object, *names: str) -> bool:
    try:
        for name in names:
            check(name)  # type: ignore[operator]
    except MlflowException:
        return False
    return True


NAMES = [
    "",
    " ",
    "a",
    "a b",
    "a/b",
    "a:b",
    ".",
    "..",
    "a.b",
    "../a",
    "/",
    "latest",
    "LATEST",
    "v1",
    "V22",
    "v1a",
    "v",
    "ä-b_c",
    "a\n",
]


@pytest.mark.parametrize("name", [*NAMES, "x" * 255, "x" * 600])
def test_the_names_that_mlflow_does_not_take_are_those_that_octray_refuses(name: str) -> None:
    def refuses(key: str) -> bool:
        try:
            TrackingSection(**{key: name})
        except ValueError:
            return True
        return False

    alias = is_taken(validation._validate_model_alias_name, name) and is_taken(
        validation._validate_model_alias_name_reserved, name
    )
    assert refuses("alias") != (alias and "\n" not in name)
    if name and len(name) <= 250:
        assert refuses("model_name") != is_taken(validation._validate_model_name, name)
    if name.strip():
        assert refuses("experiment") != is_taken(validation._validate_experiment_name, name)
    assert refuses("experiment") or name.strip()


def test_config_check_refuses_bad_names_all_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        load_config("xray", ["tracking.alias=v3", "tracking.model_name=chest/xray", "tracking.experiment=''"])
    assert [fault.split(":")[0] for fault in caught.value.faults] == [
        "tracking.experiment",
        "tracking.model_name",
        "tracking.alias",
    ]


@pytest.mark.parametrize("name", ["../../up", "/etc/octray", "a/b", "..", "x" * 400])
def test_the_name_of_an_experiment_is_no_path(store: Path, trained: Trained, name: str) -> None:
    tracker = begun(TrackingSection(uri=f"sqlite:///{store}", experiment=name), store.parent / "bundle")
    place = urlparse(MlflowClient(f"sqlite:///{store}").get_run(tracker.run_id).info.artifact_uri).path
    assert Path(url2pathname(place)) == store.parent.resolve() / "artifacts" / tracker.run_id / "artifacts"


# A server


@pytest.fixture(scope="module")
def server(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("server")
    shutil.copy(trained.store, folder / "mlflow.db")
    with mlflow_server(folder / "mlflow.db", folder / "artifacts") as url:
        yield url


@pytest.fixture
def proxy(server: str) -> Iterator[Proxy]:
    with proxy_of(server) as made:
        yield made


@pytest.mark.slow
def test_a_server_that_is_away_for_a_while_loses_nothing(
    proxy: Proxy, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = make_bundle(tmp_path / "bundle")
    tracker = begun(TrackingSection(uri=proxy.url, experiment="away"), bundle.path)
    for epoch in range(8):
        proxy.is_down = 2 <= epoch < 5
        if epoch == 3:
            time.sleep(3)  # figures are sent two seconds after the last ones
        tracker.log_metrics({"tune_loss": epoch}, epoch)
    tracker.log_bundle(bundle.path, "octray-away")
    tracker.finish()
    client = MlflowClient(proxy.url)
    history = client.get_metric_history(tracker.run_id, "tune_loss")
    assert [(metric.step, metric.value) for metric in sorted(history, key=lambda metric: metric.step)] == [
        (epoch, epoch) for epoch in range(8)
    ]
    assert client.get_model_version_by_alias("octray-away", "candidate").run_id == tracker.run_id
    assert client.get_run(tracker.run_id).info.status == "FINISHED"
    assert said_once(capsys.readouterr().err)


@pytest.mark.slow
def test_an_upload_through_a_slow_proxy_has_the_time_that_the_user_gives_it(
    proxy: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = make_bundle(tmp_path / "bundle")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "60")
    tracker = begun(TrackingSection(uri=proxy.url, experiment="slow", seconds=600), bundle.path)
    proxy.upload_seconds = 5.0
    tracker.log_bundle(bundle.path, "octray-slow")
    tracker.finish()
    assert capsys.readouterr() == ("", "")
    assert MlflowClient(proxy.url).get_run(tracker.run_id).info.status == "FINISHED"
    assert proxy.uploads > len(bundle.manifest.files)
    (version,) = MlflowClient(proxy.url).search_model_versions("name = 'octray-slow'")
    assert version.run_id == tracker.run_id


@pytest.mark.slow
def test_a_bundle_is_registered_on_a_server_once(proxy: Proxy, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_bundle(tmp_path / "bundle")
    words = ["bundle", "register", str(tmp_path / "bundle"), f"tracking.uri={proxy.url}", "tracking.model_name=it's served"]
    proxy.is_down = True
    assert main(words) == 2
    assert "503" in capsys.readouterr().err
    proxy.is_down = False
    for _ in range(2):
        assert main(words) == 0
        assert capsys.readouterr().out == "registered as version 1 of it's served, alias candidate\n"


@pytest.mark.parametrize("given", [None, "77"])
def test_only_what_the_user_did_not_set_is_set(given: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_HTTP_REQUEST_TIMEOUT", raising=False)
    standard = MLFLOW_HTTP_REQUEST_TIMEOUT.get()
    if given:
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", given)
    with client_settings():
        assert MLFLOW_HTTP_REQUEST_TIMEOUT.get() == (int(given) if given else 10)
    with client_settings(is_upload=True):
        assert MLFLOW_HTTP_REQUEST_TIMEOUT.get() == (int(given) if given else standard)
