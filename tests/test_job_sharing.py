"""Several processes that score one folder: they share the studies, and if one dies, nothing is lost or doubled."""

import fcntl
import json
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from pipeline.cli.main import main
from pipeline.errors import LedgerError
from pipeline.job import loop
from pipeline.model.bundle import Bundle
from pipeline.store.ledger import Ledger, Order
from pipeline.store.sharing import JobMember
from tests.builders import make_dicom
from tests.test_cli_score import contents, rows
from tests.test_job_job import arguments

STUDIES = 200

PROGRAM = """
import os, sys, time
from pipeline.cli.main import main
from pipeline.job import job, loop, scorer
from pipeline.store import sharing

sharing.LEASE_SECONDS, loop._SAVE_SECONDS, loop._MOST_AT_FIRST = 2.0, 0.1, 8
outcomes, summarise = scorer.Scorer.outcomes, job.summarise
written, seconds = open(sys.argv.pop(1), "a"), float(sys.argv.pop(1))

def slowly(self, claims):
    for done in outcomes(self, claims):
        time.sleep(seconds)
        yield done

def noted(*arguments, **options):
    print(os.getpid(), file=written, flush=True)
    return summarise(*arguments, **options)

scorer.Scorer.outcomes, job.summarise = slowly, noted
sys.exit(main())
"""


@pytest.fixture
def studies(tmp_path: Path) -> Path:
    folder = tmp_path / "studies"
    folder.mkdir()
    for number in range(STUDIES):
        pixels = np.random.default_rng(number).integers(0, 4000, (40, 50), np.uint16)
        content = make_dicom(pixels, StudyInstanceUID=f"1.2.{number}", SOPInstanceUID=f"1.2.{number}.1")
        (folder / f"{number:03}.dcm").write_bytes(content)
    return folder


def start(writers: Path, seconds: float, given: list[str]) -> subprocess.Popen[str]:
    """Start a process that takes so many seconds more for each study, and notes in a file if it writes the tables."""
    command = [sys.executable, "-c", PROGRAM, str(writers), str(seconds), *given]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_two_processes_share_200_studies_and_one_is_killed(
    kind: str, studies: Path, bundle: Bundle, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    url = request.getfixturevalue("postgres_url") if kind == "postgresql" else ""
    out, writers, mounted = tmp_path / "results", tmp_path / "writers", tmp_path / "mounted"
    mounted.symlink_to(tmp_path)  # the second process finds the folders under other paths
    more = ["--job", f"night {tmp_path}"[-100:], "--json", "--no-heatmaps", *(["--ledger", url] if url else [])]
    with start(writers, 0.2, arguments(studies, bundle, out, *more)) as first:
        assert first.stdout is not None
        lines_of_first = [first.stdout.readline()]  # it works, and will have claimed more than it has finished
        with start(writers, 0.01, arguments(mounted / "studies", bundle, mounted / "results", *more)) as second:
            assert second.stdout is not None
            lines_of_second = [second.stdout.readline() for _ in range(60)]
            os.kill(first.pid, signal.SIGKILL)
            lines_of_second += second.stdout
        lines_of_first += first.stdout
    assert (first.returncode, second.returncode) == (-signal.SIGKILL, 0)
    for lines in (lines_of_first, lines_of_second):
        sources = Counter(json.loads(line)["source"] for line in lines if line.endswith("\n"))
        assert 0 < len(sources) < STUDIES
        assert max(sources.values()) == 1
    names = [row["source"] for row in rows(out / "predictions.csv")]
    assert Counter(names) == Counter(2 * [f"{number:03}.dcm" for number in range(STUDIES)])  # one row for each of two labels
    assert rows(out / "failures.csv") == []
    assert writers.read_text().split() == [str(second.pid)]
    run = json.loads((out / ".octray" / "run.json").read_text())
    with Ledger(url or f"sqlite:///{out / '.octray' / 'ledger.sqlite'}", run["job"]) as ledger:
        assert Counter(outcome.key for outcome in ledger.outcomes(Order.POSITION)) == Counter(
            f"study:1.2.{number}" for number in range(STUDIES)
        )
        assert ledger.unfinished() == 0
    assert main(arguments(studies, bundle, tmp_path / "alone", "--no-heatmaps")) == 0
    alone = contents(tmp_path / "alone")
    assert {name: content for name, content in contents(out).items() if name.endswith(".csv")} == {
        name: content for name, content in alone.items() if name.endswith(".csv")
    }


def join(*given: str) -> int:
    """Score while another process, which is only pretended, works in the same folder."""
    folder = Path(given[5]) / ".octray"
    with (folder / "lock").open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)
        return main(list(given))


def test_a_process_that_sees_other_files_does_not_join(
    studies: Path, bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few, out, other = tmp_path / "few", tmp_path / "results", tmp_path / "other"
    for folder in (few, other):
        folder.mkdir()
        (folder / "000.dcm").write_bytes((studies / "000.dcm").read_bytes())
    assert main(arguments(few, bundle, out, "--job", "night")) == 0
    run = json.loads((out / ".octray" / "run.json").read_text())
    with Ledger(f"sqlite:///{out / '.octray' / 'ledger.sqlite'}", "night") as ledger, JobMember(ledger, run["id"]) as member:
        member.join(is_alone=True)
        assert member.take_planning()
        member.planned()
        assert join(*arguments(other, bundle, out, "--job", "night")) == 2
        assert "other does not hold the files that the other processes of this job score." in capsys.readouterr().err
        assert join(*arguments(few, bundle, out, "--job", "night")) == 0


def test_a_job_has_one_results_folder(
    studies: Path, bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (studies / "few").mkdir()
    (studies / "000.dcm").rename(studies / "few" / "000.dcm")
    more = ("--job", "night", "--ledger", f"sqlite:///{tmp_path / 'ledger.sqlite'}")
    assert main(arguments(studies / "few", bundle, tmp_path / "results", *more)) == 0
    assert main(arguments(studies / "few", bundle, tmp_path / "own", *more)) == 2
    assert "The job night of this ledger writes into another results folder." in capsys.readouterr().err
    assert main(arguments(studies / "few", bundle, tmp_path / "results", *more)) == 0
    other = ("--job", "day", *more[2:])
    assert main(arguments(studies / "few", bundle, tmp_path / "own", *other)) == 0
    with Ledger(more[3], "night") as ledger:
        assert len(ledger) == 1, "a folder that could not join a job has removed it"


def test_machines_cannot_share_a_ledger_in_a_file(
    studies: Path, bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    few = tmp_path / "few"
    few.mkdir()
    (studies / "000.dcm").rename(few / "000.dcm")
    assert main(arguments(few, bundle, tmp_path / "results")) == 0
    monkeypatch.setattr("socket.gethostname", lambda: "another")
    assert join(*arguments(few, bundle, tmp_path / "results")) == 2
    assert "Another machine works in results, with a ledger in a file, which machines cannot" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["a?b", "50%20c", b"\xff".decode(errors="surrogateescape")])
def test_a_results_folder_of_any_name_holds_its_ledger(name: str, studies: Path, bundle: Bundle, tmp_path: Path) -> None:
    out = tmp_path / "out" / name
    assert main(arguments(studies / "000.dcm", bundle, out, "--no-heatmaps")) == 0
    assert (out / ".octray" / "ledger.sqlite").is_file()
    assert [path.name for path in (tmp_path / "out").iterdir()] == [name]
    assert (out / "predictions.parquet").is_file()


def test_results_stay_if_the_ledger_of_others_cannot_be_reached(
    studies: Path, bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "results"
    assert main(arguments(studies / "000.dcm", bundle, out)) == 0
    before = contents(out)
    assert main(arguments(studies / "000.dcm", bundle, out, "--ledger", f"sqlite:///{tmp_path / 'none' / 'l.sqlite'}")) == 2
    assert contents(out) == before
    assert main(arguments(studies / "000.dcm", bundle, out)) == 0
    assert "were removed" not in capsys.readouterr().err


def test_results_stay_if_another_process_works_and_what_it_wrote_cannot_be_read(
    studies: Path, bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "results"
    assert main(arguments(studies / "000.dcm", bundle, out)) == 0
    before = contents(out)
    (out / ".octray" / "run.json").write_text("{")
    assert join(*arguments(studies / "000.dcm", bundle, out)) == 2
    assert "Another octray works in results, with another value of: " in capsys.readouterr().err
    assert contents(out) == before


@pytest.mark.parametrize(
    ("call", "number"), [("outcomes", 1), ("keep", 1), ("failed", 1), ("outcomes", 3)], ids=["lost", "list", "again", "tables"]
)
def test_a_ledger_that_is_away_for_a_moment_ends_no_run(
    call: str, number: int, studies: Path, bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = getattr(Ledger, call)
    calls: list[str] = []

    def away(self: Ledger, *given: object) -> object:
        calls.append(call)
        if len(calls) == number:
            raise LedgerError("The database of the ledger cannot be reached.")
        return real(self, *given)

    monkeypatch.setattr(loop, "_FIRST_PAUSE_SECONDS", 0.01)
    assert main(arguments(studies / "000.dcm", bundle, tmp_path / "results")) == 0
    monkeypatch.setattr(Ledger, call, away)
    assert main(arguments(studies / "000.dcm", bundle, tmp_path / "results")) == 0
    assert len(calls) > 1


def test_a_process_that_is_interrupted_while_it_waits_tells_no_totals(
    studies: Path, bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(_: JobMember) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(JobMember, "take_planning", interrupted)
    assert main(arguments(studies / "000.dcm", bundle, tmp_path / "results")) == 130
    told = capsys.readouterr().err
    assert "Other processes of this job, or the next run, write tables and report." in told
    assert "Studies: 0" not in told
