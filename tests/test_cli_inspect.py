import argparse
import hashlib
import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
from PIL import Image
from pydicom.uid import BasicTextSRStorage, JPEG2000Lossless

from pipeline.cli import inspect
from pipeline.errors import InputError
from tests.builders import make_dicom, make_encapsulated

TOO_SMALL = "The frame has 6 x 5 pixels; its shorter side needs at least 64. Export it at its full size."


def run(*arguments: object) -> int:
    parser = argparse.ArgumentParser()
    inspect.add_arguments(parser)
    return inspect.run(parser.parse_args([str(argument) for argument in arguments]))


def test_an_object_without_pixels_is_no_failure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "report.dcm").write_bytes(make_dicom(PixelData=None, SOPClassUID=BasicTextSRStorage))
    for name in ("Thumbs.db", "desktop.ini", "._report.dcm"):
        (tmp_path / name).write_bytes(b"x")
    assert run(tmp_path) == 0
    said = capsys.readouterr()
    assert said.out == (
        "report.dcm  NO IMAGE  no_image: The file is not an image but an object without pixels (Basic Text SR Storage): there "
        "is nothing to do with it.\n"
    )
    assert said.err == (
        "Skipped what operating systems and network drives leave behind: 1 AppleDouble (._*), 1 Thumbs.db, 1 desktop.ini.\n"
    )
    (tmp_path / "cut.dcm").write_bytes(make_dicom(PixelData=None))
    with pytest.raises(InputError, match="No frame could be read: 1 unreadable files"):
        run(tmp_path)
    (tmp_path / "image.dcm").write_bytes(make_dicom())
    assert run(tmp_path, "--json") == 1
    reasons = [json.loads(line).get("reason") for line in capsys.readouterr().out.splitlines()[-3:]]
    assert reasons == ["no_pixels", None, "no_image"]


def test_one_object_a_frame_and_one_an_unreadable_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    volume = np.arange(2 * 6 * 5, dtype=np.uint8).reshape(2, 6, 5)
    header = {"Modality": "OPT", "ImageLaterality": "R", "PixelSpacing": [0.5, 0.25], "BodyPartExamined": "EYE"}
    (tmp_path / "a.dcm").write_bytes(make_dicom(volume, InstanceNumber=3, **header))
    (tmp_path / "b.dcm").write_text("no image")
    assert run(tmp_path, "--json") == 1
    first, second, unreadable = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert (first["frame_number"], second["frame_number"]) == (1, 2)
    for unknown in ("pixel_sha256", "study_instance_uid", "series_instance_uid", "sop_instance_uid", "min", "max"):
        assert second.pop(unknown)
    assert second == {
        "source": "a.dcm",
        "frame_number": 2,
        "frames": 2,
        "sop_class_uid": "1.2.840.10008.5.1.4.1.1.1",
        "body_part": "EYE",
        "instance_number": 3,
        "stored_sha256": hashlib.sha256(volume[1]).hexdigest(),
        "instance_sha256": hashlib.sha256(volume).hexdigest(),
        "stored_min": 30,
        "stored_max": 59,
        "slice_position_mm": None,
        "flags": [{"check": "too_small", "message": TOO_SMALL}],
        "modality": "OPT",
        "view_position": "",
        "laterality": "R",
        "rows": 6,
        "columns": 5,
        "photometric_interpretation": "MONOCHROME2",
        "transfer_syntax_uid": "1.2.840.10008.1.2.1",
        "pixel_spacing_mm": [0.5, 0.25],
        "notes": [],
    }
    assert first["instance_sha256"] is None
    assert first["min"] == 0
    assert first["max"] == pytest.approx(29 / 255, abs=1e-5)
    assert unreadable["source"] == "b.dcm"
    assert unreadable["reason"] == "not_an_image"
    assert unreadable["message"].startswith("octray does not recognise the content")


def test_columns_for_people(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.dcm").write_bytes(make_dicom(ViewPosition="PA"))
    Image.new("L", (7, 9), 51).save(tmp_path / "b\x1b[31m.png")
    assert run(tmp_path / "a.dcm", tmp_path / "b\x1b[31m.png") == 0
    dicom, picture = capsys.readouterr().out.splitlines()
    assert dicom.startswith("a.dcm  frame 1  CR PA MONOCHROME2  48 x 40  spacing unknown  grey 0.000 to 1.000  sha256 ")
    assert dicom.endswith("The file names no window: the grey levels run from percentile 0.5 to 99.5 of the values.")
    assert picture.startswith("b\\x1b[31m.png  frame 1  -  9 x 7  spacing unknown  grey 0.200 to 0.200")


def test_nothing_readable_nothing_there_and_nothing_given(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(InputError, match="no file or folder gone"):
        run(tmp_path / "gone")
    with pytest.raises(InputError, match="No files were found"):
        run(tmp_path)
    (tmp_path / "a.dcm").write_text("no image")
    with pytest.raises(InputError, match="No frame could be read: 1 unreadable files"):
        run(tmp_path)
    assert capsys.readouterr().out.startswith("a.dcm  UNREADABLE  not_an_image: octray does not recognise the content")


def test_every_field_is_explained(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.dcm").write_bytes(make_dicom())
    run(tmp_path, "--json")
    page = (Path(__file__).parents[1] / "docs" / "integrators.md").read_text()
    table = page[page.index("`octray inspect --json` prints") : page.index("`octray score --json` prints")]
    named = {name for row in re.findall(r"^\| (`.*?) \|", table, re.MULTILINE) for name in re.findall(r"`(\w+)`", row)}
    assert named == set(json.loads(capsys.readouterr().out))


def test_what_a_check_finds_is_said_in_the_columns(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.dcm").write_bytes(make_dicom(Modality="MG"))
    run(tmp_path)
    assert "  WRONG_MODALITY: The frame is a mammogram" in capsys.readouterr().out


def test_frames_before_a_damaged_one_are_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pixels = np.zeros((2, 16, 16), np.uint8)
    good = imagecodecs.jpeg2k_encode(pixels[0])
    frames = [[good], [good[:60] + bytes(20) + good[80:]]]
    (tmp_path / "a.dcm").write_bytes(make_encapsulated(pixels, JPEG2000Lossless, frames))
    assert run(tmp_path, "--json") == 1
    first, failed = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert (first["frame_number"], first["frames"], first["instance_sha256"]) == (1, 2, None)
    assert (failed["source"], failed["reason"]) == ("a.dcm", "decode_failed")


@pytest.mark.usefixtures("interruptible")
def test_an_interrupt_says_nothing_of_what_is_kept(tmp_path: Path) -> None:
    content = make_dicom()
    for number in range(1000):
        (tmp_path / f"{number}.dcm").write_bytes(content)
    command = [sys.executable, "-m", "pipeline.cli.main", "inspect", str(tmp_path)]
    run = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=Path(__file__).parents[1])
    assert run.stdout
    assert "frame 1" in run.stdout.readline()
    run.send_signal(signal.SIGINT)
    said = run.communicate(timeout=60)[1]
    assert (run.returncode, said) == (130, "octray: Interrupted. The remaining files were not read.\n")
