"""A folder of results: runs that are killed go on, two do not mix, and what is finished is not scored again."""

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydicom import dcmread

from pipeline.cli.main import main
from pipeline.errors import LedgerError
from pipeline.imaging.sources import StudyFile
from pipeline.job import loop, summary
from pipeline.job.loop import Loop, PendingResults
from pipeline.job.scorer import ScoredClaim, killed
from pipeline.job.study_files import StudyFiles, files_to_json
from pipeline.model.bundle import Bundle
from pipeline.predictions import StudyRecord
from pipeline.score import study as scoring
from pipeline.store.ledger import Claim, Ledger, Order, Outcome, Output, Unit
from tests.builders import make_bundle, make_dicom
from tests.server_postgres import find_programs, running_postgres
from tests.test_cli_score import contents, rows
from tests.worker_tasks import crash_on_name, fail_for_now_on_name


def scattered(root: Path, count: int) -> Path:
    """Write two files for each study, in two folders, and one that cannot be read."""
    for folder in ("a", "b"):
        (root / folder).mkdir(parents=True)
        for number in range(count):
            pixels = np.random.default_rng([number, ord(folder)]).integers(0, 4000, (40, 50), np.uint16)
            content = make_dicom(pixels, StudyInstanceUID=f"1.2.{number}", SOPInstanceUID=f"1.2.{number}.{ord(folder)}")
            (root / folder / f"{number:02}.dcm").write_bytes(content)
    (root / "b" / "text.dcm").write_text("not DICOM")
    return root


@pytest.fixture
def studies(tmp_path: Path) -> Path:
    """Sixty files of thirty studies, scattered; two of them unreadable."""
    root = scattered(tmp_path / "studies", 30)
    (root / "b" / "cut.dcm").write_bytes(make_dicom(StudyInstanceUID="1.2.3")[:-500])
    return root


def arguments(studies: Path, bundle: Bundle, out: Path, *more: str) -> list[str]:
    return ["score", str(studies), "--bundle", str(bundle.path), "--out", str(out), *more]


def start(*given: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "pipeline.cli.main", *given]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)


@pytest.mark.slow
def test_a_run_that_is_killed_again_and_again_ends_as_one_that_was_not(
    studies: Path, bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(arguments(studies, bundle, tmp_path / "whole")) == 1
    killed, seconds, kills, ended = tmp_path / "killed", 0.5, 0, None
    while ended is None:
        with start(*arguments(studies, bundle, killed, "--json")) as process:
            try:
                process.wait(seconds)
                ended = process.returncode
            except subprocess.TimeoutExpired:
                os.kill(process.pid, signal.SIGKILL)
                kills += 1
        seconds *= 1.3  # soon long enough on a slow machine too
    assert (ended, kills > 0) == (1, True)
    assert contents(killed) == contents(tmp_path / "whole")


def test_a_kill_in_the_middle_keeps_what_was_finished(studies: Path, bundle: Bundle, tmp_path: Path) -> None:
    out = tmp_path / "results"
    for number in range(600):  # so many that the ledger is written to more than once
        content = make_dicom(StudyInstanceUID=f"1.3.{number}", SOPInstanceUID=f"1.3.{number}.1")
        (studies / f"{number:03}.dcm").write_bytes(content)
    saving_often = "from pipeline.job import loop; loop._SAVE_SECONDS = 0.05; from pipeline.cli.main import main; main()"
    command = [sys.executable, "-c", saving_often, *arguments(studies, bundle, out, "--json")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        os.kill(process.pid, signal.SIGKILL)
    state = json.loads((out / ".octray" / "run.json").read_text())
    with Ledger(f"sqlite:///{out / '.octray' / 'ledger.sqlite'}", state["job"]) as ledger:
        assert 0 < ledger.unfinished() < 631  # of the studies and the text
    assert main(arguments(studies, bundle, out)) == 1
    assert len(rows(out / "predictions.csv")) == 2 * 660


def test_a_second_run_scores_only_what_is_new_or_has_changed(
    studies: Path, bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "results"
    main(arguments(studies, bundle, out))
    before = contents(out)
    scored: list[str] = []
    take = Loop._take

    def note(self: Loop, done: ScoredClaim) -> None:
        scored.append(done.claim.key)
        take(self, done)

    monkeypatch.setattr(Loop, "_take", note)
    assert main(arguments(studies, bundle, out)) == 1
    assert scored == []
    assert contents(out) == before
    Image.fromarray(np.arange(2500, dtype=np.uint8).reshape(50, 50)).save(studies / "new.png")
    (studies / "a" / "05.dcm").write_bytes((studies / "a" / "06.dcm").read_bytes())
    (studies / "b" / "07.dcm").unlink()
    main(arguments(studies, bundle, out))
    assert sorted(scored) == ["file:new.png", "study:1.2.5", "study:1.2.6", "study:1.2.7"]
    main(arguments(studies, bundle, tmp_path / "fresh"))
    assert contents(out) == contents(tmp_path / "fresh")


def test_another_bundle_begins_anew_and_says_so(
    studies: Path, bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(arguments(studies, bundle, tmp_path / "results"))
    assert "processed in this run: 31.\n" in capsys.readouterr().err
    main(arguments(studies, bundle, tmp_path / "results"))
    assert "processed in this run: 0.\n" in capsys.readouterr().err
    other = make_bundle(tmp_path / "other", temperature=3.0)
    main(arguments(studies, other, tmp_path / "results"))
    assert "which were there before, were removed." in capsys.readouterr().err
    main(arguments(studies, other, tmp_path / "fresh"))
    assert contents(tmp_path / "results") == contents(tmp_path / "fresh")


def test_what_the_ledger_could_not_take_is_not_taken_for_results_of_another_bundle(
    studies: Path, bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise LedgerError("The database of the ledger cannot be reached or used.")

    out, other = tmp_path / "results", make_bundle(tmp_path / "other", temperature=3.0)
    monkeypatch.setattr(loop, "_PATIENCE_SECONDS", 0.0)
    monkeypatch.setattr(loop, "_SAVE_SECONDS", 1000.0)
    monkeypatch.setattr(Ledger, "finish", fail)
    assert main(arguments(studies, bundle, out)) == 2
    monkeypatch.undo()
    assert len(list((out / ".octray").glob("pending-results-*.jsonl"))) == 1
    assert len(list((out / "heatmaps").iterdir())) == 60
    main(arguments(studies, other, out))
    main(arguments(studies, other, tmp_path / "fresh"))
    assert contents(out) == contents(tmp_path / "fresh")


def test_a_heatmap_that_is_gone_is_drawn_again(studies: Path, bundle: Bundle, tmp_path: Path) -> None:
    out = tmp_path / "results"
    main(arguments(studies, bundle, out))
    before = contents(out)
    for path in sorted((out / "heatmaps").iterdir())[:3]:
        path.unlink()
    main(arguments(studies, bundle, out))
    assert contents(out) == before


def test_a_second_process_that_wants_something_else_of_a_folder_is_refused(
    studies: Path, bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "results"
    assert main(arguments(studies, bundle, out)) == 1
    with (out / ".octray" / "lock").open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)  # as a process that scores
        assert main(arguments(studies, bundle, out, "--no-heatmaps", "--dicom", "sr")) == 2
        assert "works in results, with another value of: --no-heatmaps, --dicom. Give the same" in capsys.readouterr().err
        assert main(arguments(studies, bundle, out, "--watch", "1")) == 2
        assert "Another octray works in results, and with --watch only one may." in capsys.readouterr().err
        fcntl.flock(lock, fcntl.LOCK_EX)  # as one that watches
        assert main(arguments(studies, bundle, out)) == 2
        assert "Another octray works in results, and with --watch only one may." in capsys.readouterr().err
    assert main(arguments(studies, bundle, out)) == 1


def test_dicom_objects_go_into_the_study_of_their_source_and_pictures_get_none(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Objects say when they were made, so that only those of one time are equal.
    monkeypatch.setattr("pipeline.job.scorer.time.time", lambda: 1.7e9)
    studies = tmp_path / "studies"
    studies.mkdir()
    pixels = np.random.default_rng(0).integers(0, 4000, (40, 50), np.uint16)
    (studies / "a.dcm").write_bytes(make_dicom(pixels, StudyInstanceUID="1.2.7", SOPInstanceUID="1.2.7.1"))
    Image.fromarray((pixels >> 4).astype(np.uint8)).save(studies / "b.png")
    assert main(arguments(studies, bundle, tmp_path / "all", "--dicom", "sr,pm,sc")) == 0
    found = {path.name.rsplit("_", 1)[0]: dcmread(path) for path in (tmp_path / "all" / "dicom").iterdir()}
    modalities = {"1.2.7.1-sr": "SR", "1.2.7.1-pm-2": "OT", "1.2.7.1-sc-1-2": "CR"}
    assert found.keys() == modalities.keys()
    assert {dataset.StudyInstanceUID for dataset in found.values()} == {"1.2.7"}
    assert list((tmp_path / "all" / ".octray" / "pictures").iterdir()) == []  # which they are made of
    assert main(arguments(studies, bundle, tmp_path / "again", "--dicom", "sr,pm,sc")) == 0
    assert contents(tmp_path / "again") == contents(tmp_path / "all")
    assert main(arguments(studies, bundle, tmp_path / "bare", "--dicom", "sc", "--no-heatmaps")) == 0
    names = [path.name.rsplit("_", 1)[0] for path in (tmp_path / "bare" / "dicom").iterdir()]
    assert names == ["1.2.7.1-sc-1-2"]
    assert list((tmp_path / "bare" / "heatmaps").iterdir()) == []


def test_an_unknown_kind_of_object_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["score", "x", "--bundle", "x", "--out", "x", "--dicom", "sr,seg"])
    assert caught.value.code == 2
    assert "must name some of sr, pm, sc, with commas between" in capsys.readouterr().err


def test_no_heatmaps_are_drawn_if_none_are_wanted(studies: Path, bundle: Bundle, tmp_path: Path) -> None:
    assert main(arguments(studies, bundle, tmp_path / "results", "--no-heatmaps")) == 1
    assert list((tmp_path / "results" / "heatmaps").iterdir()) == []
    assert "<img" not in (tmp_path / "results" / "report.html").read_text(encoding="utf-8")


def watched(folder: Path) -> list[tuple[str, str]]:
    return sorted({(row["study_instance_uid"], row["source"]) for row in rows(folder / "predictions.csv")})


def test_a_watched_folder_is_scored_as_studies_arrive_and_may_be_emptied(bundle: Bundle, tmp_path: Path) -> None:
    studies, out = tmp_path / "inbox", tmp_path / "results"
    studies.mkdir()
    for name in ("a", "b", "c"):
        (studies / f"{name}.dcm").write_bytes(make_dicom(StudyInstanceUID="1.2.1", SOPInstanceUID=f"1.2.1.{ord(name)}"))
    everything = [("1.2.1", "a.dcm"), ("1.2.1", "b.dcm"), ("1.2.1", "c.dcm")]
    with start(*arguments(studies, bundle, out, "--json", "--watch", "0.5")) as process:
        assert process.stdout is not None
        assert [json.loads(process.stdout.readline())["source"] for _ in range(3)] == ["a.dcm", "b.dcm", "c.dcm"]
        studies.rename(tmp_path / "away")  # as a share that is gone for a round
        time.sleep(1.5)
        (tmp_path / "away").rename(studies)
        (studies / "a.dcm").unlink()
        (studies / "late.dcm").write_bytes(make_dicom(StudyInstanceUID="1.2.1", SOPInstanceUID="1.2.1.9"))
        (studies / "next.dcm").write_bytes(make_dicom(StudyInstanceUID="1.2.2", SOPInstanceUID="1.2.2.1"))
        assert {json.loads(process.stdout.readline())["source"] for _ in range(2)} == {"late.dcm", "next.dcm"}
        process.send_signal(signal.SIGTERM)
        assert process.stdout.read() == ""
    assert process.returncode == 130
    assert watched(out) == [*everything, ("1.2.1", "late.dcm"), ("1.2.2", "next.dcm")]
    pictures = contents(out)
    for path in studies.iterdir():
        path.unlink()
    next((out / "heatmaps").iterdir()).unlink()  # which nothing can be scored for again
    with start(*arguments(studies, bundle, out, "--json", "--watch", "0.5")) as process:
        assert process.stdout is not None
        assert len([process.stdout.readline() for _ in range(5)]) == 5
        (studies / "a.dcm").write_bytes(make_dicom(StudyInstanceUID="1.2.3", SOPInstanceUID="1.2.3.1"))
        assert json.loads(process.stdout.readline())["source"] == "a.dcm"
        process.send_signal(signal.SIGTERM)
        process.stdout.read()
    assert watched(out) == [*everything, ("1.2.1", "late.dcm"), ("1.2.2", "next.dcm"), ("1.2.3", "a.dcm")]
    assert len(pictures.keys() - contents(out).keys()) == 1


def test_results_of_a_watched_folder_are_not_removed_for_those_of_another_bundle(
    studies: Path, bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "results"
    main(arguments(studies, bundle, out))
    before = contents(out)
    other = make_bundle(tmp_path / "other", temperature=3.0)
    assert main(arguments(studies, other, out, "--watch", "1")) == 2
    assert "whose studies may have been taken away. Give another --out." in capsys.readouterr().err
    assert contents(out) == before


@pytest.mark.parametrize("name", ["dicom/CHEST-sr_0123456789abcdef.dcm", "report.html", "report-2.html"])
def test_files_that_are_named_like_results_and_are_none_are_not_touched(
    name: str, studies: Path, bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    foreign = tmp_path / "folder" / name
    foreign.parent.mkdir(parents=True)
    foreign.write_bytes(b"not ours")
    assert main(arguments(studies, bundle, tmp_path / "folder")) == 2
    assert f"folder holds {foreign.name}, which is named like a result of octray" in capsys.readouterr().err
    assert [path for path in (tmp_path / "folder").rglob("*") if path.is_file()] == [foreign]


def test_other_files_among_the_results_stay(studies: Path, bundle: Bundle, tmp_path: Path) -> None:
    out = tmp_path / "results"
    names = ("dicom/IM_20240101.dcm", "report-monday.html", "heatmaps/1_f0001_x.jpg", "traces/mine.trace.json")
    for name in names:
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_bytes(b"mine")
    main(arguments(studies, bundle, out))
    main(arguments(studies, make_bundle(tmp_path / "other", temperature=3.0), out))
    assert [(out / name).read_bytes() for name in names] == [b"mine"] * len(names)


def test_what_a_kill_leaves_half_written_is_removed(studies: Path, bundle: Bundle, tmp_path: Path) -> None:
    out = tmp_path / "results"
    main(arguments(studies, bundle, out))
    (out / "heatmaps" / ".1_f0001_x_0123456789abcdef.jpg.part").write_bytes(b"half")
    main(arguments(studies, bundle, out))
    assert list((out / "heatmaps").glob(".*")) == []


def test_a_folder_that_is_empty_for_a_moment_costs_no_results(studies: Path, bundle: Bundle, tmp_path: Path) -> None:
    out = tmp_path / "results"
    main(arguments(studies, bundle, out))
    before = contents(out)
    studies.rename(tmp_path / "away")
    studies.mkdir()
    assert main(arguments(studies, bundle, out)) == 2
    assert contents(out) == before


def there(folder: Path) -> Callable[[Output], bool]:
    return lambda output: (folder / output.name).is_file()


def test_outcomes_that_the_ledger_cannot_take_are_kept_for_the_next_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if find_programs() is None:
        pytest.skip("PostgreSQL is not here: install Debian's package postgresql")
    monkeypatch.setattr(loop, "_PATIENCE_SECONDS", 1.0)
    works = [Unit(f"study:{number}", number, "f", b"[]") for number in range(4)]
    first, second = StudyRecord("1.2.3", ()).to_json(), StudyRecord("", ()).to_json()
    path, unchanged = tmp_path / "pending-results", works[:3]
    (tmp_path / "study:0").write_bytes(b"abc")
    (tmp_path / "study:2").write_bytes(b"abc")  # and of study:1 what was written is gone
    with ExitStack() as server:
        ledger = Ledger(server.enter_context(running_postgres()), "run")
        ledger.add(works)

        def score_and_lose(claims: Iterable[Claim]) -> Iterator[ScoredClaim]:
            for claim in claims:
                if claim.key == "study:3":
                    server.close()
                yield ScoredClaim(claim, Outcome(claim.id, first, 2, 0.9, (Output(claim.key, "", 3),)))

        with ledger, pytest.raises(LedgerError, match="cannot be reached"):
            Loop(ledger, "me", PendingResults(path, there(tmp_path)), lambda record: None).work(score_and_lose)
    (left,) = tmp_path.glob("pending-results-*.jsonl")
    with left.open("a") as file:
        file.write('{"key": "study:9", "cut')
    kept = PendingResults(path, there(tmp_path))
    assert kept.names() == {work.key for work in works}
    scored: list[str] = []

    def score(claims: Iterable[Claim]) -> Iterator[ScoredClaim]:
        for claim in claims:
            scored.append(claim.key)
            yield ScoredClaim(claim, Outcome(claim.id, second, 0, 0.0))

    with Ledger(f"sqlite:///{tmp_path / 'ledger.sqlite'}", "run") as other:
        other.add([*unchanged, Unit("study:3", 3, "changed", b"[]")])
        Loop(other, "me", kept, lambda record: None).work(score)
        records = {outcome.key: outcome.record for outcome in other.outcomes(Order.POSITION)}
    assert scored == ["study:1", "study:3"]
    assert records == {"study:0": first, "study:1": second, "study:2": first, "study:3": second}
    assert list(tmp_path.glob("pending-results*")) == []
    assert kept.names() == set()


def test_a_study_that_kills_its_reader_is_tried_three_times_and_the_others_are_scored(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    studies = tmp_path / "studies"
    studies.mkdir()
    for name in ("a", "crash", "z"):
        (studies / f"{name}.dcm").write_bytes(make_dicom(StudyInstanceUID=f"1.2.{ord(name[0])}"))
    tried: list[int] = []
    take = Loop._take

    def note(self: Loop, done: ScoredClaim) -> None:
        tried.extend([done.claim.attempt] if done.claim.key == f"study:1.2.{ord('c')}" else [])
        take(self, done)

    monkeypatch.setattr(Loop, "_take", note)
    monkeypatch.setattr(scoring, "score_files", crash_on_name)
    monkeypatch.setattr(scoring, "score_singly", crash_on_name)
    assert main(arguments(studies, bundle, tmp_path / "results")) == 1
    assert tried == [1, 2, 3]
    (failure,) = rows(tmp_path / "results" / "failures.csv")
    assert (failure["source"], failure["reason"]) == ("crash.dcm", "decoder_crash")
    assert [row["source"] for row in rows(tmp_path / "results" / "predictions.csv")[::2]] == ["a.dcm", "z.dcm"]


@pytest.fixture
def slow(tmp_path: Path) -> Path:
    """Three studies, of which one is named slow."""
    studies = tmp_path / "studies"
    studies.mkdir()
    for name in ("a", "slow", "z"):
        (studies / f"{name}.dcm").write_bytes(make_dicom(StudyInstanceUID=f"1.2.{ord(name[0])}"))
    return studies


@pytest.fixture
def tried(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """The keys of the studies that are tried, each with which attempt at it that is."""
    tried: list[tuple[str, int]] = []
    take = Loop._take

    def note(self: Loop, done: ScoredClaim) -> None:
        tried.append((done.claim.key, done.claim.attempt))
        take(self, done)

    monkeypatch.setattr(Loop, "_take", note)
    return tried


def fail_for_now(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("score_files", "score_singly"):
        monkeypatch.setattr(scoring, name, fail_for_now_on_name)


def test_a_study_that_took_too_long_is_tried_again_in_the_next_run(
    slow: Path, bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tried: list[tuple[str, int]]
) -> None:
    assert main(arguments(slow, bundle, tmp_path / "whole")) == 0
    tried.clear()
    with monkeypatch.context() as loaded:
        fail_for_now(loaded)
        assert main(arguments(slow, bundle, tmp_path / "results")) == 1
        (failure,) = rows(tmp_path / "results" / "failures.csv")
        assert (failure["source"], failure["reason"]) == ("slow.dcm", "time_limit")
    assert main(arguments(slow, bundle, tmp_path / "results")) == 0
    assert tried == [("study:1.2.97", 1), ("study:1.2.115", 1), ("study:1.2.122", 1), ("study:1.2.115", 2)]
    assert contents(tmp_path / "results") == contents(tmp_path / "whole")


def test_a_version_of_a_study_is_tried_in_three_runs_at_most(
    slow: Path, bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tried: list[tuple[str, int]]
) -> None:
    fail_for_now(monkeypatch)
    for _ in range(5):
        assert main(arguments(slow, bundle, tmp_path / "results")) == 1
    assert [attempt for key, attempt in tried if key == "study:1.2.115"] == [1, 2, 3]
    (slow / "slow.dcm").write_bytes((slow / "slow.dcm").read_bytes())
    tried.clear()
    assert main(arguments(slow, bundle, tmp_path / "results")) == 1
    assert tried == [("study:1.2.115", 1)]
    assert [row["reason"] for row in rows(tmp_path / "results" / "failures.csv")] == ["time_limit"]


def test_a_file_that_cannot_be_decoded_is_not_tried_again(
    slow: Path, bundle: Bundle, tmp_path: Path, tried: list[tuple[str, int]]
) -> None:
    (slow / "slow.dcm").write_bytes(make_dicom(StudyInstanceUID="1.2.115")[:-500])
    for _ in range(3):
        assert main(arguments(slow, bundle, tmp_path / "results")) == 1
    assert len(tried) == 3


def test_what_failed_for_time_memory_or_a_disk_is_tried_again(
    slow: Path, bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("closed", "huge"):
        (slow / f"{name}.dcm").write_bytes(make_dicom(StudyInstanceUID=f"1.2.{ord(name[0])}"))
    with monkeypatch.context() as loaded:
        fail_for_now(loaded)
        assert main(arguments(slow, bundle, tmp_path / "results")) == 1
        reasons = {row["source"]: row["reason"] for row in rows(tmp_path / "results" / "failures.csv")}
        assert reasons == {"closed.dcm": "not_opened", "huge.dcm": "memory_limit", "slow.dcm": "time_limit"}
    assert main(arguments(slow, bundle, tmp_path / "results")) == 0


def test_a_study_whose_scorer_was_killed_is_given_up_after_three_times(tmp_path: Path) -> None:
    file = StudyFile(tmp_path / "x.dcm", "x.dcm")
    tried: list[int] = []

    def dies(claims: Iterable[Claim]) -> Iterator[ScoredClaim]:
        for claim in claims:
            tried.append(claim.attempt)
            yield killed(claim, tmp_path)

    with Ledger(f"sqlite:///{tmp_path / 'ledger.sqlite'}", "run") as ledger:
        ledger.add([Unit("study:1.2.3", 0, "f", files_to_json(StudyFiles("study:1.2.3", (file,), ("f",)), tmp_path))])
        told: list[StudyRecord] = []
        Loop(ledger, "me", PendingResults(tmp_path / "pending-results", there(tmp_path)), told.append).work(dies)
    assert tried == [1, 2, 3]
    (record,) = told
    assert record.study_instance_uid == "1.2.3"
    assert [(failure.source, failure.reason) for failure in record.failures] == [("x.dcm", "decoder_crash")]


NO_WORKERS = """
import os, signal, sys
if any("workers.process" in word for word in sys.orig_argv):
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_tables_are_written_if_every_worker_dies_at_its_start(
    slow: Path, bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "results"
    (slow / "z.dcm").rename(tmp_path / "z.dcm")
    assert main(arguments(slow, bundle, out)) == 0
    (tmp_path / "z.dcm").rename(slow / "z.dcm")
    (tmp_path / "sitecustomize.py").write_text(NO_WORKERS)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    command = [sys.executable, "-m", "pipeline.cli.main"]
    for folder, lost in ((out, {"z.dcm"}), (tmp_path / "new", {"a.dcm", "slow.dcm", "z.dcm"})):
        ended = subprocess.run([*command, *arguments(slow, bundle, folder)], capture_output=True, text=True, check=False)
        assert ended.returncode == 2
        assert "octray: The process that reads files was ended by signal 9 while it started. Run it again;" in ended.stderr
        assert {row["source"]: row["reason"] for row in rows(folder / "failures.csv")} == dict.fromkeys(lost, "no_worker")
        assert {row["source"] for row in rows(folder / "predictions.csv")} == {"a.dcm", "slow.dcm", "z.dcm"} - lost
        assert (folder / "report.html").exists()
    monkeypatch.undo()
    assert main(arguments(slow, bundle, out)) == 0
    assert rows(out / "failures.csv") == []


@pytest.mark.parametrize("raised", [ImportError("libarrow.so.2500: failed to map segment from shared object"), MemoryError()])
def test_other_tables_are_written_if_there_is_no_memory_for_parquet(
    slow: Path,
    bundle: Bundle,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    raised: Exception,
) -> None:
    def fail(path: Path) -> None:
        raise raised

    out = tmp_path / "results"
    out.mkdir()
    monkeypatch.setattr(summary, "parquet_table", fail)
    assert main(arguments(slow, bundle, out)) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith(
        "octray: predictions.parquet was not written, all other files are there: There is too little memory."
    )
    assert len(rows(out / "predictions.csv")) == 6
    assert (out / "report.html").exists()
    assert not (out / "predictions.parquet").exists()


def test_little_memory_is_said_in_one_sentence(slow: Path, bundle: Bundle, tmp_path: Path) -> None:
    """The address space is what `ulimit -v 250000` gives: too little for the libraries that score."""
    program = "import resource, sys; from pipeline.cli.main import main; size = 250_000 * 1024; "
    program += "resource.setrlimit(resource.RLIMIT_AS, (size, size)); sys.exit(main())"
    command = [sys.executable, "-c", program, *arguments(slow, bundle, tmp_path / "results")]
    one_thread = os.environ | {"OPENBLAS_NUM_THREADS": "1"}  # since OpenBLAS ends the process if it gets no memory for each
    ended = subprocess.run(command, capture_output=True, text=True, check=False, env=one_thread)
    assert ended.returncode == 2
    assert ended.stderr.splitlines()[-1] == (
        "octray: There is too little memory. Give octray more than the 244 MiB that it may take now (ulimit -v), "
        "and start again."
    )
