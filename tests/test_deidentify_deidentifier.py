"""Folders of files: every file ends written and verified, or refused with a reason; nothing of the original names is left."""

import hashlib
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw
from pydicom import dcmread

from pipeline.deidentify import crosswalk
from pipeline.deidentify.deidentifier import Deidentifier, FolderResult, Plan, deidentify_folder
from pipeline.deidentify.instance import deidentify_bytes
from pipeline.deidentify.profile import Keep, Options, Rectangle, RefusalReason
from pipeline.errors import InputError, Reason
from pipeline.imaging.dicom.dataset import parse
from pipeline.imaging.dicom.decoding import stored_values
from pipeline.imaging.dicom.layout import read_layout
from pipeline.imaging.identity import stored_sha256
from pipeline.imaging.sources import discover
from pipeline.progress import silent
from pipeline.settings import FRAME_SECONDS, Limits, Reading, WorkerLimits
from tests.builders import make_dicom, make_zip
from tests.identified import SECRETS, SOURCE, make_identified, write_key
from tests.worker_tasks import deidentify_unless_named, deidentify_without_a_folder, fail

BASIC = Options()


@pytest.fixture
def studies(tmp_path: Path) -> Path:
    """Two instances of one patient, a picture, a damaged file and a hidden one, below names that say who it is."""
    write_key(tmp_path / "keys" / "my.key")
    folder = tmp_path / "Müller Jörg 19610317"
    (folder / "Whitfield").mkdir(parents=True)
    (folder / "Whitfield" / "MRN-778812.dcm").write_bytes(make_identified())
    (folder / "source.dcm").write_bytes(make_identified(SOPInstanceUID=SOURCE))
    (folder / "photo.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(600))
    (folder / "broken.dcm").write_bytes(make_identified()[:-50])
    for path in folder.rglob("*.*"):
        os.utime(path, (1.6e9, 1.6e9))
    return folder


def run(source: Path, out: Path, options: Options = BASIC) -> FolderResult:
    return deidentify_folder([source], Plan(out, out.parent / "keys" / "my.key", options), silent)


def tree(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def entries(out: Path) -> list[crosswalk.Entry]:
    key = out.parent / "keys" / "my.key"
    return list(crosswalk.read_crosswalk(crosswalk.crosswalk_path(key), crosswalk.read_key(key)))


def test_files_are_written_or_refused_and_none_is_lost(studies: Path, tmp_path: Path) -> None:
    result = run(studies, tmp_path / "out")
    assert set(tree(tmp_path / "out")) == set(result.names)
    assert (len(result.names), result.patients) == (2, 1)
    assert {one.source: one.reason for one in result.refused} == {
        "photo.png": RefusalReason.NOT_DICOM,
        "broken.dcm": Reason.TRUNCATED,
    }


def test_neither_names_nor_bytes_say_who_it_was(studies: Path, tmp_path: Path) -> None:
    run(studies, tmp_path / "out", Options(frozenset({Keep.DATES, Keep.PATIENT, Keep.DESCRIPTORS})))
    for path in (tmp_path / "out").rglob("*"):
        assert not [text for text in SECRETS if text in str(path.relative_to(tmp_path))]
        assert not [text for text in SECRETS if path.is_file() and text.encode("iso-8859-1") in path.read_bytes()]


def test_references_between_files_hold(studies: Path, tmp_path: Path) -> None:
    result = run(studies, tmp_path / "out")
    made = [dcmread(tmp_path / "out" / name) for name in result.names]
    referenced = {
        str(element.value) for one in made for element in one.iterall() if element.keyword == "ReferencedSOPInstanceUID"
    }
    assert referenced <= {str(one.SOPInstanceUID) for one in made}
    assert len({str(one.StudyInstanceUID) for one in made}) == 1


def test_a_second_run_changes_nothing(studies: Path, tmp_path: Path) -> None:
    first = run(studies, tmp_path / "out")
    before, known = tree(tmp_path), entries(tmp_path / "out")
    assert run(studies, tmp_path / "out") == first
    assert tree(tmp_path) == before
    assert entries(tmp_path / "out") == known


def test_another_run_with_the_key_gives_the_same_files(studies: Path, tmp_path: Path) -> None:
    run(studies, tmp_path / "out")
    run(studies / "Whitfield", tmp_path / "other")
    assert tree(tmp_path / "other").items() < tree(tmp_path / "out").items()


def test_the_crosswalk_leads_back_and_stands_outside(studies: Path, tmp_path: Path) -> None:
    result = run(studies, tmp_path / "out", Options(frozenset({Keep.DATES})))
    found = {entry["name"]: entry for entry in entries(tmp_path / "out") if "name" in entry}
    assert found.keys() == set(result.names)
    assert {entry["patient_id"] for entry in found.values()} == {"MRN-778812"}
    assert {entry["sha256"] for entry in found.values()} <= set(tree(studies).values())
    assert {entry["offset_days"] for entry in found.values()} == {
        crosswalk.read_key(tmp_path / "keys" / "my.key").offset_days("MRN-778812")
    }
    reasons = {Path(entry["path"]).name: entry["reason"] for entry in entries(tmp_path / "out") if "reason" in entry}
    assert reasons == {"photo.png": "not_dicom", "broken.dcm": "truncated"}
    assert [path.suffix for path in (tmp_path / "out").rglob("*") if path.is_file()] == [".dcm", ".dcm"]


def test_two_files_with_one_uid_never_replace_each_other(tmp_path: Path) -> None:
    source = tmp_path / "in"
    source.mkdir()
    content = make_dicom()
    (source / "a.dcm").write_bytes(content)
    (source / "b.dcm").write_bytes(content)
    (source / "c.dcm").write_bytes(content.replace(b"Doe^Jane", b"Doe^June"))
    result = run(source, tmp_path / "out")
    assert len(set(result.names)) == 1
    assert [(one.source, one.reason) for one in result.refused] == [("c.dcm", RefusalReason.SAME_UID)]
    again = run(source / "c.dcm", tmp_path / "out")
    assert [one.reason for one in again.refused] == [RefusalReason.SAME_UID]


def test_a_second_run_reads_no_file_again(studies: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, before = run(studies, tmp_path / "out"), tree(tmp_path / "out")
    monkeypatch.setattr("pipeline.deidentify.deidentifier.deidentify_file", fail)
    assert run(studies, tmp_path / "out") == first
    assert tree(tmp_path / "out") == before
    os.utime(studies / "source.dcm")
    assert [one.reason for one in run(studies, tmp_path / "out").refused] == ["truncated", "not_dicom", "decode_failed"]


def noted(path: Path) -> int:
    """How many files were noted."""
    with closing(sqlite3.connect(path)) as database:
        return int(database.execute("SELECT count(*) FROM octray_units").fetchone()[0])


def shorten(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize(
    "spoil",
    [
        lambda out, key: next(out.rglob("*.dcm")).unlink(),
        lambda out, key: shorten(next(out.rglob("*.dcm"))),
        lambda out, key: key.with_name("my.key.crosswalk").unlink(),
        lambda out, key: key.with_name("my.key.done").unlink(),
        lambda out, key: shorten(key.with_name("my.key.done")),
    ],
    ids=["file lost", "file altered", "crosswalk lost", "notes lost", "notes cut"],
)
def test_what_was_lost_is_made_again(spoil: Callable[[Path, Path], None], studies: Path, tmp_path: Path) -> None:
    first, before, known = run(studies, tmp_path / "out"), tree(tmp_path / "out"), entries(tmp_path / "out")
    for _ in range(2):
        spoil(tmp_path / "out", tmp_path / "keys" / "my.key")
        assert run(studies, tmp_path / "out") == first
        assert tree(tmp_path / "out") == before
        assert entries(tmp_path / "out") == known


def test_a_key_is_free_again_if_the_notes_beside_it_cannot_be_used(studies: Path, tmp_path: Path) -> None:
    notes = tmp_path / "keys" / "my.key.done"
    notes.write_bytes(bytes(200))
    with pytest.raises(InputError, match=r"The my.key.done that is there was not made by octray. Move it away."):
        run(studies, tmp_path / "out")
    notes.unlink()
    assert len(run(studies, tmp_path / "out").names) == 2


def test_other_options_make_every_file_again(studies: Path, tmp_path: Path) -> None:
    dates, basic = Options(frozenset({Keep.DATES, Keep.PATIENT})), tmp_path / "out"
    run(studies, basic)
    first = tree(basic)
    run(studies, basic, dates)
    assert tree(basic).keys() == first.keys()
    assert not set(tree(basic).values()) & set(first.values())
    run(studies, basic)
    assert tree(basic) == first


def test_a_file_that_was_just_written_is_not_noted_since_it_may_change_and_look_the_same(studies: Path, tmp_path: Path) -> None:
    (studies / "source.dcm").write_bytes(make_identified(SOPInstanceUID=SOURCE))
    run(studies, tmp_path / "out")
    assert noted(tmp_path / "keys" / "my.key.done") == 3


def test_the_notes_of_what_was_done_name_nobody(studies: Path, tmp_path: Path) -> None:
    run(studies, tmp_path / "out")
    notes = tmp_path / "keys" / "my.key.done"
    assert notes.stat().st_mode & 0o077 == 0
    assert noted(notes) == 4
    assert not [text for text in SECRETS if text.encode() in notes.read_bytes()]


def test_any_number_of_workers_writes_what_one_process_does(studies: Path, tmp_path: Path) -> None:
    for number in range(12):
        (studies / f"{number}.dcm").write_bytes(make_identified(SOPInstanceUID=f"{SOURCE}.{number}", PatientID=f"MRN-{number}"))
    key = tmp_path / "keys" / "my.key"
    runs = {count: deidentify_folder([studies], Plan(tmp_path / str(count), key), silent, workers=count) for count in (1, 2, 3)}
    assert runs[1] == runs[2] == runs[3]
    assert tree(tmp_path / "1") == tree(tmp_path / "2") == tree(tmp_path / "3")
    made = [
        deidentify_bytes(path.read_bytes(), crosswalk.read_key(key), BASIC, Limits())
        for path in sorted(studies.rglob("*.dcm"))
        if path.name != "broken.dcm"
    ]
    assert {one.name: hashlib.sha256(one.content).hexdigest() for one in made} == tree(tmp_path / "2")
    assert runs[2].names == tuple(one.name for one in made)


def test_a_file_on_which_the_decoder_crashes_or_hangs_is_refused_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.deidentify.deidentifier.deidentify_file", deidentify_unless_named)
    source, out = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    for number, name in enumerate(["a", "crash", "b", "hang", "c"]):
        (source / f"{name}.dcm").write_bytes(make_dicom(SOPInstanceUID=f"1.2.{number}"))
    monkeypatch.setenv(FRAME_SECONDS, "0.4")
    plan = Plan(out, tmp_path / "my.key")
    for _ in range(2):
        result = deidentify_folder([source], plan, silent)
        assert len(result.names) == len(tree(out)) == 3
        assert [(one.source, one.reason) for one in result.refused] == [
            ("crash.dcm", Reason.DECODER_CRASH),
            ("hang.dcm", Reason.TIME_LIMIT),
        ]
    monkeypatch.undo()
    assert len(deidentify_folder([source], plan, silent).names) == 5


def test_a_file_is_allowed_the_time_and_memory_of_its_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = make_dicom()
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.dcm").write_bytes(content)
    monkeypatch.setattr("pipeline.deidentify.deidentifier.worker_limits", lambda: WorkerLimits(worker_bytes=1))
    limits = Limits(file_bytes=len(content))
    result = deidentify_folder([tmp_path / "in"], Plan(tmp_path / "out", tmp_path / "my.key"), silent, Reading(limits))
    assert len(result.names) == 1


def test_a_file_that_could_not_be_opened_is_tried_again(tmp_path: Path) -> None:
    source, out = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    (source / "a.dcm").symlink_to(source / "b.dcm")
    assert [one.reason for one in run(source, out).refused] == [Reason.MISSING]
    (source / "b.dcm").write_bytes(make_dicom())
    assert run(source, out).refused == ()


def test_a_folder_that_cannot_be_written_is_said_and_refuses_no_file(
    studies: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.deidentify.deidentifier.deidentify_file", deidentify_without_a_folder)
    with pytest.raises(InputError, match=r"A new file cannot be written: No such file or directory\. Name another"):
        run(studies, tmp_path / "out")
    assert entries(tmp_path / "out") == []


@pytest.mark.slow
def test_text_is_given_the_time_to_be_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("rapidocr")
    picture = Image.new("L", (400, 200), 40)
    ImageDraw.Draw(picture).text((20, 20), "WHITFIELD ANN", fill=255, font_size=40)
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.dcm").write_bytes(make_dicom(np.asarray(picture), BurnedInAnnotation="YES"))
    plan = Plan(tmp_path / "out", tmp_path / "my.key", Options(clean_pixels=True))
    monkeypatch.setenv(FRAME_SECONDS, "0.1")
    result = deidentify_folder([tmp_path / "in"], plan, silent)
    made = dcmread(tmp_path / "out" / result.names[0])
    assert (made.BurnedInAnnotation, set(np.unique(made.pixel_array))) == ("NO", {0, 40})


def test_sources_that_overlap_are_read_once(studies: Path, tmp_path: Path) -> None:
    plan = Plan(tmp_path / "out", tmp_path / "my.key")
    result = deidentify_folder([studies, studies / "Whitfield", studies], plan, silent)
    assert (len(result.names), len(result.refused)) == (2, 2)


OTHER_FILES = {
    "a.png": b"\x89PNG\r\n\x1a\n",
    "a.jpg": b"\xff\xd8\xff\xe0",
    "a.tif": b"II*\0",
    "heidelberg.vol": b"HSF-OCT-103\0",
    "heidelberg.e2e": b"CMDb\0MDbMData\0",
    "topcon.fda": b"FOCTFDA",
    "topcon.fds": b"FOCTFDS",
    "PWhitfield_Macular Cube 512x128_1-1-2019_10-11-12_OD_sn1_cube_z.img": b"\0\1\2\3",
    "letter.docx": make_zip({"[Content_Types].xml": b"<x/>", "word/document.xml": b"Whitfield"}),
    "empty": b"",
}


def test_files_that_are_not_dicom_are_refused_whatever_they_are(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for name, head in OTHER_FILES.items():
        padding = b"Whitfield^Ann MRN-778812".ljust(700_000, b"\0") if head and not name.endswith("docx") else b""
        (tmp_path / "in" / name).write_bytes(head + padding)
    result = run(tmp_path / "in", tmp_path / "out")
    assert {one.source: one.reason for one in result.refused} == dict.fromkeys(OTHER_FILES, RefusalReason.NOT_DICOM)
    assert tree(tmp_path / "out") == {}


def test_real_device_files_are_refused(shared_data: Path, tmp_path: Path) -> None:
    result = run(shared_data / "oct-spectralis-vol", tmp_path / "out")
    assert {Path(one.source).suffix: one.reason for one in result.refused}[".vol"] == RefusalReason.NOT_DICOM
    assert result.names == ()


def test_every_member_of_an_archive_is_written_or_refused(tmp_path: Path) -> None:
    good = make_dicom(SOPInstanceUID="1.2.1")
    packed = make_zip({"locked": good})
    flags = packed.index(b"PK\x01\x02") + 8
    members = {
        "Doe/Jane/image.dcm": good,
        "Doe/picture.png": OTHER_FILES["a.png"],
        "Doe/heidelberg.vol": OTHER_FILES["heidelberg.vol"],
        "Doe/cut.dcm": good[:-50],
        "../../out.dcm": good,
        "inner.zip": make_zip({"Doe.dcm": make_dicom(SOPInstanceUID="1.2.2"), "notes.txt": b"Jane"}),
        "locked.zip": packed[:flags] + b"\x01\x00" + packed[flags + 2 :],
        "broken.zip": packed[:40],
    }
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "Doe.zip").write_bytes(make_zip(members))
    for _ in range(2):
        result = run(tmp_path / "in", tmp_path / "out")
        assert len(result.names) == len(tree(tmp_path / "out")) == 2
        assert {one.source.removeprefix("Doe.zip/"): one.reason for one in result.refused} == {
            "Doe/picture.png": RefusalReason.NOT_DICOM,
            "Doe/heidelberg.vol": RefusalReason.NOT_DICOM,
            "Doe/cut.dcm": Reason.TRUNCATED,
            r"\x2e\x2e/\x2e\x2e/out.dcm": Reason.UNSAFE_PATH,
            "inner.zip/notes.txt": RefusalReason.NOT_DICOM,
            "locked.zip/locked": Reason.UNSUPPORTED_ENCODING,
            "broken.zip": Reason.DECODE_FAILED,
        }
    assert {entry["alias"] for entry in entries(tmp_path / "out") if "reason" in entry} == {one.alias for one in result.refused}


def test_a_file_that_fails_the_verifier_is_not_left(tmp_path: Path) -> None:
    source = tmp_path / "in"
    source.mkdir()
    pixels = np.frombuffer(b"Whitfield".ljust(16), np.uint8).reshape(4, 4)
    (source / "a.dcm").write_bytes(make_dicom(pixels, PatientName="Whitfield^Ann"))
    result = run(source, tmp_path / "out")
    assert [one.reason for one in result.refused] == [RefusalReason.IDENTITY_LEFT]
    assert tree(tmp_path / "out") == {}


@pytest.mark.parametrize(
    ("out", "key", "message"),
    [
        ("in/out", "my.key", "inside the sources"),
        ("in", "my.key", "inside the sources"),
        ("out", "out/my.key", "inside the output folder"),
        ("", "my.key", "lies inside the output folder"),
    ],
)
def test_places_that_would_mix_old_and_new_are_refused(tmp_path: Path, out: str, key: str, message: str) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.dcm").write_bytes(make_dicom())
    with pytest.raises(InputError, match=message):
        deidentify_folder([tmp_path / "in"], Plan(tmp_path / out, tmp_path / key), silent)
    assert set(tree(tmp_path)) == {"in/a.dcm"}


def test_an_empty_folder_is_said(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    with pytest.raises(InputError, match="The sources contain no file"):
        run(tmp_path / "in", tmp_path / "out")


def test_two_runs_with_one_key_do_not_meddle(studies: Path, tmp_path: Path) -> None:
    plan = Plan(tmp_path / "out", tmp_path / "my.key")
    with Deidentifier(plan), pytest.raises(InputError, match=r"Another octray uses the key of my.key.crosswalk"):
        deidentify_folder([studies], plan, silent)
    assert len(deidentify_folder([studies], plan, silent).names) == 2


def test_an_output_that_is_a_file_is_refused(studies: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.write_text("mine")
    with pytest.raises(InputError, match=r"out is a file\. The output must be a folder"):
        run(studies, out)
    assert out.read_text() == "mine"


def test_what_a_killed_run_left_is_removed(studies: Path, tmp_path: Path) -> None:
    part = tmp_path / "out" / ".F0123456789ABCDE.dcm.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(b"half")
    run(studies, tmp_path / "out")
    assert not part.exists()


@pytest.mark.slow
def test_a_killed_run_leaves_whole_files_and_the_next_one_ends_it(tmp_path: Path) -> None:
    source, out, key = tmp_path / "in", tmp_path / "out", tmp_path / "keys" / "my.key"
    source.mkdir()
    for number in range(300):
        (source / f"{number}.dcm").write_bytes(make_dicom())
    command = [sys.executable, "-m", "pipeline.cli.main", "deidentify", str(source), "--out", str(out), "--key", str(key)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    for _ in range(600):
        if len(list(out.rglob("*.dcm"))) > 5:
            break
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    written = [path for path in out.rglob("*.dcm") if not path.name.startswith(".")]
    assert 5 < len(written) < 300
    assert all(dcmread(path).PatientIdentityRemoved == "YES" for path in written)
    assert len(run(source, out).names) == 300
    assert len(tree(out)) == 300
    assert {entry["name"] for entry in entries(out)} == set(tree(out))


def stored(path: Path, is_corner_blank: bool = False) -> list[str]:
    """The hashes of the stored values of each frame, its first pixel set to 0 if asked; nothing for a file without pixels."""
    dataset, syntax, _ = parse(path.read_bytes(), Limits())
    if "PixelData" not in dataset:
        return []
    frames = [frame.copy() for frame in stored_values(dataset, read_layout(dataset, syntax, Limits()), Reading())]
    for frame in frames if is_corner_blank else ():
        frame[0, 0] = 0
    return [stored_sha256(frame) for frame in frames]


def samples_by_entry(out: Path) -> dict[str, str]:
    return {Path(entry["path"]).name: entry["name"] for entry in entries(out) if "name" in entry}


@pytest.mark.parametrize("options", [BASIC, Options(frozenset(Keep))], ids=["basic", "everything kept"])
def test_public_samples_end_written_or_refused(shared_data: Path, tmp_path: Path, options: Options) -> None:
    source, out = shared_data / "dicom-samples" / "files", tmp_path / "out"
    result = run(source, out, options)
    found = len(list(discover(source)))
    assert len(result.names) + len(result.refused) == found
    assert len(result.names) >= 50
    codes = {*Reason, *RefusalReason} - {RefusalReason.IDENTITY_LEFT}
    assert {one.reason for one in result.refused} <= codes
    for original, name in samples_by_entry(out).items():
        assert stored(out / name) == stored(source / original), original


def test_the_stored_values_of_public_samples_stay_where_rectangles_are_blanked(shared_data: Path, tmp_path: Path) -> None:
    source, out = shared_data / "dicom-samples" / "files", tmp_path / "out"
    run(source, out, Options(rectangles=(Rectangle(0, 0, 1, 1),)))
    written = samples_by_entry(out)
    assert sum(len(stored(out / name)) for name in written.values()) > 150
    assert {original for original, name in written.items() if stored(source / original, True) != stored(out / name)} == set()
