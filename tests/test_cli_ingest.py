"""`octray phantom` and `octray ingest` as a user starts them: what they write, what they say, and their exit codes."""

import argparse
import io
import re
import shlex
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydicom.uid import BasicTextSRStorage

from pipeline.cli import ingest, phantom
from pipeline.errors import ConfigError, InputError
from pipeline.imaging.quality import ocr
from pipeline.ingest.index import load_index
from pipeline.settings import Check
from tests.builders import make_dicom, make_pixels


def run_phantom(*arguments: str) -> int:
    parser = argparse.ArgumentParser()
    phantom.add_arguments(parser)
    return phantom.run(parser.parse_args(arguments))


def run_ingest(*arguments: str) -> int:
    parser = argparse.ArgumentParser()
    ingest.add_arguments(parser)
    return ingest.run(parser.parse_args(arguments))


@pytest.fixture(scope="module")
def studies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("phantoms")
    assert run_phantom(str(out), "--modality", "oct", "--studies", "16", "--seed", "2") == 0
    return out


def test_phantoms_become_an_index(studies: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    index = tmp_path / "set"
    assert run_ingest(str(studies / "studies"), "--labels", str(studies / "labels.csv"), "--out", str(index)) == 0
    said = capsys.readouterr()
    assert said.out == ""
    assert "index set: " in said.err
    assert "DRUSEN" in said.err
    assert "16 files named by their path below the table's own folder" in said.err
    assert len(load_index(index).records) >= 48


def test_the_next_command_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_phantom(str(tmp_path), "--studies", "1") == 0
    assert "Next: octray ingest" in capsys.readouterr().err


def test_files_without_a_label_are_listed_and_are_no_failure(
    studies: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labels = str(studies / "labels.csv")
    assert run_ingest(str(studies), "--labels", labels, "--out", str(tmp_path), "--split", "60/20/20/0") == 0
    assert "1 quarantined: no_label" in capsys.readouterr().err
    assert [row.source for row in load_index(tmp_path).quarantine] == ["truth.json"]


def test_unreadable_files_give_exit_code_1_and_are_counted(
    studies: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "studies"
    folder.mkdir()
    first = next(studies.rglob("*.dcm"))
    (folder / "good.dcm").write_bytes(first.read_bytes())
    (folder / "text.dcm").write_text("not DICOM")
    assert run_ingest(str(folder), "--out", str(tmp_path / "index")) == 1
    assert "1 quarantined: not_an_image (listed in quarantine.csv)" in capsys.readouterr().err


def test_objects_without_an_image_and_what_systems_leave_behind_are_no_failures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The labels of the folders that a network drive makes are none."""
    for label in ("SICK", "WELL"):
        for number in range(8):
            folder = tmp_path / "in" / label / f"{number}"
            (folder / "@eaDir" / "a.png").mkdir(parents=True)
            pixels = (make_pixels(70, 70, ord(label[0]) + number) * 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / "a.png")
            (folder / "@eaDir" / "a.png" / "SYNOPHOTO_THUMB_SM.jpg").write_bytes((folder / "a.png").read_bytes())
        (tmp_path / "in" / label / "Thumbs.db").write_bytes(b"x")
    (tmp_path / "in" / "SICK" / "0" / "report").write_bytes(make_dicom(PixelData=None, SOPClassUID=BasicTextSRStorage))
    index = tmp_path / "index"
    assert run_ingest(str(tmp_path / "in"), "--label-from", "folder:1", "--out", str(index), "--split", "40/20/20/20") == 0
    said = capsys.readouterr().err
    assert "1 without an image by their kind (listed in quarantine.csv)" in said
    assert "Skipped what operating systems and network drives leave behind: 16 @eaDir, 2 Thumbs.db.\n" in said
    assert load_index(index).labels == ("SICK", "WELL")
    assert [(row.source, row.reason) for row in load_index(index).quarantine] == [("SICK/0/report", "no_image")]


def test_frames_with_several_labels_are_counted(studies: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = (studies / "labels.csv").read_text().splitlines()
    table = tmp_path / "labels.csv"
    file, *rest = rows[1].split(",")
    other = "DRUSEN" if rest[0] != "DRUSEN" else "DME"
    written = "\n".join([*rows, ",".join([file, other, *rest[1:]])])
    table.write_text(written.replace("studies/", ""))
    arguments = (str(studies / "studies"), "--labels", str(table), "--out", str(tmp_path / "set"))
    assert run_ingest(*arguments, "--patient-from", r"^([^/]+)/") == 0
    count = sum(record.source == file.removeprefix("studies/") for record in load_index(tmp_path / "set").records)
    said = " ".join(capsys.readouterr().err.split())
    assert f" {count} frames have more than one label. If that is right, train with task=multilabel; otherwise" in said


def test_repeated_pixels_are_told(studies: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = next(studies.rglob("*.dcm")).read_bytes()
    for name in ("A", "B"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "volume.dcm").write_bytes(content)
    with pytest.raises(InputError, match="has no example in the split"):
        run_ingest(str(tmp_path), "--label-from", "folder", "--out", str(tmp_path / "index"))
    assert run_ingest(str(tmp_path / "A"), str(tmp_path / "B"), "--out", str(tmp_path / "index")) == 0
    assert "have the same pixels as another; equal images are in the same split" in " ".join(capsys.readouterr().err.split())


def test_pictures_that_name_no_patient_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(3):
        Image.fromarray((make_pixels(seed=number) * 255).astype("u1")).save(tmp_path / f"p{number}_a.png")
    told = "3 frames name no patient: each of their studies counts as one patient"
    arguments = (str(tmp_path), "--out", str(tmp_path.parent / "index"))
    assert run_ingest(*arguments) == 0
    assert told in " ".join(capsys.readouterr().err.split())
    assert run_ingest(*arguments, "--patient-from", "^(p[0-9])_") == 0
    assert "name no patient" not in capsys.readouterr().err


def test_the_folder_that_is_the_label_is_named_and_what_looks_wrong_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Folders as people have them: label, patient, eye."""
    source = tmp_path / "s"
    for number in range(32):
        folder = source / ("CNV", "NORMAL")[number % 2] / f"p{number // 4}" / ("OD", "OS")[number // 2 % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray((make_pixels(seed=number) * 255).astype("u1")).save(folder / f"{number}.png")
    (source / "readme.txt").write_text("no picture")
    arguments = (
        str(source),
        "--out",
        str(tmp_path / "i"),
        "--patient-from",
        "/(p[0-9]+)/",
        "--split",
        "40/20/20/20",
        "--label-from",
    )
    with pytest.raises(InputError, match="each could be the label: folder:1 .2 names., folder:2"):
        run_ingest(*arguments, "folder")
    assert not (tmp_path / "i" / "index.json").exists()
    assert run_ingest(*arguments, "folder:1") == 0
    index, said = load_index(tmp_path / "i"), " ".join(capsys.readouterr().err.split())
    assert (index.labels, len(index.records)) == (("CNV", "NORMAL"), 32)
    assert [(row.source, row.reason) for row in index.quarantine] == [("readme.txt", "no_label")]
    assert "1 quarantined: no_label" in said
    assert "look like" not in said
    assert run_ingest(*arguments, "folder:3") == 0
    assert "The labels OD, OS look like eyes, not like findings." in " ".join(capsys.readouterr().err.split())
    with pytest.raises(InputError, match=r"has no example in the split .* The 8 labels look like patients"):
        run_ingest(*arguments, "folder:2")


def write_messy(folder: Path) -> Path:
    """DICOM, PNG, JPEG and a zip, patients in the names of files, and a table from a German Excel; 3 in 40 are sick."""
    (folder / "Röntgen").mkdir(parents=True)
    rows = ["Bild;Befund;Befunder"]
    with zipfile.ZipFile(folder / "Archiv.zip", "w") as archive:
        for number in range(40):
            kind = ("dcm", "png", "jpg")[number % 3]
            name = f"{number // 2:04d}_{number}.{kind}"
            pixels = make_pixels(seed=number)
            image = io.BytesIO(make_dicom((pixels * 4000).astype(np.uint16), PatientID="MRN"))
            if kind != "dcm":
                Image.fromarray((pixels * 255).astype("u1")).save(image := io.BytesIO(), "PNG" if kind == "png" else "JPEG")
            if number % 4:
                (folder / "Röntgen" / name).write_bytes(image.getvalue())
            else:
                archive.writestr(f"Export/{name}", image.getvalue())
            label = {0: "Ödem", 10: "ÖDEM", 20: "ödem "}.get(number, "normal")
            rows.append(f"{name};{label};Müller")
    rows.append("9999_0.png;normal;Müller")
    del rows[4]
    (folder / "Befunde.csv").write_bytes("\r\n".join(rows).encode("cp1252"))
    return folder / "Befunde.csv"


def test_a_messy_folder_becomes_an_index_by_what_the_messages_say(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = write_messy(tmp_path / "messy")
    arguments = [str(tmp_path / "messy"), "--labels", str(table), "--out", str(tmp_path / "index")]
    with pytest.raises(InputError, match="has no column file and label; .* --columns file=Bild,label=Befund") as caught:
        run_ingest(*arguments)
    arguments += shlex.split(str(caught.value)[str(caught.value).index("--columns") :])
    arguments += ["--patient-from", "([0-9]{4})_"]
    with pytest.raises(InputError, match="The label ÖDEM has no example in the split tune: it occurs in 1 patient") as caught:
        run_ingest(*arguments)
    assert "The labels ÖDEM (1 frames), Ödem (1 frames), ödem (1 frames) differ only in case" in str(caught.value)
    arguments += ["--merge-spellings"]
    with pytest.raises(InputError, match="ÖDEM has no example in the split test: it occurs in 3 patients. 4 splits") as caught:
        run_ingest(*arguments)
    arguments += re.findall(r"(--split) ([0-9/]+)", str(caught.value))[0]
    capsys.readouterr()
    assert run_ingest(*arguments) == 0
    said = capsys.readouterr().err
    for remark in (
        "Befunde.csv is not in UTF-8 and was read as Windows-1252",
        "Labels: 39 files named by the end of their path.",
        "1 rows of Befunde.csv name files that do not exist: 9999_0.png.",
        "1 files have no row in Befunde.csv and are not used: 0001_3.dcm.",
        "Spellings that were merged, with their rows: Ödem (1), ödem (1); into ÖDEM.",
        "Say so in the configuration: data.normal_label=normal.",
        "The label ÖDEM occurs in only 3 patients: 1 in train, 1 in tune, 1 in calibration.",
    ):
        assert remark in said
    assert "Müller" not in said
    index = load_index(tmp_path / "index")
    assert (len(index.records), index.labels) == (39, ("normal", "ÖDEM"))
    assert len({record.patient_key for record in index.records}) == 20
    assert {record.patient_key for record in index.records} == {f"{number:04d}" for number in range(20)}


def test_labels_come_from_one_place_only(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run_ingest("studies", "--labels", "a.csv", "--label-from", "folder", "--out", "index")
    assert "not allowed with argument" in capsys.readouterr().err


def test_a_wrong_split_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="must add up to 100"):
        run_ingest(str(tmp_path), "--out", str(tmp_path / "index"), "--split", "90/10/10/10")


def test_no_readable_study_writes_no_index(tmp_path: Path) -> None:
    (tmp_path / "text.dcm").write_text("not DICOM")
    with pytest.raises(InputError, match="no readable study"):
        run_ingest(str(tmp_path), "--out", str(tmp_path / "index"))
    assert not (tmp_path / "index" / "index.json").exists()


@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_says_how_to_go_on_and_leaves_no_process(tmp_path: Path) -> None:
    for number in range(1500):
        Image.fromarray((make_pixels(seed=number) * 255).astype("u1")).save(tmp_path / f"{number}.png")
    out = tmp_path / "index"
    command = [sys.executable, "-m", "pipeline.cli.main", "ingest", str(tmp_path), "--out", str(out)]
    run = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=Path(__file__).parents[1])
    while run.poll() is None and not (out / "journal.sqlite").exists():
        time.sleep(0.02)
    run.send_signal(signal.SIGINT)
    _, said = run.communicate(timeout=60)
    assert run.returncode == 130
    assert "What was read so far is kept: run the same command to continue." in " ".join(said.split())
    assert "Traceback" not in said
    assert not (out / "index.json").exists()
    assert run_ingest(str(tmp_path), "--out", str(out)) == 0
    assert len(load_index(out).records) == 1500


def test_what_a_kill_leaves_beside_the_journal_is_no_study(tmp_path: Path) -> None:
    for number in range(8):
        Image.fromarray((make_pixels(seed=number) * 255).astype("u1")).save(tmp_path / f"{number}.png")
    (tmp_path / "index").mkdir()
    (tmp_path / "index" / "journal.sqlite-wal").touch()
    assert run_ingest(str(tmp_path), "--out", str(tmp_path / "index")) == 0
    assert len(load_index(tmp_path / "index").records) == 8


def test_the_gate_of_a_configuration_is_asked(studies: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config, out = tmp_path / "small.yaml", str(tmp_path / "index")
    config.write_text("name: small\ndata: {modalities: [CR]}\nquality: {wrong_modality: reject}\n")
    with pytest.raises(InputError, match=r"no readable study in studies: of 16 files none can be used \(wrong_modality \d+\)"):
        run_ingest(str(studies / "studies"), "--out", out, "--config", str(config))
    config.write_text("name: small\ndata: {modalities: [CR]}\nquality: {wrong_modality: flag}\n")
    assert run_ingest(str(studies / "studies"), "--out", out, "--config", str(config)) == 0
    records = load_index(Path(out)).records
    assert f"{len(records)} frames flagged: wrong_modality" in " ".join(capsys.readouterr().err.split())
    assert all(Check.WRONG_MODALITY in record.flags for record in records)
    with pytest.raises(ConfigError, match="There is no configuration missing"):
        run_ingest(str(studies / "studies"), "--out", out, "--config", "missing.yaml")


def test_what_a_check_needs_is_asked_for_before_anything_is_read(
    studies: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ocr, "is_installed", lambda: False)
    (tmp_path / "text.yaml").write_text("name: text\nquality: {burned_in_text: reject}\n")
    with pytest.raises(ConfigError, match=r"quality\.burned_in_text needs text recognition: pip install"):
        run_ingest(str(studies / "studies"), "--out", str(tmp_path / "index"), "--config", str(tmp_path / "text.yaml"))
    assert not (tmp_path / "index").exists()


def test_the_limits_of_a_configuration_hold(studies: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "small.yaml").write_text("name: small\nlimits: {frame_pixels: 100}\n")
    with pytest.raises(InputError, match=r"of 16 files none can be used \(resource_limit 16\)"):
        run_ingest(str(studies / "studies"), "--out", str(tmp_path / "index"), "--config", str(tmp_path / "small.yaml"))


def test_an_index_that_was_decided_otherwise_is_replaced_and_that_is_told(
    studies: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [str(studies / "studies"), "--out", str(tmp_path / "index")]
    assert run_ingest(*arguments) == run_ingest(*arguments) == 0
    assert "was replaced" not in capsys.readouterr().err
    labels = ["--labels", str(studies / "labels.csv"), "--split", "60/20/20/0", "--seed", "3"]
    assert run_ingest(*arguments, *labels) == 0
    told = "The index that was here had other labels, shares, seed; it was replaced."
    assert told in " ".join(capsys.readouterr().err.split())
