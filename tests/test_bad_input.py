"""Bad input, read in worker processes as every command reads it: it ends as frames or with a reason, in time and in bounds."""

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import Reason, UnreadableError
from pipeline.imaging.file_workers import file_workers
from pipeline.ingest.index import load_index
from pipeline.settings import WorkerLimits
from pipeline.workers.pool import WorkerPool
from tests.builders import make_dicom
from tests.fuzz.bombs import BOMBS, SMALL, before_pixels, deflated, endless_items
from tests.fuzz.mutations import Mutant, mutants
from tests.fuzz.verdict import Verdict, judge

MOST_BYTES = WorkerLimits().worker_bytes
SLOW = (
    "many scans",
    "GiB",
    "MiB",
    "within the limit",
    "million pages",
    "million strips",
    "million entries",
    "million fragments",
    "8192 that holds 64",
)
REASONS = {reason.value for reason in Reason} | {""}


@pytest.fixture(scope="module")
def pool() -> Iterator[WorkerPool]:
    with file_workers() as made:
        yield made


def judged(pool: WorkerPool, items: Iterable[Path | Mutant]) -> Counter[str]:
    """Count the reasons; what the pool has to save (a crash, a hang, too much memory) and what is at fault fails."""
    items = list(items)
    reasons: Counter[str] = Counter()
    faults = []
    for item, results in pool.map(judge, zip(items, items, strict=True)):
        try:
            (verdict,) = results
        except UnreadableError as error:
            faults.append((item, str(error)))
            continue
        reasons[verdict.reason] += 1
        if verdict.faults or verdict.peak_bytes >= MOST_BYTES:
            faults.append((item, str(verdict)))
    assert faults == []
    return reasons


def test_malformed_files_end_as_frames_or_with_a_reason(pool: WorkerPool, shared_data: Path) -> None:
    files = [path for path in sorted((shared_data / "dicom-malformed").rglob("*")) if path.is_file()]
    reasons = judged(pool, files)
    assert reasons.total() >= 40
    assert reasons.keys() <= REASONS


def samples(shared_data: Path) -> list[Path]:
    return sorted((shared_data / "dicom-samples" / "files").iterdir())


def test_some_copies_of_real_files_with_faults_end_as_frames_or_with_a_reason(pool: WorkerPool, shared_data: Path) -> None:
    reasons = judged(pool, mutants(samples(shared_data)[::3], flips=1, swaps=2))
    assert reasons.total() >= 49 * 13
    assert len(reasons) >= 6


@pytest.mark.slow
def test_copies_of_real_files_with_faults_end_as_frames_or_with_a_reason(pool: WorkerPool, shared_data: Path) -> None:
    reasons = judged(pool, mutants(samples(shared_data), flips=6, swaps=6))  # each strength of flip, and of swap, once or more
    assert reasons.total() >= 147 * 27
    assert len(reasons) >= 7


def test_one_seed_makes_one_copy(tmp_path: Path) -> None:
    (tmp_path / "a.dcm").write_bytes(make_dicom())
    made = list(mutants([tmp_path / "a.dcm"], flips=3, swaps=3))
    contents = [mutant.content() for mutant in made]
    assert contents == [mutant.content() for mutant in made]
    assert len(set(contents)) == len(contents) == 18
    assert make_dicom() not in contents


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if any(one in name for one in SLOW) else name for name in BOMBS]
)
def test_small_files_that_ask_for_much_get_little(pool: WorkerPool, name: str) -> None:
    (verdict,) = pool.run(judge, BOMBS[name]())
    assert isinstance(verdict, Verdict)
    assert verdict.faults == ()
    assert verdict.reason in REASONS
    assert verdict.peak_bytes < MOST_BYTES
    if any(word in name for word in ("65500", "65535", "65536", "billion", "enormous", "many scans", "of a million pages")):
        assert verdict.reason != ""


def test_items_without_end_are_ended_by_the_pool() -> None:
    """pydicom looks for the end of each of them up to the end of the file, whose time grows with the square of its size."""
    with file_workers(1, WorkerLimits(frame_seconds=1.0)) as single:
        with pytest.raises(UnreadableError, match="took more than 1 seconds of processor time") as caught:
            list(single.run(judge, endless_items(100_000)))
        assert caught.value.reason is Reason.TIME_LIMIT
        (verdict,) = single.run(judge, make_dicom())
    assert (verdict.frames, verdict.reason) == (1, "")


@pytest.fixture(scope="module")
def bad_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight good files of two labels among bombs, and among copies of one more with faults."""
    folder, other = tmp_path_factory.mktemp("bad"), tmp_path_factory.mktemp("other") / "whole.dcm"
    other.write_bytes(make_dicom(SMALL.T))
    for number in range(8):
        path = folder / f"label{number % 2}" / f"good{number}.dcm"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(make_dicom(SMALL + number, PatientID=f"P{number}"))
    for number, mutant in enumerate(mutants([other], flips=8, swaps=8)):
        (folder / "label0" / f"mutant{number:02d}.dcm").write_bytes(mutant.content())
    for number, name in enumerate(name for name in BOMBS if not any(one in name for one in SLOW)):
        (folder / "label1" / f"bomb{number:02d}").write_bytes(BOMBS[name]())
    return folder


def octray(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run the command as a process of its own."""
    command = [sys.executable, "-m", "pipeline.cli.main", *map(str, arguments)]
    environment = os.environ | {"NO_COLOR": "1", "COLUMNS": "200"}
    root = Path(__file__).parents[1]
    return subprocess.run(command, capture_output=True, text=True, timeout=180, cwd=root, env=environment, check=False)


def test_inspect_says_something_of_every_bad_file_and_goes_on(bad_folder: Path) -> None:
    ended = octray("inspect", bad_folder, "--json")
    lines = [json.loads(line) for line in ended.stdout.splitlines()]
    assert ended.returncode == 1, ended.stderr
    assert ended.stderr == ""
    assert {line["source"].rpartition("/")[2] for line in lines} == {path.name for path in bad_folder.glob("*/*")}
    assert {line["reason"] for line in lines if "reason" in line} <= REASONS
    assert not any("fault of octray" in line.get("message", "") for line in lines)


def test_ingest_quarantines_bad_files_and_takes_the_good_ones(bad_folder: Path, tmp_path: Path) -> None:
    index = tmp_path / "index"
    ended = octray("ingest", bad_folder, "--label-from", "folder", "--out", index, "--split", "40/20/20/20")
    assert ended.returncode == 1, ended.stderr
    assert "Traceback" not in ended.stderr
    used = {record.source.rpartition("/")[2] for record in load_index(index).records}
    refused = {row.source.rpartition("/")[2] for row in load_index(index).quarantine}
    assert {f"good{number}.dcm" for number in range(8)} <= used
    assert used | refused == {path.name for path in bad_folder.glob("*/*")}
    assert len(refused) > 40


def test_the_limits_of_the_configuration_hold(tmp_path: Path) -> None:
    """One file beyond each limit that is just too small for it; with the defaults none of them is too large."""
    beyond = {
        "wide.dcm": make_dicom(np.zeros((64, 65), np.uint8)),
        "many.dcm": make_dicom(np.zeros((3, 64, 64), np.uint8)),
        "long.dcm": before_pixels(b"\x09\x00\x10\x10OB\0\0" + (2**16).to_bytes(4, "little") + bytes(2**16)),
        "deflated.dcm": deflated(2**20),
    }
    good = {f"{number}.dcm": make_dicom(SMALL + number, PatientID=f"P{number}") for number in range(8)}
    for number, (name, content) in enumerate((good | beyond).items()):
        path = tmp_path / "in" / f"label{number % 2}" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    limits = {"frame_pixels": 64 * 64, "file_pixels": 64 * 64 * 2, "file_bytes": 2**16, "inflated_bytes": 2**20}
    (tmp_path / "c.yaml").write_text(f"name: small\nlimits: {json.dumps(limits)}\n")
    refused = {}
    for out, config in (("within", ()), ("beyond", ("--config", tmp_path / "c.yaml"))):
        arguments = ("--label-from", "folder", "--split", "40/20/20/20", "--out", tmp_path / out, *config)
        ended = octray("ingest", tmp_path / "in", *arguments)
        assert ended.returncode in (0, 1), ended.stderr
        rows = load_index(tmp_path / out).quarantine
        refused[out] = {row.source.rpartition("/")[2] for row in rows if row.reason == Reason.RESOURCE_LIMIT}
    assert refused == {"within": set(), "beyond": set(beyond)}
