"""Which files make a study, and how one sees that they changed."""

import io
from pathlib import Path
from zipfile import ZIP_DEFLATED, ZIP_STORED

import numpy as np
import pytest
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from pipeline.errors import Reason, UnreadableError
from pipeline.imaging.dicom.dataset import stated_study
from pipeline.imaging.sources import StudyFile, discover, read_frames_from_bytes
from pipeline.job.study_files import Grouping, StudyFiles, files_from_json, files_to_json
from tests.builders import make_dataset, make_dicom, make_zip


@pytest.fixture
def studies(tmp_path: Path) -> Path:
    """Two studies scattered over two folders, an archive, a picture, text and a link that leads out."""
    root = tmp_path / "studies"
    for folder in ("a", "b"):
        (root / folder).mkdir(parents=True)
        for number in (1, 2):
            (root / folder / f"{number}.dcm").write_bytes(make_dicom(StudyInstanceUID=f"1.2.{number}"))
    (root / "c.zip").write_bytes(make_zip({"3.dcm": make_dicom(StudyInstanceUID="1.2.1"), "x.txt": b"text"}))
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(root / "d.png")
    (root / "e.dcm").write_bytes(make_dicom(StudyInstanceUID=None))
    (root / "f.dcm").symlink_to(tmp_path / "outside.dcm")
    (tmp_path / "outside.dcm").write_bytes(make_dicom())
    return root


def grouped(root: Path, grouping: Grouping | None = None) -> list[StudyFiles]:
    return (grouping or Grouping()).studies(discover(root))


def test_files_of_one_study_come_together_wherever_they_lie(studies: Path) -> None:
    found = {study.key: [file.source for file in study.files] for study in grouped(studies)}
    assert found == {
        "study:1.2.1": ["a/1.dcm", "b/1.dcm", "c.zip/3.dcm"],
        "study:1.2.2": ["a/2.dcm", "b/2.dcm"],
        "file:c.zip/x.txt": ["c.zip/x.txt"],
        "file:d.png": ["d.png"],
        "file:e.dcm": ["e.dcm"],
        "file:f.dcm": ["f.dcm"],
    }


def test_files_are_the_same_after_they_were_stored(studies: Path) -> None:
    for study in grouped(studies):
        assert files_from_json(files_to_json(study, studies), studies) == study.files


def test_a_fingerprint_changes_with_the_files_of_its_study_alone(studies: Path) -> None:
    grouping = Grouping()
    before = {study.key: study.fingerprint for study in grouped(studies, grouping)}
    assert before == {study.key: study.fingerprint for study in grouped(studies)}
    (studies / "b" / "4.dcm").write_bytes(make_dicom(StudyInstanceUID="1.2.2"))
    after = {study.key: study.fingerprint for study in grouped(studies, grouping)}
    assert {key for key in after if after[key] != before[key]} == {"study:1.2.2"}


def stated(path: Path) -> str:
    (found,) = stated_study(StudyFile(path, path.name))
    return found.study_instance_uid


def test_the_study_of_a_deflated_file_is_found(tmp_path: Path) -> None:
    dataset = make_dataset(StudyInstanceUID="1.2.9")
    dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    dataset.save_as(tmp_path / "x.dcm", enforce_file_format=True)
    assert stated(tmp_path / "x.dcm") == "1.2.9"


def test_the_study_of_a_file_with_a_long_header_is_found(tmp_path: Path) -> None:
    dataset = make_dataset(StudyInstanceUID="1.2.9")
    dataset.add_new(0x00091010, "UN", bytes(2**17))
    dataset.add_new(0x00090010, "LO", "OCTRAY TEST")
    dataset.save_as(tmp_path / "x.dcm", enforce_file_format=True)
    assert stated(tmp_path / "x.dcm") == "1.2.9"


UID = "1.2.826.0.1.3680043.10.9999.79.123456"
WHOLE = len(UID) + len(UID) % 2
SYNTAXES = [ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian]


def with_uid_at(start: int, syntax: str) -> bytes:
    """A DICOM file in which the value of Study Instance UID begins at byte `start`, behind a private element of that size."""
    dataset = make_dataset(StudyInstanceUID=UID)
    dataset.file_meta.TransferSyntaxUID = syntax
    block = dataset.private_block(0x0009, "OCTRAY TEST", create=True)
    block.add_new(0x10, "OB", b"")
    start -= write(dataset).index(UID.encode())
    block.add_new(0x10, "OB", bytes(start))
    return write(dataset)


def write(dataset: Dataset) -> bytes:
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


@pytest.mark.parametrize("syntax", SYNTAXES)
def test_a_study_uid_is_whole_wherever_it_lies_in_its_file(tmp_path: Path, syntax: str) -> None:
    for behind in range(-WHOLE - 14, 6, 2):
        content = with_uid_at(2**16 + behind, syntax)
        assert content.index(UID.encode()) == 2**16 + behind
        (tmp_path / "x.dcm").write_bytes(content)
        assert stated(tmp_path / "x.dcm") == UID, behind


def test_patients_whose_study_uids_begin_alike_stay_apart(tmp_path: Path) -> None:
    content = with_uid_at(2**16 - 16, ExplicitVRLittleEndian)
    others = {name: content.replace(UID.encode(), UID[:-1].encode() + name.encode()) for name in "123"}
    for name, other in others.items():
        (tmp_path / f"{name}.dcm").write_bytes(other)
    for method in (ZIP_STORED, ZIP_DEFLATED):
        (tmp_path / f"{method}.zip").write_bytes(make_zip({f"{name}.dcm": other for name, other in others.items()}, method))
    found = {study.key: len(study.files) for study in grouped(tmp_path)}
    assert found == {f"study:{UID[:-1]}{name}": 3 for name in "123"}


def test_files_of_several_patients_are_no_study_even_if_they_share_its_uid(tmp_path: Path) -> None:
    patients = [
        ("P1", "Doe^Jane"),
        ("P2", "Roe^Jo"),
        ("p1 ", "Other"),
        ("P9", "Doe^Jane"),
        ("", ""),
        ("P3", ""),
        ("P2", "Roe^Jo"),
    ]
    for number, (patient_id, name) in enumerate(patients):
        content = make_dicom(StudyInstanceUID="1.2.3", PatientID=patient_id, PatientName=name)
        (tmp_path / f"{number}.dcm").write_bytes(content)
    found = {study.key: [file.source for file in study.files] for study in grouped(tmp_path)}
    assert found == {
        "study:1.2.3": ["0.dcm", "2.dcm", "3.dcm", "4.dcm"],
        "file:1.dcm": ["1.dcm"],
        "file:5.dcm": ["5.dcm"],
        "file:6.dcm": ["6.dcm"],
    }


@pytest.mark.parametrize("syntax", SYNTAXES)
def test_whose_study_it_is_is_read_from_the_start_and_from_the_whole(tmp_path: Path, syntax: str) -> None:
    for start in (2**12, 2**17):
        (tmp_path / "x.dcm").write_bytes(with_uid_at(start, syntax))
        assert list(stated_study(StudyFile(tmp_path / "x.dcm", "x.dcm"))) == [(UID, b"P1", b"DOE^JANE")]


@pytest.mark.parametrize("uid", ["0", "0.0", "0.0.0", "1", "1.2.840.10008.5.1.4.1.1.1", "1.2.840.10008.1.2.1"])
def test_placeholders_are_no_study(tmp_path: Path, uid: str) -> None:
    content = make_dicom(StudyInstanceUID=uid)
    (tmp_path / "x.dcm").write_bytes(content)
    assert stated(tmp_path / "x.dcm") == ""
    (frame,) = read_frames_from_bytes(content, "x.dcm")
    assert frame.key.study_instance_uid.startswith("2.25.")


@pytest.mark.parametrize("syntax", SYNTAXES)
def test_a_file_that_ends_within_its_study_uid_states_none_and_is_cut_off(tmp_path: Path, syntax: str) -> None:
    """The UID is not the last of the elements by their tags here, but by their places in the file."""
    content = with_uid_at(2**16 - 16, syntax)
    element = content.index(UID.encode()) - 8
    group = b"\x00\x08\x00\x01" if syntax == ExplicitVRBigEndian else b"\x08\x00\x01\x00"
    for edge in (content[: element + 8 + 16], content[:element] + group + content[element + 4 : element + 8 + 16]):
        (tmp_path / "x.dcm").write_bytes(edge)
        assert stated(tmp_path / "x.dcm") == ""
        with pytest.raises(UnreadableError) as caught:
            list(read_frames_from_bytes(edge, "x.dcm"))
        assert caught.value.reason is Reason.TRUNCATED


def test_what_lies_behind_whole_pixels_and_is_cut_off_is_left_out() -> None:
    """Elements in the wrong order, and bytes that are none: a UID among them is no UID, and the picture is read."""
    content = make_dicom(StudyInstanceUID=None)
    (plain,) = read_frames_from_bytes(content, "x.dcm")
    for behind in (
        b"\x20\0\x0d\0UI\x1a\x001.2.826",
        b"\x08\0\x01\0LO\0\0\x04\0\0\0FUZZ",
        b"\x10\0\x10\0PN\0\0\x0f\0\0\0Doe^Jane",
    ):
        (frame,) = read_frames_from_bytes(content + behind, "x.dcm")
        assert frame.pixel_sha256 == plain.pixel_sha256
        assert "StudyInstanceUID" in " ".join(frame.notes)
        assert frame.key.study_instance_uid.startswith("2.25.")


@pytest.mark.parametrize("content", [b"", b"text", make_dicom()[:200], make_dicom(StudyInstanceUID="")])
def test_what_states_no_study_is_one_of_its_own(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.dcm").write_bytes(content)
    assert stated(tmp_path / "x.dcm") == ""


def test_the_study_is_that_of_the_frames(tmp_path: Path, shared_data: Path) -> None:
    from pipeline.imaging.sources import read_frames

    compared = 0
    for file in discover(shared_data / "dicom-samples"):
        ((uid, _, _),) = stated_study(file)
        try:
            frame = next(read_frames(file), None)
        except UnreadableError:
            continue
        if uid and frame:
            assert frame.key.study_instance_uid == uid, file.source
            compared += 1
    assert compared > 60
