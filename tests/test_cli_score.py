"""`octray score` from files to files."""

import csv
import errno
import itertools
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydicom.uid import BasicTextSRStorage, GrayscaleSoftcopyPresentationStateStorage

from pipeline.cli.main import main
from pipeline.job import scorer
from pipeline.job.loop import delayed_interrupts
from pipeline.model.bundle import Bundle
from pipeline.predictions import Heatmap
from pipeline.score import pictures
from pipeline.score.pictures import Colours, draw
from pipeline.score.predictor import Predictor
from pipeline.score.reading import View
from tests.builders import make_bundle, make_dicom


@pytest.fixture
def studies(tmp_path: Path) -> Path:
    root = tmp_path / "studies"
    root.mkdir()
    rng = np.random.default_rng(0)
    for number in range(3):
        Image.fromarray(rng.integers(0, 255, (60, 50), np.uint8)).save(root / f"{number}.png")
    (root / "volume.dcm").write_bytes(make_dicom(rng.integers(0, 4000, (2, 30, 40), np.uint16), SOPInstanceUID="1.2.3"))
    return root


def score(studies: Path, bundle: Path, out: Path, *more: str) -> int:
    return main(["score", str(studies), "--bundle", str(bundle), "--out", str(out), *more])


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def contents(folder: Path) -> dict[str, bytes]:
    """What people read, without what the report says of times; traces and how the run went stand in folders of their own."""
    files = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    read = {name: path.read_bytes() for name, path in files.items() if not name.startswith((".octray/", "traces/"))}
    return {name: WHEN.sub(b"", content) if name.endswith(".html") else content for name, content in read.items()}


WHEN = re.compile(rb'<span class="when">.*?</span>')
"""All that depends on when a study was scored, and when the report was written before."""


def without_mark(path: Path) -> str:
    """A heatmap's name without what makes it the only one."""
    stem, _, mark = path.stem.rpartition("_")
    assert len(mark) == 16
    return stem


def test_a_folder_becomes_tables_heatmaps_and_a_report(
    studies: Path, bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "results"
    assert score(studies, bundle.path, out) == 0
    predictions = rows(out / "predictions.csv")
    assert [(row["source"], row["frame_number"], row["label"]) for row in predictions[:2] + predictions[-1:]] == [
        ("0.png", "1", "NORMAL"),
        ("0.png", "1", "PNEUMONIA"),
        ("volume.dcm", "2", "PNEUMONIA"),
    ]
    assert len(predictions) == 10
    assert rows(out / "failures.csv") == []
    heatmaps = [without_mark(path) for path in (out / "heatmaps").iterdir()]
    assert len(heatmaps) == 5
    assert {"1.2.3_f0001_PNEUMONIA", "1.2.3_f0002_PNEUMONIA"} <= set(heatmaps)
    assert (out / "report.html").read_text(encoding="utf-8").count("<figure ") == 5
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "Frames scored: 5. Studies: 4, with a finding:" in captured.err
    assert str(out / "report.html") in captured.err


def test_json_is_one_object_a_frame_on_standard_output(
    studies: Path, bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "results"
    assert score(studies, bundle.path, out, "--json") == 0
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    table = rows(out / "predictions.csv")
    values = [(record["source"], item["label"], item["probability"]) for record in records for item in record["predictions"]]
    assert values == [(row["source"], row["label"], float(row["probability"])) for row in table]
    for record in records:
        assert (out / record["heatmaps"]["PNEUMONIA"]).is_file()


def test_the_same_input_gives_the_same_bytes_and_an_older_run_leaves_no_trace(
    studies: Path, bundle: Bundle, tmp_path: Path
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    score(studies, make_bundle(tmp_path / "other", labels=("NORMAL", "EFFUSION")).path, second, "--dicom", "sr")
    (second / "heatmaps" / "mine.png").write_bytes(b"not of octray")
    score(studies, bundle.path, first)
    score(studies, bundle.path, second)
    assert contents(second) == contents(first) | {"heatmaps/mine.png": b"not of octray"}


def test_failures_are_listed_and_the_rest_is_scored(
    studies: Path, bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (studies / "text.dcm").write_text("not DICOM")
    out = tmp_path / "results"
    assert score(studies, bundle.path, out) == 1
    (failure,) = rows(out / "failures.csv")
    assert (failure["source"], failure["reason"]) == ("text.dcm", "not_an_image")
    assert len(rows(out / "predictions.csv")) == 10
    assert "text.dcm" in (out / "report.html").read_text(encoding="utf-8")
    assert "Files or frames not scored: 1." in capsys.readouterr().err


def test_a_heatmap_that_cannot_be_written_costs_neither_tables_nor_report(
    studies: Path, bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out, write = tmp_path / "results", scorer.write_bytes

    def fail(path: Path, content: bytes) -> None:
        if path.name.startswith("1.2.3_f0001"):
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        write(path, content)

    monkeypatch.setattr(scorer, "write_bytes", fail)
    assert score(studies, bundle.path, out) == 1
    assert len(rows(out / "predictions.csv")) == 10
    assert rows(out / "failures.csv") == []
    assert len(list((out / "heatmaps").iterdir())) == 4
    report = (out / "report.html").read_text(encoding="utf-8")
    assert report.count("<figure ") == 4
    assert "The heatmap of PNEUMONIA could not be drawn." in report
    error = capsys.readouterr().err
    assert "Heatmaps or DICOM objects that could not be written: 1. The tables are complete." in error
    assert re.search(r"^  1\.2\.3_f0001_PNEUMONIA_[0-9a-f]{16}\.jpg: No space left on device$", error, re.MULTILINE)
    monkeypatch.undo()
    assert score(studies, bundle.path, out) == 0
    assert len(list((out / "heatmaps").iterdir())) == 5


def test_a_heatmap_that_cannot_be_drawn_costs_neither_tables_nor_report(
    studies: Path, bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out, calls = tmp_path / "results", itertools.count()

    def fail(view: View, heatmap: Heatmap, *more: Any) -> Colours:
        if next(calls) == 0:
            raise ValueError("A codec has its own errors.")
        return draw(view, heatmap, *more)

    monkeypatch.setattr(Predictor, "runs_in_workers", False)  # what is drawn in another process cannot be replaced here
    monkeypatch.setattr(pictures, "draw", fail)
    assert score(studies, bundle.path, out) == 1
    assert (len(rows(out / "predictions.csv")), rows(out / "failures.csv")) == (10, [])
    assert len(list((out / "heatmaps").iterdir())) == 4
    assert "The heatmap of PNEUMONIA could not be drawn." in (out / "report.html").read_text(encoding="utf-8")
    assert re.search(r"could not be written: 1\. .*\n  .+_f0001_PNEUMONIA_.+\.jpg: ValueError\n", capsys.readouterr().err)
    assert score(studies, bundle.path, out) == 0
    assert len(list((out / "heatmaps").iterdir())) == 5


def test_few_files_wait_for_their_objects(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    studies = tmp_path / "studies"
    studies.mkdir()
    for number in range(8):
        (studies / f"{number}.dcm").write_bytes(make_dicom(StudyInstanceUID=f"1.2.{number}"))
    waiting: list[int] = []
    begin = scorer.ObjectWriter.begin

    def count(writer: scorer.ObjectWriter, *more: Any) -> None:
        begin(writer, *more)
        waiting.append(len(writer._waiting))

    monkeypatch.setattr(scorer.ObjectWriter, "begin", count)
    monkeypatch.setattr(scorer, "_AHEAD", 3)
    assert score(studies, bundle.path, tmp_path / "results", "--dicom", "sr") == 0
    assert waiting == [1, 2, 3, 3, 3, 3, 3, 3]
    assert len(list((tmp_path / "results" / "dicom").iterdir())) == 8


def test_a_folder_with_nothing_readable_ends_with_2_and_still_lists_why(
    bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "studies").mkdir()
    (tmp_path / "studies" / "text.dcm").write_text("not DICOM")
    assert score(tmp_path / "studies", bundle.path, tmp_path / "results") == 2
    assert len(rows(tmp_path / "results" / "failures.csv")) == 1
    assert "None of the files in studies could be scored; failures.csv says why" in capsys.readouterr().err


def test_an_empty_folder_ends_with_2(bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "studies").mkdir()
    assert score(tmp_path / "studies", bundle.path, tmp_path / "results") == 2
    assert not (tmp_path / "results" / "failures.csv").exists()
    assert "studies holds no files" in capsys.readouterr().err


def test_a_missing_folder_ends_with_2_and_touches_no_results(
    studies: Path, bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "results"
    score(studies, bundle.path, out)
    before = contents(out)
    assert score(tmp_path / "missing", bundle.path, out) == 2
    assert contents(out) == before
    assert "There is no file or folder missing." in capsys.readouterr().err


def test_results_inside_the_studies_are_refused(studies: Path, bundle: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    assert score(studies, bundle.path, studies / "results") == 2
    assert "results must not lie inside studies" in capsys.readouterr().err
    assert not (studies / "results").exists()


def test_studies_inside_the_results_are_refused_and_left_alone(
    studies: Path, bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    studies.rename(tmp_path / "dicom")
    (tmp_path / "dicom" / "volume.dcm").rename(tmp_path / "dicom" / "CHEST-sr_0123456789abcdef.dcm")
    before = contents(tmp_path / "dicom")
    assert score(tmp_path / "dicom", bundle.path, tmp_path) == 2
    assert "must not contain the studies dicom" in capsys.readouterr().err
    assert contents(tmp_path / "dicom") == before


def test_results_in_the_folder_of_the_bundle_are_refused(
    studies: Path, bundle: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(bundle.path)
    assert score(studies, bundle.path, bundle.path) == 2
    assert "The results must not lie in the folder of the bundle, bundle." in capsys.readouterr().err
    assert contents(bundle.path) == before


def test_who_stops_to_read_stops_no_scoring(studies: Path, bundle: Bundle, tmp_path: Path) -> None:
    words = ["score", str(studies), "--bundle", str(bundle.path), "--out", str(tmp_path / "results"), "--json"]
    command = [sys.executable, "-m", "pipeline.cli.main", *words]
    reads, writes = os.pipe()
    os.close(reads)
    done = subprocess.run(command, stdout=writes, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writes)
    assert (done.returncode, len(rows(tmp_path / "results" / "predictions.csv"))) == (0, 10)
    assert "Frames scored: 5." in done.stderr


def test_results_that_cannot_be_written_are_said(
    studies: Path, bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "results").write_text("a file, not a folder")
    assert score(studies, bundle.path, tmp_path / "results") == 2
    assert "The results folder results cannot be written" in capsys.readouterr().err


def test_a_damaged_bundle_ends_with_2(
    studies: Path, bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (bundle.path / "model.onnx").write_bytes(b"altered")
    assert score(studies, bundle.path, tmp_path / "results") == 2
    assert "does not match its hash" in capsys.readouterr().err
    assert not (tmp_path / "results").exists()


def test_two_files_with_the_same_uid_keep_two_heatmaps(bundle: Bundle, tmp_path: Path) -> None:
    studies = tmp_path / "studies"
    studies.mkdir()
    for number in range(2):
        pixels = np.random.default_rng(number).integers(0, 255, (30, 30), np.uint8)
        (studies / f"{number}.dcm").write_bytes(make_dicom(pixels, SOPInstanceUID="1.2.3"))
    assert score(studies, bundle.path, tmp_path / "results") == 0
    names = [without_mark(path) for path in (tmp_path / "results" / "heatmaps").iterdir()]
    assert names == ["1.2.3_f0001_PNEUMONIA"] * 2


def test_heatmap_names_hold_safe_characters_only(studies: Path, tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle", labels=("NORMAL", "../../Pleural effusion/µ"))
    assert score(studies, bundle.path, tmp_path / "results") == 0
    names = [without_mark(path) for path in (tmp_path / "results" / "heatmaps").iterdir()]
    assert "1.2.3_f0001_Pleural-effusion" in names
    assert len(names) == 5


def test_without_a_normal_label_every_label_has_heatmaps(studies: Path, tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle", labels=("A", "B"))
    score(studies, bundle.path, tmp_path / "results")
    assert len(list((tmp_path / "results" / "heatmaps").iterdir())) == 10


SCORE_AND_LIST = """
import sys
from pipeline.cli.main import main
code = main(sys.argv[1:])
heavy = {"torch", "timm", "monai", "mlflow", "sklearn", "matplotlib", "highdicom", "onnx"}
print(code, sorted(heavy & set(sys.modules)))
"""


def test_nothing_heavy_is_imported(studies: Path, bundle: Bundle, tmp_path: Path) -> None:
    arguments = ["score", str(studies), "--bundle", str(bundle.path), "--out", str(tmp_path / "results")]
    done = subprocess.run([sys.executable, "-c", SCORE_AND_LIST, *arguments], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "0 []"


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_what_was_finished_before_an_interrupt_is_kept(number: int, bundle: Bundle, tmp_path: Path) -> None:
    studies, out = tmp_path / "studies", tmp_path / "results"
    studies.mkdir()
    pixels = np.zeros((60, 64, 64), np.uint8)
    for index in range(60):
        (studies / f"{index:02}.dcm").write_bytes(make_dicom(pixels, SOPInstanceUID=f"1.2.{index + 1}"))
    arguments = ["score", str(studies), "--bundle", str(bundle.path), "--out", str(out), "--json"]
    saving_often = "import sys; from pipeline.job import loop; loop._SAVE_SECONDS = 0.05; from pipeline.cli.main import main; "
    command = [sys.executable, "-c", f"{saving_often}sys.exit(main())", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        lines = [process.stdout.readline()]
        os.kill(process.pid, number)
        lines += process.stdout.readlines()
    assert process.returncode == 130
    predictions = rows(out / "predictions.csv")
    assert len(predictions) < 2 * 3600
    printed = [json.loads(line) for line in lines]
    assert [record["source"] for record in printed] == [row["source"] for row in predictions[::2]]
    assert all((out / record["heatmaps"]["PNEUMONIA"]).is_file() for record in printed)
    assert (out / "failures.csv").is_file()
    assert "octray report" in (out / "report.html").read_text(encoding="utf-8")


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_waits_until_the_results_are_written(number: signal.Signals) -> None:
    written = []

    def write() -> None:
        with delayed_interrupts():
            signal.raise_signal(number)
            written.append("report")

    with pytest.raises(KeyboardInterrupt):
        write()
    assert written == ["report"]


def test_an_interrupt_just_before_they_are_held_back_leaves_all_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    install = signal.signal

    def install_and_be_interrupted(number: int, handler: Any) -> Any:
        found = install(number, handler)
        if handler not in handlers:
            raise KeyboardInterrupt
        return found

    monkeypatch.setattr(signal, "signal", install_and_be_interrupted)
    with pytest.raises(KeyboardInterrupt), delayed_interrupts():
        pass
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers


def test_objects_without_an_image_have_a_state_of_their_own_and_are_no_failures(
    bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    studies, out = tmp_path / "studies", tmp_path / "results"
    studies.mkdir()
    (studies / "image.dcm").write_bytes(make_dicom(StudyInstanceUID="1.2.1"))
    report = {"PixelData": None, "SOPClassUID": BasicTextSRStorage}
    (studies / "report.dcm").write_bytes(make_dicom(StudyInstanceUID="1.2.1", **report))
    (studies / "alone.dcm").write_bytes(
        make_dicom(StudyInstanceUID="1.2.2", PixelData=None, SOPClassUID=GrayscaleSoftcopyPresentationStateStorage)
    )
    (studies / "@eaDir" / "image.dcm").mkdir(parents=True)
    (studies / "@eaDir" / "image.dcm" / "SYNOINDEX_MEDIA_INFO").write_text("x")
    (studies / "Thumbs.db").write_bytes(b"x")
    given = ["score", str(studies), "--bundle", str(bundle.path), "--out", str(out), "--json"]
    assert main(given) == 0
    said = capsys.readouterr()
    assert "Files or frames not scored: 0." in said.err
    assert "Files without an image by their kind (reports, presentation states and the like): 2." in said.err
    assert "Skipped what operating systems and network drives leave behind: 1 @eaDir, 1 Thumbs.db.\n" in said.err
    states = {line["source"]: line["state"] for line in map(json.loads, said.out.splitlines()) if "reason" in line}
    assert states == {"alone.dcm": "no_image", "report.dcm": "no_image"}
    found = [(row["source"], row["frame_number"], row["state"], row["reason"]) for row in rows(out / "failures.csv")]
    assert found == [("alone.dcm", "", "no_image", "no_image"), ("report.dcm", "", "no_image", "no_image")]
    report_page = (out / "report.html").read_text(encoding="utf-8")
    assert "1.2.1" in report_page
    assert "1.2.2" not in report_page
    assert "alone.dcm" not in report_page
    before = contents(out)
    assert main(given) == 0
    assert contents(out) == before
    (studies / "cut.dcm").write_bytes(make_dicom(StudyInstanceUID="1.2.3", PixelData=None))
    assert main(given) == 1
    for name in ("cut.dcm", "image.dcm"):
        (studies / name).unlink()
    assert main(given) == 0


def test_a_reason_that_holds_for_every_frame_of_a_file_is_one_row(bundle: Bundle, tmp_path: Path) -> None:
    studies, out = tmp_path / "studies", tmp_path / "results"
    studies.mkdir()
    frames = np.random.default_rng(0).integers(0, 255, (9, 40, 50), np.uint8)
    (studies / "us.dcm").write_bytes(make_dicom(frames, Modality="US", StudyInstanceUID="1.2.1"))
    (studies / "x.dcm").write_bytes(make_dicom(StudyInstanceUID="1.2.1"))
    assert main(["score", str(studies), "--bundle", str(bundle.path), "--out", str(out)]) == 1
    (row,) = rows(out / "failures.csv")
    assert (row["source"], row["frame_number"], row["state"], row["reason"]) == ("us.dcm", "", "not_scorable", "wrong_modality")
    (trace,) = (json.loads(path.read_bytes()) for path in (out / "traces").iterdir())
    assert [one["frame_number"] for one in trace["not_scored"]] == [None]
