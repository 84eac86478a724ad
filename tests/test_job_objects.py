"""DICOM objects are made of the bytes that were scored, and of no others."""

import io
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom import dcmread

from pipeline.cli.main import main
from pipeline.errors import Reason, UnreadableError
from pipeline.imaging.sources import StudyFile, discover
from pipeline.job.scorer import ObjectWriter, _Study, objects_of
from pipeline.model.bundle import Bundle
from pipeline.predictions import FramePrediction
from pipeline.results.dicom import Kind
from pipeline.score.predictor import Predictor
from tests.builders import make_bundle, make_dicom, make_zip, score_folder


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return make_bundle(tmp_path / "bundle")


def file_of(number: int) -> bytes:
    """An instance of a patient of this number, with pixels of its own."""
    pixels = np.random.default_rng(number).integers(0, 4000, (40, 50), np.uint16)
    uids = {"StudyInstanceUID": f"1.2.{number}", "SOPInstanceUID": f"1.2.{number}.1"}
    return make_dicom(pixels, PatientName=f"Patient^{number}", **uids)


def scored(studies: Path, bundle: Bundle) -> tuple[StudyFile, dict[str, Any]]:
    """Score the only file of a folder; return it and what its objects are made of."""
    (file,) = discover(studies)
    results = [item for item in score_folder(studies, Predictor(bundle)) if isinstance(item, FramePrediction)]
    return file, {"results": results, "manifest": bundle.manifest, "made_at": 1.7e9, "pictures": {}}


@pytest.mark.parametrize("is_archived", [False, True])
def test_a_file_that_is_as_it_was_gets_its_objects(is_archived: bool, bundle: Bundle, tmp_path: Path) -> None:
    content = file_of(1)
    (tmp_path / "studies").mkdir()
    (tmp_path / "studies" / "a").write_bytes(make_zip({"a.dcm": content}) if is_archived else content)
    file, known = scored(tmp_path / "studies", bundle)
    assert [name for name, _ in objects_of(file, kinds={Kind.SR}, **known)] == ["1.2.1.1-sr.dcm"]


def test_a_file_that_was_replaced_since_it_was_scored_gets_no_objects(bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "studies").mkdir()
    (tmp_path / "studies" / "a.dcm").write_bytes(file_of(1))
    file, known = scored(tmp_path / "studies", bundle)
    (tmp_path / "studies" / "a.dcm").write_bytes(file_of(2))
    with pytest.raises(UnreadableError, match="The file was replaced after it was scored. Score it again.") as caught:
        list(objects_of(file, kinds=set(Kind), **known))
    assert caught.value.reason == Reason.INCONSISTENT


def test_a_run_gives_no_patient_the_results_of_another_and_the_next_run_makes_up_for_it(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    studies, out = tmp_path / "studies", tmp_path / "results"
    studies.mkdir()
    (studies / "a.dcm").write_bytes(file_of(1))
    begin = ObjectWriter.begin

    def replace_then_begin(self: ObjectWriter, study: _Study) -> None:
        (studies / "a.dcm").write_bytes(file_of(2))
        begin(self, study)

    arguments = ["score", str(studies), "--bundle", str(bundle.path), "--out", str(out), "--dicom", "sr,pm,sc"]
    with monkeypatch.context() as patch:
        patch.setattr(ObjectWriter, "begin", replace_then_begin)
        assert main(arguments) == 1
    assert list((out / "dicom").glob("*")) == []
    assert main(arguments) == 0
    assert {str(dcmread(path).PatientName) for path in (out / "dicom").iterdir()} == {"Patient^2"}


def test_an_object_that_is_gone_is_made_again_with_the_time_and_the_bytes_that_it_had(bundle: Bundle, tmp_path: Path) -> None:
    studies, out = tmp_path / "studies", tmp_path / "results"
    studies.mkdir()
    (studies / "a.dcm").write_bytes(file_of(1))

    def score(out: Path) -> dict[str, bytes]:
        assert main(["score", str(studies), "--bundle", str(bundle.path), "--out", str(out), "--dicom", "sr,pm,sc"]) == 0
        return {path.name: path.read_bytes() for path in (out / "dicom").iterdir()}

    before = datetime.now().astimezone().replace(microsecond=0)
    first = score(out)
    (out / "dicom" / min(first)).unlink()
    time.sleep(1.1)  # DICOM times have whole seconds
    assert score(out) == first
    for one in map(dcmread, map(io.BytesIO, first.values())):
        said = datetime.strptime(one.ContentDate + one.ContentTime, "%Y%m%d%H%M%S").astimezone()
        assert before <= said <= datetime.now().astimezone()
    elsewhere = score(tmp_path / "elsewhere")
    uids = [{dcmread(io.BytesIO(one)).SOPInstanceUID for one in objects.values()} for objects in (first, elsewhere)]
    assert len(uids[0]) == len(uids[1]) == len(first)
    assert not uids[0] & uids[1]
