import argparse
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.cli import inspect
from pipeline.errors import InputError
from tests.builders import make_dicom


def run(*arguments: object) -> int:
    parser = argparse.ArgumentParser()
    inspect.add_arguments(parser)
    return inspect.run(parser.parse_args([str(argument) for argument in arguments]))


def test_one_object_a_frame_and_one_an_unreadable_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    volume = np.arange(2 * 6 * 5, dtype=np.uint8).reshape(2, 6, 5)
    (tmp_path / "a.dcm").write_bytes(make_dicom(volume, Modality="OPT", ImageLaterality="R", PixelSpacing=[0.5, 0.25]))
    (tmp_path / "b.dcm").write_text("no image")
    assert run(tmp_path, "--json") == 1
    first, second, unreadable = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert (first["frame_number"], second["frame_number"]) == (1, 2)
    del second["frame_number"], second["pixel_sha256"], second["study_instance_uid"], second["series_instance_uid"]
    del second["sop_instance_uid"], second["min"], second["max"]
    assert second == {
        "source": "a.dcm",
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
    assert first["min"] == 0
    assert first["max"] == pytest.approx(29 / 255, abs=1e-5)
    assert unreadable["source"] == "b.dcm"
    assert unreadable["reason"] == "not_an_image"
    assert unreadable["message"].startswith("The file is not an image")


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
    with pytest.raises(InputError, match="There is no file in what was given"):
        run(tmp_path)
    (tmp_path / "a.dcm").write_text("no image")
    with pytest.raises(InputError, match="No frame could be read: 1 unreadable files"):
        run(tmp_path)
    assert capsys.readouterr().out.startswith("a.dcm  UNREADABLE  not_an_image: The file is not an image")
