"""How many cores are used: the share of the process in every form in which it can be limited, and what the user says."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import pipeline.workers.cores
from pipeline.cli.main import main
from pipeline.errors import InputError
from pipeline.imaging.file_workers import file_workers
from pipeline.workers.cores import CORES, usable_cores


@pytest.fixture(autouse=True)
def eight(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A process that may run on eight cores, of no control group that has a limit; returns where the groups lie."""
    monkeypatch.delenv(CORES, raising=False)
    monkeypatch.setattr("os.sched_getaffinity", lambda process: set(range(8)))
    monkeypatch.setattr(pipeline.workers.cores, "_GROUPS", tmp_path)
    monkeypatch.setattr(pipeline.workers.cores, "_OWN_GROUPS", tmp_path / "own")
    return tmp_path


def limit(groups: Path, own: str, **files: str) -> None:
    """Write files of control groups, `group__file` under its name with dots, and to which of them the process belongs."""
    (groups / "own").write_text(own)
    for name, content in files.items():
        path = groups.joinpath(*name.split("__"))
        path = path.with_name(path.name.replace("cpu_max", "cpu.max").replace("cpu_cfs", "cpu.cfs"))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content + "\n")


@pytest.mark.parametrize(
    ("share", "cores"),
    [("200000 100000", 2), ("150000 100000", 2), ("50000 100000", 1), ("max 100000", 8), ("", 8), ("0 0", 8)],
)
def test_no_more_cores_are_used_than_the_control_group_allows(share: str, cores: int, eight: Path) -> None:
    limit(eight, "0::/\n", cpu_max=share)
    assert usable_cores() == cores


def test_a_group_around_the_own_one_counts_too(eight: Path) -> None:
    limit(eight, "0::/jobs/one\n", jobs__cpu_max="300000 100000", jobs__one__cpu_max="max 100000")
    assert usable_cores() == 3


def test_groups_of_version_1_count(eight: Path) -> None:
    own = "4:memory:/\n2:cpuset:/job\n1:cpu,cpuacct:/job\n0::/\n"
    limit(eight, own, **{"cpu,cpuacct__job__cpu_cfs_quota_us": "400000", "cpu,cpuacct__job__cpu_cfs_period_us": "100000"})
    assert usable_cores() == 4
    limit(eight, own, **{"cpu,cpuacct__job__cpu_cfs_quota_us": "-1"})
    assert usable_cores() == 8


def test_in_a_container_the_own_group_may_be_the_root(eight: Path) -> None:
    limit(eight, "0::/system.slice/docker-0123.scope\n", cpu_max="200000 100000")
    assert usable_cores() == 2
    limit(eight, "1:cpu:/docker/0123\n", cpu__cpu_cfs_quota_us="100000", cpu__cpu_cfs_period_us="100000", cpu_max="max 100000")
    assert usable_cores() == 1


def test_without_control_groups_the_affinity_counts() -> None:
    assert usable_cores() == 8


def test_the_user_has_the_last_word(eight: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limit(eight, "0::/\n", cpu_max="200000 100000")
    monkeypatch.setenv(CORES, "6")
    assert usable_cores() == 6
    for wrong in ("0", "-1", "two", "1.5"):
        monkeypatch.setenv(CORES, wrong)
        with pytest.raises(InputError, match="OCTRAY_CORES must be a whole number, 1 or more. Got"):
            usable_cores()


def test_one_option_holds_for_a_command_and_what_it_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen = []

    def look(args: object) -> int:
        seen.append((usable_cores(), os.environ[CORES]))
        return 0

    monkeypatch.setattr("pipeline.cli.evaluate.run", look)
    words = ["evaluate", "bundle", "--index", "index", "--cores"]
    assert main([*words, "5"]) == 0
    monkeypatch.setenv(CORES, "3")
    assert main([*words, "4"]) == 0
    assert (seen, os.environ[CORES]) == ([(5, "5"), (4, "4")], "3")
    with pytest.raises(SystemExit):
        main([*words, "0"])
    assert "must be a whole number, 1 or more. Got '0' instead" in capsys.readouterr().err


def test_a_process_that_is_held_to_one_core_uses_one() -> None:
    """A process of its own, without anything replaced."""
    hold = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})"
    code = f"{hold}; from pipeline.workers.cores import usable_cores; print(usable_cores())"
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[1]
    )
    assert ended.stdout == "1\n"


def test_files_are_read_by_one_process_for_each_core(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CORES, "3")
    with file_workers() as all_cores, file_workers(1) as one:
        assert (all_cores.workers, one.workers) == (3, 1)
