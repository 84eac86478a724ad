"""Scoring on a Ray cluster of two nodes: the same bytes as here, whatever is killed, and one sentence where it cannot be."""

import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest

from pipeline.cli.main import main
from pipeline.model.bundle import Bundle
from tests.builders import make_bundle, make_dicom
from tests.server_ray import RayCluster, another_node, end_node, running_ray
from tests.test_cli_score import contents, rows

COUNT = 200
SECONDS = 300


@pytest.fixture(scope="module")
def cluster() -> Iterator[RayCluster]:
    pytest.importorskip("ray", reason="Ray is not here: pip install 'octray[cluster]'")
    with running_ray(2) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_bundle(tmp_path_factory.mktemp("made") / "bundle")


@pytest.fixture(scope="module")
def studies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("studies")
    for number in range(COUNT):
        pixels = np.random.default_rng(number).integers(0, 4000, (40, 50), np.uint16)
        uids = {"StudyInstanceUID": f"1.2.{number}", "SOPInstanceUID": f"1.2.{number}.1"}
        (root / f"{number:03}.dcm").write_bytes(make_dicom(pixels, **uids))
    (root / "text.dcm").write_text("not DICOM")
    return root


@pytest.fixture(scope="module")
def here(studies: Path, bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, bytes]:
    """What a run on this machine writes."""
    out = tmp_path_factory.mktemp("here")
    assert main(arguments(studies, bundle, out)) == 1
    return contents(out)


def arguments(studies: Path, bundle: Bundle, out: Path, *more: str) -> list[str]:
    return ["score", str(studies), "--bundle", str(bundle.path), "--out", str(out), *more]


PLAIN = "import sys; from pipeline.cli.main import main; sys.exit(main(sys.argv[1:]))"


def start(cluster: RayCluster, given: list[str], program: str = PLAIN) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", program, *given, "--engine", "ray", "--address", cluster.address]
    environment = os.environ | cluster.environment
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def refusal(cluster: RayCluster, given: list[str], program: str = PLAIN) -> str:
    """Return the one line on standard error of a run that ends with exit code 2."""
    with start(cluster, given, program) as process:
        _, error = process.communicate()
    assert process.returncode == 2, error
    (line,) = [line for line in error.splitlines() if line.startswith("octray: ")]
    assert "Traceback" not in error
    assert str(Path(given[1]).parent) not in error
    return line.removeprefix("octray: ")


def titles(cluster: RayCluster) -> dict[int, bytes]:
    """Return the titles of the processes of a cluster."""
    found, token = {}, cluster.environment["RAY_AUTH_TOKEN"].encode()
    for place in Path("/proc").iterdir():
        with suppress(OSError):
            if place.name.isdecimal() and token in (place / "environ").read_bytes():
                found[int(place.name)] = (place / "cmdline").read_bytes()
    return found


@contextmanager
def stopped_amid_work(cluster: RayCluster, count: int) -> Iterator[list[int]]:
    """Stop so many actors, each while it has studies of which nothing was given back."""
    held: list[int] = []
    deadline = time.monotonic() + SECONDS
    try:
        while len(held) < count:
            assert time.monotonic() < deadline
            for number in titles(cluster).keys() - set(held):
                if is_scoring(number):
                    os.kill(number, signal.SIGSTOP)
                    held.append(number)
                    if not is_scoring(number):
                        os.kill(held.pop(), signal.SIGCONT)
        yield held
    finally:
        for number in held:
            with suppress(ProcessLookupError):
                os.kill(number, signal.SIGCONT)


def is_scoring(number: int) -> bool:
    try:
        return Path(f"/proc/{number}/cmdline").read_bytes().startswith(b"ray::Actor.score")
    except OSError:
        return False


def kill(numbers: list[int]) -> None:
    """Kill actors at once, and wait until they are gone."""
    for number in numbers:
        os.kill(number, signal.SIGKILL)
    while any(map(is_scoring, numbers)):
        time.sleep(0.01)


def most_attempts(out: Path) -> int:
    """Return how often a study is held to have killed its actor."""
    with closing(sqlite3.connect(out / ".octray" / "ledger.sqlite")) as ledger:
        (most,) = ledger.execute("SELECT max(attempts) FROM octray_units").fetchone()
    return int(most)


@pytest.mark.slow
def test_killed_actors_lose_nothing_and_double_nothing(
    cluster: RayCluster, studies: Path, bundle: Bundle, here: Mapping[str, bytes], tmp_path: Path
) -> None:
    with start(cluster, arguments(studies, bundle, tmp_path, "--json")) as process:
        with stopped_amid_work(cluster, 2) as scoring:
            assert not (tmp_path / "predictions.csv").exists()
            kill(scoring)
        out, error = process.communicate()
    assert process.returncode == 1, error
    assert len(out.splitlines()) == COUNT + 1
    assert contents(tmp_path) == here
    assert most_attempts(tmp_path) == 0


@pytest.mark.slow
def test_a_node_that_dies_loses_nothing(
    cluster: RayCluster, studies: Path, bundle: Bundle, here: Mapping[str, bytes], tmp_path: Path
) -> None:
    with another_node(cluster, 3) as node, start(cluster, arguments(studies, bundle, tmp_path)) as process:
        with stopped_amid_work(cluster, 3):
            end_node(node)
        _, error = process.communicate()
    assert process.returncode == 1, error
    assert contents(tmp_path) == here
    assert most_attempts(tmp_path) == 0


@pytest.mark.slow
def test_a_study_that_ends_its_actor_again_and_again_is_given_up(cluster: RayCluster, bundle: Bundle, tmp_path: Path) -> None:
    studies, out = tmp_path / "studies", tmp_path / "results"
    studies.mkdir()
    (studies / "one.dcm").write_bytes(make_dicom())
    with start(cluster, arguments(studies, bundle, out)) as process:
        for _ in range(3):
            with stopped_amid_work(cluster, 1) as scoring:
                kill(scoring)
        _, error = process.communicate()
    assert process.returncode == 2, error
    (failure,) = rows(out / "failures.csv")
    assert failure["reason"] == "decoder_crash"
    assert failure["message"].startswith("Reading or scoring the study ended its process 3 times.")


@pytest.mark.slow
def test_an_interrupt_leaves_tables_and_the_next_run_goes_on(
    cluster: RayCluster, studies: Path, bundle: Bundle, here: Mapping[str, bytes], tmp_path: Path
) -> None:
    with start(cluster, arguments(studies, bundle, tmp_path)) as process, stopped_amid_work(cluster, 2):
        process.send_signal(signal.SIGTERM)
        _, error = process.communicate()
    assert process.returncode == 130, error
    assert len(rows(tmp_path / "predictions.csv")) < 2 * COUNT
    assert (tmp_path / "report.html").is_file()
    with start(cluster, arguments(studies, bundle, tmp_path)) as process:
        process.communicate()
    assert process.returncode == 1
    assert contents(tmp_path) == here


OCCUPY = """
import sys, ray
ray.init(sys.argv[1], log_to_driver=False, configure_logging=False)
class Other:
    def ready(self): pass
others = [ray.remote(num_cpus=1)(Other).remote() for _ in range(int(sys.argv[2]))]
ray.get([other.ready.remote() for other in others])
print("occupied", flush=True)
sys.stdin.read()
"""
IMPATIENT = f"import pipeline.job.cluster as crew; crew._START_SECONDS = 5.0; {PLAIN}"


@contextmanager
def occupied(cluster: RayCluster, cpus: int) -> Iterator[None]:
    """Let another job have some of the CPUs."""
    command = [sys.executable, "-c", OCCUPY, cluster.address, str(cpus)]
    environment = os.environ | cluster.environment
    with subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "occupied\n"
        yield
        process.communicate("")


@pytest.mark.slow
def test_actors_without_a_cpu_get_no_studies(
    cluster: RayCluster, studies: Path, bundle: Bundle, here: Mapping[str, bytes], tmp_path: Path
) -> None:
    with occupied(cluster, 1), start(cluster, arguments(studies, bundle, tmp_path)) as process:
        process.communicate(timeout=SECONDS)
    assert process.returncode == 1
    assert contents(tmp_path) == here


@pytest.mark.slow
def test_a_cluster_without_a_free_cpu_is_told(cluster: RayCluster, studies: Path, bundle: Bundle, tmp_path: Path) -> None:
    with occupied(cluster, 2):
        told = refusal(cluster, arguments(studies, bundle, tmp_path), IMPATIENT)
    assert told.startswith("The Ray cluster does not start a process of octray. Check that it has a free CPU")


ELSEWHERE = f"""
import dataclasses, operator, os
from pathlib import Path
import pipeline.job.cluster as cluster
class Fatal:
    def __init__(self, function, *given): self.call = function, given
    def __reduce__(self): return self.call
here, elsewhere = cluster.Cluster.__init__, Path(os.environ["ELSEWHERE"])
def init(self, address, place): here(self, address, dataclasses.replace(place, CHANGES))
cluster.Cluster.__init__ = init
{PLAIN}
"""
"""Scores as if the actors saw other folders, or had another octray."""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ("bundle=elsewhere / 'absent'", "A machine of the Ray cluster does not see the folder absent, or sees it empty. Share"),
        ("bundle=elsewhere / 'bundle'", "A machine of the Ray cluster has another bundle as bundle. Copy the one there that"),
        ("base=elsewhere / 'empty'", "A machine of the Ray cluster does not see the folder empty, or sees it empty. Share"),
        ("folder=elsewhere / 'empty'", "A machine of the Ray cluster does not see the folder empty, or sees it empty. Share"),
        ("code=place.code | {'octray': ''}", "A machine of the Ray cluster has another version of octray. Install the same"),
        (
            "heatmaps=Fatal(operator.truediv, 1, 0)",
            "octray cannot be started on a machine of the Ray cluster. Install octray[clus",
        ),
        ("heatmaps=Fatal(os.abort)", "The processes of octray end on the Ray cluster before they are ready. Check that its"),
        ("folder=elsewhere / 'full'", "traces: File exists. Check the place, its permissions and its free space."),
    ],
)
def test_what_the_machines_of_the_cluster_lack_is_told(
    cluster: RayCluster,
    studies: Path,
    bundle: Bundle,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    changes: str,
    message: str,
) -> None:
    monkeypatch.setenv("ELSEWHERE", str(tmp_path))
    make_bundle(tmp_path / "bundle", labels=("NORMAL", "ANOTHER"))
    (tmp_path / "empty").mkdir()
    (tmp_path / "full" / ".octray").mkdir(parents=True)
    (tmp_path / "full" / ".octray" / "lock").touch()
    (tmp_path / "full" / "traces").write_text("no folder")
    out = tmp_path / "results"
    assert message in refusal(cluster, arguments(studies, bundle, out), ELSEWHERE.replace("CHANGES", changes))
    assert {row["reason"] for row in rows(out / "failures.csv")} <= {"no_worker"}
    assert most_attempts(out) == 0


@pytest.mark.slow
def test_a_cluster_that_asks_for_no_token_is_refused(studies: Path, bundle: Bundle, tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="Ray is not here: pip install 'octray[cluster]'")
    with running_ray(1, guarded=False) as cluster:
        guarded = RayCluster(cluster.address, dict(cluster.environment) | {"RAY_AUTH_MODE": "token"})
        assert "The Ray cluster must ask for a token" in refusal(guarded, arguments(studies, bundle, tmp_path))


def test_without_a_token_no_cluster_is_asked(
    studies: Path, bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ray", reason="Ray is not here: pip install 'octray[cluster]'")
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    assert main(arguments(studies, bundle, tmp_path / "results", "--engine", "ray", "--address", "127.0.0.1:1")) == 2
    assert "The Ray cluster must ask for a token" in capsys.readouterr().err


def test_without_ray_it_is_said_how_to_get_it(
    studies: Path, bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "pipeline.job.cluster", raising=False)
    monkeypatch.setitem(sys.modules, "ray", None)  # as if it were not installed
    assert main(arguments(studies, bundle, tmp_path / "results", "--engine", "ray")) == 2
    assert "pip install 'octray[cluster]'" in capsys.readouterr().err
