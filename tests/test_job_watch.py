"""A watched folder: a study is scored once nothing of it has changed for the set time, and not before."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from pipeline.job import job as job_module
from pipeline.job.folder import ResultsFolder
from pipeline.job.job import Job, Request
from pipeline.progress import silent
from pipeline.results.record import StudyRecord
from pipeline.score.predictor import Predictor
from tests.builders import make_bundle, make_dicom
from tests.test_cli_score import rows

QUIET_SECONDS = 100.0


class Listener:
    """Notes the sources of the studies that were scored."""

    def __init__(self) -> None:
        self.scored: list[tuple[str, ...]] = []

    def planned(self, total: int, records: Iterator[StudyRecord]) -> None: ...

    def done(self, record: StudyRecord) -> None:
        self.scored.append(tuple(frame.prediction.source for frame in record.frames))


@pytest.fixture
def inbox(tmp_path: Path) -> Path:
    folder = tmp_path / "inbox"
    folder.mkdir()
    return folder


def arrive(inbox: Path, name: str, study: str) -> float:
    """Write a file of a study into the folder; return when, by the clock of the disk, which every file moves on."""
    before = max((path.stat().st_ctime for path in inbox.iterdir()), default=0.0)
    while True:
        (inbox / name).write_bytes(make_dicom(StudyInstanceUID=study, SOPInstanceUID=f"1.2.3.{ord(name[0])}"))
        if (changed := (inbox / name).stat().st_ctime) > before:
            return changed
        time.sleep(0.001)


def watch(
    inbox: Path, out: Path, bundle: Path, steps: Callable[[Listener], Iterator[float]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Watch a folder; `steps` runs between the looks at it, and gives the time of each look."""
    listener = Listener()
    looks = steps(listener)
    clock = SimpleNamespace(time=lambda: now)
    monkeypatch.setattr(job_module, "time", clock)
    now = next(looks)

    def pause(seconds: float) -> None:
        nonlocal now
        assert seconds == QUIET_SECONDS / 4
        try:
            now = next(looks)
        except StopIteration:
            raise KeyboardInterrupt from None

    loaded = make_bundle(bundle)
    with ResultsFolder(out) as folder:
        job = Job(Request(inbox, out), Predictor(loaded, threads=1), loaded, folder, listener, silent)
        with pytest.raises(KeyboardInterrupt):
            job.watch(QUIET_SECONDS, pause)


def test_a_study_that_is_not_yet_quiet_is_not_scored(inbox: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "results"

    def steps(listener: Listener) -> Iterator[float]:
        first = arrive(inbox, "a.dcm", "1.2.1")
        second = arrive(inbox, "b.dcm", "1.2.2")
        yield first + QUIET_SECONDS - 1  # neither has been quiet for long enough
        assert listener.scored == []
        assert not (out / "predictions.csv").exists()
        yield first + QUIET_SECONDS + (second - first) / 2  # one has
        assert listener.scored == [("a.dcm",)]
        assert {row["source"] for row in rows(out / "predictions.csv")} == {"a.dcm"}
        third = arrive(inbox, "c.dcm", "1.2.2")
        yield second + QUIET_SECONDS + (third - second) / 2  # the other still grows
        assert listener.scored == [("a.dcm",)]
        yield third + QUIET_SECONDS
        assert listener.scored == [("a.dcm",), ("b.dcm", "c.dcm")]
        assert {row["source"] for row in rows(out / "predictions.csv")} == {"a.dcm", "b.dcm", "c.dcm"}
        yield third + 2 * QUIET_SECONDS  # nothing is new
        assert len(listener.scored) == 2

    watch(inbox, out, tmp_path / "bundle", steps, monkeypatch)


def test_a_study_that_grows_after_it_was_scored_is_scored_again_once_it_is_quiet(
    inbox: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def steps(listener: Listener) -> Iterator[float]:
        first = arrive(inbox, "a.dcm", "1.2.1")
        yield first + QUIET_SECONDS
        assert listener.scored == [("a.dcm",)]
        second = arrive(inbox, "b.dcm", "1.2.1")
        yield second + QUIET_SECONDS - 1
        assert listener.scored == [("a.dcm",)]
        assert {row["source"] for row in rows(tmp_path / "results" / "predictions.csv")} == {"a.dcm"}
        yield second + QUIET_SECONDS
        assert listener.scored == [("a.dcm",), ("a.dcm", "b.dcm")]

    watch(inbox, tmp_path / "results", tmp_path / "bundle", steps, monkeypatch)
