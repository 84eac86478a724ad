"""Training on a Ray cluster of two nodes: the bytes of `torchrun` whatever is killed, and one sentence if it cannot be."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

import pytest

from pipeline.cli.main import main
from pipeline.errors import InputError
from pipeline.model.bundle import METRICS, WEIGHTS, load_bundle
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
