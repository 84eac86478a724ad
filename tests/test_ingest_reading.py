"""One file as the index sees it: every frame, the gate's verdict, the hash of its bytes and that of its patient."""

import hashlib
from pathlib import Path

import numpy as np
from PIL import Image

from pipeline.imaging.sources import StudyFile
from pipeline.ingest.patients import hash_patient
from pipeline.ingest.reading import Failure, How, ReadFile, collect, find_files, read_file
from pipeline.settings import Check, Limits, Policy, Reading
from tests.builders import make_dicom, make_gate

VOLUME = np.random.default_rng(0).integers(0, 4096, (3, 80, 90), np.uint16)


def read(content: bytes, folder: Path, how: How = How(salt=b"key")) -> ReadFile:  # noqa: B008
    (folder / "study.dcm").write_bytes(content)
    return collect(read_file(StudyFile(folder / "study.dcm", "study.dcm"), how))


def test_a_file_is_its_frames_its_hash_and_its_patient(tmp_path: Path) -> None:
    content = make_dicom(VOLUME, PatientID=" MRN-1 ", InstanceNumber=4)
    found = read(content, tmp_path)
    assert (found.failure, found.file_sha256) == (None, hashlib.sha256(content).hexdigest())
    assert found.patient == hash_patient("MRN-1", b"key") != hash_patient("MRN-1", b"other")
    assert [frame.key.frame_number for frame in found.frames] == [1, 2, 3]
    assert {(frame.rows, frame.columns, frame.modality, frame.instance_number) for frame in found.frames} == {(80, 90, "CR", 4)}


def test_a_picture_has_no_patient(tmp_path: Path) -> None:
    Image.fromarray(VOLUME[0].astype(np.uint8)).save(tmp_path / "a.png")
    assert collect(read_file(StudyFile(tmp_path / "a.png", "a.png"), How(salt=b"key"))).patient == ""


def test_the_gate_marks_frames_and_rejects_them_one_by_one(tmp_path: Path) -> None:
    volume = VOLUME.copy()
    volume[1] = 7
    reject = read(make_dicom(volume), tmp_path, How(gate=make_gate({Check.BLANK: Policy.REJECT})))
    assert [frame.rejection and frame.rejection.reason for frame in reject.frames] == [None, "blank", None]
    flag = read(make_dicom(volume), tmp_path, How(gate=make_gate({Check.BLANK: Policy.FLAG})))
    assert [frame.flags for frame in flag.frames] == [(), (Check.BLANK,), ()]
    assert not any(frame.rejection for frame in flag.frames)


def test_a_file_that_fails_half_way_is_not_used(tmp_path: Path) -> None:
    content = make_dicom(VOLUME)
    found = read(content[:-5000], tmp_path)
    assert found.frames == ()
    assert isinstance(found.failure, Failure)
    assert found.failure.reason == "truncated"
    assert found.file_sha256 == hashlib.sha256(content[:-5000]).hexdigest()


def test_a_file_that_cannot_be_read_has_no_hash(tmp_path: Path) -> None:
    (tmp_path / "study.dcm").write_text("no image")
    found = collect(read_file(StudyFile(tmp_path / "study.dcm", "study.dcm"), How()))
    assert (found.failure and found.failure.reason, found.file_sha256) == ("not_an_image", "")
    small = How(Reading(Limits(file_bytes=100)))
    failure = read(make_dicom(VOLUME), tmp_path, small).failure
    assert failure
    assert failure.reason == "resource_limit"


def test_files_are_found_once_and_what_is_no_study_is_left_out(tmp_path: Path) -> None:
    for name in ("one/a.png", "one/b.png", "one/labels.csv", "two/c.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    (tmp_path / "one" / "again.png").symlink_to(tmp_path / "one" / "a.png")
    asked: list[tuple[int, str]] = []

    def is_known(file_id: tuple[int, str], _: StudyFile) -> bool:
        asked.append(file_id)
        return False

    sources = [tmp_path / "one", tmp_path / "two", tmp_path / "one" / "b.png"]
    found = find_files(sources, [tmp_path / "two" / ".." / "one" / "labels.csv"], is_known)
    assert list(found) == [(0, "a.png"), (0, "b.png"), (1, "c.png")]
    assert {(0, "a.png"), (1, "c.png")} <= set(asked)
