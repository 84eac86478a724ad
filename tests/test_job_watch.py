"""A watched folder: a study is scored once nothing of it has changed for the set time, and not before."""

import time
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pydicom.uid import BasicTextSRStorage

from pipeline.job import job as job_module
from pipeline.job.folder import ResultsFolder
from pipeline.job.job import Job
from pipeline.predictions import StudyRecord
from pipeline.score import study as scoring
from pipeline.score.predictor import Predictor
from tests.builders import make_bundle, make_dicom
from tests.test_cli_score import rows
from tests.worker_tasks import fail_for_now_on_name

QUIET_SECONDS = 100.0


class Listener:
    """Notes the sources of the studies that were scored."""

    def __init__(self) -> None:
        self.scored: list[tuple[str, ...]] = []

    def planned(self, total: int, records: Iterator[StudyRecord]) -> None: ...

    def done(self, record: StudyRecord) -> None:
        self.scored.append(tuple(frame.source for frame in record.frames))


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
    inbox: Path,
    out: Path,
    bundle: Path,
    steps: Callable[[Listener], Iterator[float]],
    monkeypatch: pytest.MonkeyPatch,
    **more: Any,
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
        job = Job(inbox, folder, loaded, Predictor(loaded, threads=1), listener, **more)
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


def sources(table: Path) -> set[str]:
    return {row["source"] for row in rows(table)} if table.exists() else set()


def before(monkeypatch: pytest.MonkeyPatch, name: str, act: Callable[[], object]) -> None:
    """Have something happen once, right before a method of the job is called."""
    method, calls = getattr(Job, name), count()

    def called(self: Job, *arguments: object, **options: object) -> object:
        if next(calls) == 0:
            act()
        return method(self, *arguments, **options)

    monkeypatch.setattr(Job, name, called)


def test_a_file_that_is_renamed_before_it_stops_changing_is_no_failure(
    inbox: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = tmp_path / "results"
    changed = job_module.changed_at

    def renamed(files: object) -> float:
        if (inbox / "x.part").exists():
            (inbox / "x.part").rename(inbox / "x.dcm")
        return changed(files)  # type: ignore[arg-type]

    monkeypatch.setattr(job_module, "changed_at", renamed)

    def steps(listener: Listener) -> Iterator[float]:
        first = arrive(inbox, "x.part", "1.2.1")
        yield first + 10 * QUIET_SECONDS
        assert listener.scored == []
        yield first + 20 * QUIET_SECONDS
        assert listener.scored == [("x.dcm",)]
        assert sources(results / "failures.csv") == set()

    watch(inbox, results, tmp_path / "bundle", steps, monkeypatch)


@pytest.mark.parametrize("moment", ["_plan", "_outcomes"])
def test_a_file_that_is_gone_before_it_is_read_is_no_failure_and_its_study_is_scored_as_a_whole(
    inbox: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    def act() -> None:
        (inbox / "b.part").rename(inbox / "b.dcm")
        (inbox / "gone.dcm").rename(tmp_path / "away.dcm")

    results = tmp_path / "results"
    before(monkeypatch, moment, act)

    def steps(listener: Listener) -> Iterator[float]:
        last = [arrive(inbox, *one) for one in (("a.dcm", "1.2.1"), ("b.part", "1.2.1"), ("gone.dcm", "1.2.2"))][-1]
        yield last + QUIET_SECONDS
        assert sources(results / "predictions.csv") == {"a.dcm"}
        assert sources(results / "failures.csv") == set()
        yield last + 2 * QUIET_SECONDS
        assert ("a.dcm", "b.dcm") in listener.scored
        (tmp_path / "away.dcm").rename(inbox / "gone.dcm")  # it is back, as the files of a share may be
        yield time.time() + 2 * QUIET_SECONDS
        assert listener.scored[-1] == ("gone.dcm",)
        assert sources(results / "predictions.csv") == {"a.dcm", "b.dcm", "gone.dcm"}
        assert sources(results / "failures.csv") == set()
        assert {row["study_instance_uid"] for row in rows(results / "predictions.csv")} == {"1.2.1", "1.2.2"}

    watch(inbox, results, tmp_path / "bundle", steps, monkeypatch)


def test_a_report_beside_a_file_that_is_gone_stays_listed(inbox: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results = tmp_path / "results"
    before(monkeypatch, "_outcomes", lambda: (inbox / "b.part").unlink())

    def steps(listener: Listener) -> Iterator[float]:
        report = make_dicom(StudyInstanceUID="1.2.1", PixelData=None, SOPClassUID=BasicTextSRStorage)
        (inbox / "a.dcm").write_bytes(report)
        last = arrive(inbox, "b.part", "1.2.1")
        yield last + QUIET_SECONDS
        assert [(row["source"], row["state"]) for row in rows(results / "failures.csv")] == [("a.dcm", "no_image")]

    watch(inbox, results, tmp_path / "bundle", steps, monkeypatch)


def test_a_share_that_is_lost_while_it_is_read_loses_no_study(
    inbox: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before(monkeypatch, "_outcomes", lambda: inbox.rename(tmp_path / "away"))
    results = tmp_path / "results"

    def steps(listener: Listener) -> Iterator[float]:
        last = [arrive(inbox, f"{name}.dcm", f"1.2.{number}") for number, name in enumerate("abc")][-1]
        yield last + QUIET_SECONDS
        assert sources(results / "failures.csv") == set()
        yield last + 2 * QUIET_SECONDS
        (tmp_path / "away").rename(inbox)
        yield last + 3 * QUIET_SECONDS
        assert sources(results / "predictions.csv") == {"a.dcm", "b.dcm", "c.dcm"}
        assert sources(results / "failures.csv") == set()

    watch(inbox, results, tmp_path / "bundle", steps, monkeypatch)


def test_a_study_that_failed_for_now_is_tried_again_in_the_next_rounds_at_most_three_times(
    inbox: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = tmp_path / "results"

    def steps(listener: Listener) -> Iterator[float]:
        for name in ("score_files", "score_singly"):
            monkeypatch.setattr(scoring, name, fail_for_now_on_name)
        last = [arrive(inbox, *one) for one in (("slow.dcm", "1.2.1"), ("huge.dcm", "1.2.2"))][-1]
        for number in range(1, 6):
            yield last + number * QUIET_SECONDS
            assert sources(results / "failures.csv") == {"slow.dcm", "huge.dcm"}
        assert listener.scored == [()] * 2 * 3
        changed = arrive(inbox, "huge.dcm", "1.2.2")
        yield changed + QUIET_SECONDS - 1
        assert listener.scored == [()] * 2 * 3
        for name, task in tasks.items():
            monkeypatch.setattr(scoring, name, task)
        yield changed + QUIET_SECONDS
        assert listener.scored[6:] == [("huge.dcm",)]

    tasks = {name: getattr(scoring, name) for name in ("score_files", "score_singly")}
    watch(inbox, results, tmp_path / "bundle", steps, monkeypatch)
