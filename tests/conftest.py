"""Fixtures that several test modules share."""

import io
import os
import shutil
import signal
import tempfile
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

# What all tests share: folders in place of the user's, an order, and a look at what they leave behind

USER_FOLDERS = ("XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_STATE_HOME")
CACHES = {".git", ".hypothesis", ".import_linter_cache", ".mypy_cache", ".pytest_cache", ".ruff_cache", ".venv", "__pycache__"}
HOME, BEFORE, LEFT = pytest.StashKey[str](), pytest.StashKey[set[str]](), pytest.StashKey[list[str]]()


def files_of_the_checkout() -> set[str]:
    """Every file below the checkout but those of caches of tools, relative to it."""
    found = set()
    for folder, names, files in os.walk(ROOT):
        names[:] = [name for name in names if name not in CACHES and not name.endswith(".egg-info")]
        found |= {os.path.relpath(os.path.join(folder, file), ROOT) for file in files}  # noqa: PTH118 - a walk over many files
    return found


def pytest_configure(config: pytest.Config) -> None:
    """Give the tests, in all their processes, folders of their own in place of the user's.

    Weights that octray converts and features that it computes are kept there for the rest of the session.
    """
    if hasattr(config, "workerinput"):
        return  # the environment came from the first process
    config.stash[HOME] = tempfile.mkdtemp(prefix="octray-tests-")
    for name in USER_FOLDERS:
        os.environ[name] = str(Path(config.stash[HOME], name.lower()))
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    config.stash[BEFORE] = files_of_the_checkout()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Where several processes share the tests, start with the modules that hold slow ones, so that all end at the same time."""
    if hasattr(config, "workerinput"):
        slow = {item.path for item in items if item.get_closest_marker("slow")}
        items.sort(key=lambda item: item.path not in slow)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Let the session fail if a test wrote into the checkout."""
    if BEFORE in session.config.stash:
        left = sorted(files_of_the_checkout() - session.config.stash[BEFORE])
        session.config.stash[LEFT] = left
        if left and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Name the files that tests left in the checkout."""
    if left := config.stash.get(LEFT, []):
        terminalreporter.section("files left in the checkout", red=True)
        terminalreporter.line("These files are new since the tests began. A test must write into its own temporary folder.")
        for file in left:
            terminalreporter.line(f"  {file}")


def pytest_unconfigure(config: pytest.Config) -> None:
    """Remove the folders that stood in for the user's."""
    if HOME in config.stash:
        shutil.rmtree(config.stash[HOME], ignore_errors=True)


# Fixtures


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
