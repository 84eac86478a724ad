"""One file as the index sees it: every frame, the gate's verdict, the hash of its bytes and that of its patient."""

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.errors import Reason
from pipeline.imaging.files.study_file import Refusal
from pipeline.imaging.sources import StudyFile
from pipeline.ingest.file_reader import (
    ReadFile,
    ReadFrame,
    collect,
    from_json,
    journal_key,
    read_file,
    to_json,
)
from pipeline.ingest.patients import hash_patient
from pipeline.settings import DEFAULT_READING, LENIENT, Check, Gate, Limits, Policy, Reading
from tests.builders import make_dicom, make_gate, make_key

READ = ReadFile(
    (
        ReadFrame(make_key(1), "a" * 64, 3, 4, "CR", "PA", "L", 7, -1.5, (Check.ROTATED, Check.CROPPED)),
        ReadFrame(make_key(2), "b" * 64, 3, 4, rejection=Refusal(Reason.BLANK, "It is blank.")),
    ),
    None,
    "c" * 64,
    "d" * 64,
)
FAILED = ReadFile(failure=Refusal(Reason.TRUNCATED, "It is cut off."), file_sha256="e" * 64)
VOLUME = np.random.default_rng(0).integers(0, 4096, (3, 80, 90), np.uint16)


def read(content: bytes, folder: Path, reading: Reading = DEFAULT_READING, gate: Gate = LENIENT) -> ReadFile:
    (folder / "study.dcm").write_bytes(content)
    return collect(read_file(StudyFile(folder / "study.dcm", "study.dcm"), reading, gate, b"key"))


def test_a_file_is_its_frames_its_hash_and_its_patient(tmp_path: Path) -> None:
    content = make_dicom(VOLUME, PatientID=" MRN-1 ", InstanceNumber=4)
    found = read(content, tmp_path)
    assert (found.failure, found.file_sha256) == (None, hashlib.sha256(content).hexdigest())
    assert found.patient == hash_patient("MRN-1", b"key") != hash_patient("MRN-1", b"other")
    assert [frame.key.frame_number for frame in found.frames] == [1, 2, 3]
    assert {(frame.rows, frame.columns, frame.modality, frame.instance_number) for frame in found.frames} == {(80, 90, "CR", 4)}


def test_a_picture_has_no_patient(tmp_path: Path) -> None:
    Image.fromarray(VOLUME[0].astype(np.uint8)).save(tmp_path / "a.png")
    assert collect(read_file(StudyFile(tmp_path / "a.png", "a.png"), DEFAULT_READING, LENIENT, b"key")).patient == ""


def test_the_gate_marks_frames_and_rejects_them_one_by_one(tmp_path: Path) -> None:
    volume = VOLUME.copy()
    volume[1] = 7
    reject = read(make_dicom(volume), tmp_path, gate=make_gate({Check.BLANK: Policy.REJECT}))
    assert [frame.rejection and frame.rejection.reason for frame in reject.frames] == [None, "blank", None]
    flag = read(make_dicom(volume), tmp_path, gate=make_gate({Check.BLANK: Policy.FLAG}))
    assert [frame.flags for frame in flag.frames] == [(), (Check.BLANK,), ()]
    assert not any(frame.rejection for frame in flag.frames)


def test_a_file_that_fails_half_way_is_not_used(tmp_path: Path) -> None:
    content = make_dicom(VOLUME)
    found = read(content[:-5000], tmp_path)
    assert found.frames == ()
    assert isinstance(found.failure, Refusal)
    assert found.failure.reason == "truncated"
    assert found.file_sha256 == hashlib.sha256(content[:-5000]).hexdigest()


def test_a_file_that_cannot_be_read_has_no_hash(tmp_path: Path) -> None:
    found = read(b"no image", tmp_path)
    assert (found.failure and found.failure.reason, found.file_sha256) == ("not_an_image", "")
    small = Reading(Limits(file_bytes=100))
    failure = read(make_dicom(VOLUME), tmp_path, small).failure
    assert failure
    assert failure.reason == "resource_limit"


ODD = ReadFile(failure=Refusal(Reason.TRUNCATED, "\udcff\0 is cut off."))


@pytest.mark.parametrize("read", [READ, FAILED, ReadFile(), ODD])
def test_what_was_read_comes_back_from_json(read: ReadFile) -> None:
    assert from_json(to_json(read)) == read


def test_limits_window_and_gate_decide_what_is_read() -> None:
    ways = [
        (DEFAULT_READING, LENIENT),
        (Reading(Limits(frame_pixels=5)), LENIENT),
        (Reading(voi_explanation="LUNG"), LENIENT),
        (DEFAULT_READING, make_gate({Check.BLANK: Policy.REJECT})),
        (DEFAULT_READING, make_gate(smallest_side=5)),
    ]
    assert len({journal_key(*way) for way in ways}) == len(ways)
    assert journal_key(Reading(), Gate()) == journal_key(Reading(), Gate())


@pytest.mark.parametrize(
    ("read", "final"),
    [
        (READ, True),
        (FAILED, True),
        (ReadFile(failure=Refusal(Reason.NOT_AN_IMAGE, "It is a letter.")), True),
        (replace(FAILED, file_sha256=""), False),
        (replace(FAILED, failure=Refusal(Reason.RESOURCE_LIMIT, "It is too large.")), True),
        (replace(FAILED, failure=Refusal(Reason.TIME_LIMIT, "It took long.")), False),
        (replace(FAILED, failure=Refusal(Reason.MEMORY_LIMIT, "It needs more memory than is available.")), False),
        (replace(FAILED, failure=Refusal(Reason.NOT_OPENED, "It could not be read.")), False),
        (replace(FAILED, failure=Refusal(Reason.DECODER_CRASH, "It crashed.")), False),
    ],
)
def test_what_another_run_may_do_better_is_not_final(read: ReadFile, final: bool) -> None:
    assert read.is_final is final
