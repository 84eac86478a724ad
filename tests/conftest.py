"""Fixtures that several test modules share."""

import io
import os
import signal
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import settings

from pipeline.model.bundle import Bundle
from tests.builders import make_bundle
from tests.server_chromium import chromium  # noqa: F401 - a fixture
from tests.server_orthanc import orthanc  # noqa: F401 - a fixture
from tests.server_postgres import postgres_url  # noqa: F401 - a fixture

ROOT = Path(__file__).parents[1]

settings.register_profile("octray", deadline=None)
settings.load_profile("octray")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real studies; tests that need it are skipped where it is absent."""
    folder = Path(os.environ.get("OCTRAY_SHARED_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip("the shared data are not here: set OCTRAY_SHARED_DATA to their folder")
    return folder


@pytest.fixture
def interruptible() -> Iterator[None]:
    """SIGINT works here and in the programs that a test starts: a script that runs the tests in the background ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    """A small bundle with random weights."""
    return make_bundle(tmp_path / "bundle")


@dataclass(frozen=True)
class Trained:
    """What one small training run, by the command line, left behind; nobody may change any of it."""

    config: Path
    index: Path
    bundle: Path
    studies: Path
    store: Path
    stdout: str
    stderr: str

    @property
    def uri(self) -> str:
        return f"sqlite:///{self.store}"


TINY = """
name: tiny
data: {normal_label: NORMAL, urgency: [FRACTURE, PNEUMONIA], label_names: {FRACTURE: broken bone, PNEUMONIA: lung infection}}
preprocessing: {size: 64}
model: {architecture: test_resnet, weights: none}
train:
  threads: 1
  way: staged
  head: {weight_decays: [10.0, 3.0], epochs: 30}  # a weak head, so that fine-tuning has something to do
  finetune: {epochs: 10, groups: 2, batch_size: 4, learning_rate: 0.01, patience: 10, plateau_patience: 1}
  augment: {rotate_degrees: 5, translate: 0.05, flip_columns: true, noise: 0.01}
evaluate: {bootstrap: 100}
"""


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """Forty synthetic radiographs, ingested and learned by the tiniest network, tracked in SQLite."""
    from pipeline.cli.main import main

    root = tmp_path_factory.mktemp("trained")
    config, index, bundle, store = root / "tiny.yaml", root / "index", root / "bundle", root / "mlflow.db"
    config.write_text(TINY)
    ingest = ["ingest", str(root / "studies"), "--labels", str(root / "labels.csv"), "--out", str(index)]
    train = ["train", str(config), "--index", str(index), "--out", str(bundle), f"tracking.uri=sqlite:///{store}"]
    assert main(["phantom", str(root), "--studies", "40", "--seed", "4"]) == 0
    assert main([*ingest, "--split", "40/20/20/20"]) == 0
    with redirect_stdout(io.StringIO()) as stdout, redirect_stderr(io.StringIO()) as stderr:
        assert main(train) == 0, stderr.getvalue()
    return Trained(config, index, bundle, root / "studies", store, stdout.getvalue(), stderr.getvalue())
