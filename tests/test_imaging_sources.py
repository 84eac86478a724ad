import os
import pickle
import threading
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import chdir, contextmanager
from pathlib import Path
from zipfile import ZIP_STORED

import pytest
from PIL import Image
from pydicom.data import get_testdata_file
from pydicom.uid import MediaStorageDirectoryStorage

from pipeline.errors import InputError, Reason, UnreadableError
from pipeline.imaging.dicom.dataset import stated_study
from pipeline.imaging.guard import silence_decoders
from pipeline.imaging.sources import StudyFile, discover, discover_all, locate, read_bytes, read_frames, read_frames_from_bytes
from pipeline.settings import Limits, Reading
from tests.builders import make_dataset, make_dicom, make_dicomdir, make_pixels, make_zip


def test_files_are_found_in_order_with_forward_slashes(tmp_path: Path) -> None:
    for name in ("b/2.dcm", "b/10.dcm", "a.png", "b/c/x", ".hidden/y.dcm", "b/.z", "DICOMDIR", "b/dicomdir"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(make_dicomdir() if "dicomdir" in name.lower() else b"x")
    assert [file.source for file in discover(tmp_path)] == ["a.png", "b/10.dcm", "b/2.dcm", "b/c/x"]
    assert next(file.path for file in discover(tmp_path)) == tmp_path / "a.png"
    assert list(discover(tmp_path / "b" / "2.dcm")) == [StudyFile(tmp_path / "b" / "2.dcm", "2.dcm")]


def test_links_out_of_the_folder_are_found_and_not_followed(tmp_path: Path) -> None:
    inside, outside = tmp_path / "in", tmp_path / "out"
    for folder in (inside, outside):
        (folder / "deep").mkdir(parents=True)
        (folder / "deep" / "a.dcm").write_bytes(make_dicom())
    (inside / "file.dcm").symlink_to(outside / "deep" / "a.dcm")
    (inside / "folder").symlink_to(outside)
    (inside / "twin.dcm").symlink_to(inside / "deep" / "a.dcm")
    (inside / "deep" / "loop").symlink_to(inside)
    os.mkfifo(inside / "pipe")
    found = {file.source: file for file in discover(inside)}
    assert list(found) == ["deep/a.dcm", "file.dcm", "folder", "twin.dcm"]
    assert [file.source for _, file in discover_all([inside])] == ["deep/a.dcm", "file.dcm", "folder"]
    for source in ("file.dcm", "folder"):
        for file in (found[source], locate(inside, source)):
            with pytest.raises(UnreadableError, match="leads out of the given folder") as caught:
                next(read_frames(file))
            assert caught.value.reason is Reason.UNSAFE_PATH
    with pytest.raises(UnreadableError, match="leads out"):
        read_bytes(locate(inside, "folder/deep/a.dcm"))


def test_files_are_found_once_and_what_is_no_study_is_left_out(tmp_path: Path) -> None:
    for name in ("one/a.png", "one/b.png", "one/labels.csv", "two/c.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    (tmp_path / "one" / "again.png").symlink_to(tmp_path / "one" / "a.png")
    asked: list[tuple[int, str]] = []

    def is_known(root: int, file: StudyFile) -> bool:
        asked.append((root, file.source))
        return False

    sources = [tmp_path / "one", tmp_path / "two", tmp_path / "one" / "b.png"]
    found = discover_all(sources, [tmp_path / "two" / ".." / "one" / "labels.csv"], is_known)
    assert [(root, file.source) for root, file in found] == [(0, "a.png"), (0, "b.png"), (1, "c.png")]
    assert {(0, "a.png"), (1, "c.png")} <= set(asked)


def test_links_to_nothing_and_in_a_circle_are_found_and_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "dangling.dcm").symlink_to(tmp_path / "nothing")
    (tmp_path / "circle.dcm").symlink_to(tmp_path / "circle.dcm")
    assert refusals(discover(tmp_path)) == {
        "circle.dcm": "The file could not be read: Too many levels of symbolic links. "
        "Check its disk or network, and try again.",
        "dangling.dcm": "The file does not exist any more, or is a link to nowhere. Copy the file back.",
    }


def refusals(files: Iterable[StudyFile]) -> dict[str, str]:
    said = {}
    for file in files:
        with pytest.raises(UnreadableError) as caught:
            next(read_frames(file))
        assert caught.value.reason in (Reason.NOT_OPENED, Reason.MISSING)
        said[file.source] = str(caught.value)
    return said


@contextmanager
def without_privileges(folder: Path) -> Iterator[None]:
    """Be a user whom permissions bind, even where the tests run as root, in a folder that such a user may enter."""
    with chdir(folder):
        folder.chmod(0o755)
        root = os.geteuid() == 0
        if root:
            os.seteuid(65534)
        try:
            yield
        finally:
            if root:
                os.seteuid(0)


def test_folders_that_may_not_be_looked_into_are_found_and_cannot_be_read(tmp_path: Path) -> None:
    modes = {"closed": 0o000, "names_only": 0o444}
    for name, mode in modes.items():
        (tmp_path / "set" / name).mkdir(parents=True)
        (tmp_path / "set" / name / "a.dcm").write_bytes(make_dicom())
        (tmp_path / "set" / name).chmod(mode)
    (tmp_path / "set" / "b.dcm").write_bytes(make_dicom())
    with without_privileges(tmp_path):
        found = {file.source: file for file in discover(Path("set"))}
        assert len(list(read_frames(found.pop("b.dcm")))) == 1
        assert refusals(found.values()) == dict.fromkeys(
            ("closed", "names_only/a.dcm"), "The file could not be opened: Permission denied. Check its permissions."
        )
        for gone in ("set/closed", "set/names_only/a.dcm"):
            with pytest.raises(
                InputError, match=r"^(closed|a\.dcm) cannot be opened: Permission denied\. Check its permissions\.$"
            ):
                discover(Path(gone))
    for name in modes:
        (tmp_path / "set" / name).chmod(0o755)


def test_names_that_are_no_text_are_escaped(tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"caf\xe9.dcm")).write_bytes(make_dicom())
    (file,) = discover(tmp_path)
    assert file.source == "caf\\xe9.dcm"
    assert next(read_frames(file)).source == file.source


# Pairs would be one name if a backslash, or a control character above 0x7f, were written as a byte that is no UTF-8.
AWKWARD = (
    b"caf\xe9",
    rb"caf\xe9",
    b"\x85",
    b"\xc2\x85",
    rb"\x85",
    rb"\\x85",
    b"a\nb",
    rb"a\nb",
    b"\xe2\x80\xae",
    b"\\",
    b"\\n",
    b"\\x2e\\x2e",
)


def test_every_name_has_a_source_of_its_own_by_which_it_is_located_without_a_search(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [os.fsdecode(name) for name in AWKWARD]
    files = {
        f"{kind}/{name}/{name}.zip" if kind == "z" else f"{kind}/{name}": name.encode("utf-8", "replace")
        for name in names
        for kind in "fz"
    }
    write_all(
        tmp_path, {name: make_zip({"m": content}) if name.startswith("z") else content for name, content in files.items()}
    )
    found = list(discover(tmp_path))
    assert len({file.source for file in found}) == len(found) == 2 * len(names)
    assert all(file.source.isprintable() for file in found)
    monkeypatch.setattr(os, "scandir", None)
    for file in found:
        assert locate(tmp_path, file.source) == file
        read_bytes(file)


def test_what_is_gone_is_told_without_a_search_and_no_escape_leads_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_all(tmp_path, {"secret": b"x", "root/a": b"x"})
    monkeypatch.setattr(os, "scandir", None)
    for source in (
        "gone.dcm",
        r"\x2e\x2e/secret",
        r"\x61",
        r"\u0061",
        r"a\x2f..\x2f..\x2fsecret",
        r"\x00",
        "\\",
        r"\q",
        r"\ud800",
    ):
        with pytest.raises(UnreadableError, match="not there any more") as caught:
            read_bytes(locate(tmp_path / "root", source))
        assert caught.value.reason is Reason.MISSING


def test_what_is_found_and_cannot_be_read_is_located(tmp_path: Path) -> None:
    (tmp_path / "dangling.dcm").symlink_to(tmp_path / "nothing")
    (tmp_path / "circle.dcm").symlink_to(tmp_path / "circle.dcm")
    for file in discover(tmp_path):
        assert locate(tmp_path, file.source) == file


def test_nothing_there_is_an_error_at_once(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^There is no file or folder gone\. Check the path\.$"):
        discover(tmp_path / "gone")


def test_content_decides_the_kind_and_never_the_name(tmp_path: Path) -> None:
    picture = tmp_path / "picture.dcm"
    Image.fromarray((make_pixels() * 255).astype("u1")).save(picture, "PNG")
    text = tmp_path / "text.dcm"
    text.write_text("This is no image, but it is long enough to be one. " * 20)
    (frame,) = read_frames(StudyFile(picture, "picture.dcm"))
    assert frame.pixels.shape == (48, 40)
    assert frame.source == "picture.dcm"
    with pytest.raises(UnreadableError, match="neither DICOM, PNG, JPEG nor TIFF") as caught:
        next(read_frames(StudyFile(text, "text.dcm")))
    assert caught.value.reason is Reason.NOT_AN_IMAGE


@pytest.mark.parametrize("content", [b"", b"x", b"PK\x03\x04" + bytes(500), bytes(500), b"\x08\x00" * 3, b"file,label\n" * 90])
def test_what_is_no_image_is_told_from_one(content: bytes) -> None:
    with pytest.raises(UnreadableError) as caught:
        list(read_frames_from_bytes(content, "a"))
    assert caught.value.reason is Reason.NOT_AN_IMAGE


def test_files_that_cannot_be_opened_or_are_too_large(tmp_path: Path) -> None:
    with pytest.raises(UnreadableError, match=r"^The file does not exist any more, or is a link to nowhere\."):
        next(read_frames(StudyFile(tmp_path / "gone.dcm", "gone.dcm")))
    path = tmp_path / "a.dcm"
    path.write_bytes(make_dicom())
    with pytest.raises(UnreadableError, match="larger than 1000 bytes") as caught:
        next(read_frames(StudyFile(path, "a.dcm"), Reading(Limits(file_bytes=1000))))
    assert caught.value.reason is Reason.RESOURCE_LIMIT


def test_bytes_and_file_give_the_same_frame(tmp_path: Path) -> None:
    path = tmp_path / "a.dcm"
    path.write_bytes(make_dicom())
    (from_file,) = read_frames(StudyFile(path, "a.dcm"))
    (from_bytes,) = read_frames_from_bytes(path.read_bytes(), "a.dcm")
    assert from_file.pixels.tobytes() == from_bytes.pixels.tobytes()
    assert (from_file.key, from_file.pixel_sha256) == (from_bytes.key, from_bytes.pixel_sha256)


def test_silencing_from_many_threads_adds_one_filter_and_leaves_other_warnings() -> None:
    before = len(warnings.filters)
    threads = [threading.Thread(target=silence_decoders) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(warnings.filters) <= before + 1
    with pytest.warns(UserWarning, match="mine"):
        warnings.warn("mine", stacklevel=1)


def write_all(folder: Path, files: Mapping[str, bytes]) -> None:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


def test_every_file_can_be_located_again_by_its_source(tmp_path: Path) -> None:
    inner = make_zip({"deep/1.dcm": make_dicom(), "2.dcm": b"x"})
    write_all(
        tmp_path,
        {
            "a/1.dcm": b"first",
            "b.zip": make_zip({"x/y.dcm": b"second", "inner.zip": inner}),
            os.fsdecode(b"caf\xe9.dcm"): b"third",
            os.fsdecode(b"caf\xe9.zip"): make_zip({"m": b"fourth"}),
        },
    )
    found = list(discover(tmp_path))
    assert len(found) == 6
    for file in found:
        assert locate(tmp_path, file.source) == file
        assert pickle.loads(pickle.dumps(file)) == file  # noqa: S301 - made by the line itself
    (alone,) = discover(tmp_path / "a" / "1.dcm")
    assert locate(tmp_path / "a" / "1.dcm", alone.source) == alone
    for file in discover(tmp_path / "b.zip"):
        assert read_bytes(locate(tmp_path / "b.zip", file.source)) == read_bytes(file)


def test_what_is_gone_or_leads_out_is_located_and_refused(tmp_path: Path) -> None:
    root = tmp_path / "root"
    write_all(tmp_path, {"secret": b"x", "root/a.zip": make_zip({"b": b"x"})})
    for source, reason in {
        "gone.dcm": Reason.MISSING,
        "a.zip/gone": Reason.MISSING,
        "../secret": Reason.UNSAFE_PATH,
        "a.zip/../../secret": Reason.UNSAFE_PATH,
        "": Reason.UNSAFE_PATH,
    }.items():
        with pytest.raises(UnreadableError) as caught:
            read_bytes(locate(root, source))
        assert caught.value.reason is reason


def test_stat_tells_size_and_times_without_reading(tmp_path: Path) -> None:
    write_all(tmp_path, {"a.dcm": bytes(7), "b.zip": make_zip({"c": bytes(1000)})})
    for name in ("a.dcm", "b.zip"):
        os.utime(tmp_path / name, ns=(5, 1234567890123456789))
    looks = {file.source: file.stat() for file in discover(tmp_path)}
    assert looks["a.dcm"][:2] == (7, 1234567890123456789)
    assert looks["b.zip/c"][:2] == (1000, 1234567890123456789)
    assert all(0 < mark < 2**63 for _, _, mark in looks.values())
    with pytest.raises(UnreadableError, match="The file does not exist any more"):
        StudyFile(tmp_path / "gone", "gone").stat()


def test_files_and_members_that_change_places_do_not_look_the_same(tmp_path: Path) -> None:
    contents = {"a": b"one", "b": b"two"}
    write_all(tmp_path, contents | {"z.zip": make_zip(contents)})
    for path in tmp_path.iterdir():
        os.utime(path, ns=(5, 5))
    looks = {file.source: file.stat() for file in discover(tmp_path)}
    assert len(set(looks.values())) == len(looks)
    (tmp_path / "a").rename(tmp_path / "c")
    (tmp_path / "b").rename(tmp_path / "a")
    (tmp_path / "c").rename(tmp_path / "b")
    (tmp_path / "z.zip").write_bytes(make_zip({"a": b"two", "b": b"one"}))
    os.utime(tmp_path / "z.zip", ns=(5, 5))
    for file in discover(tmp_path):
        assert file.stat() != looks[file.source]
        assert file.stat() == locate(tmp_path, file.source).stat()


def test_files_that_are_known_are_not_opened(tmp_path: Path) -> None:
    write_all(tmp_path, {"a.dcm": b"x", "b": make_zip({"c": b"y"})})
    assert [file.source for file in discover(tmp_path, lambda file: file.source == "a.dcm")] == ["a.dcm", "b/c"]
    assert [file.source for file in discover(tmp_path, lambda file: True)] == ["a.dcm", "b"]


def test_a_dicomdir_in_a_folder_adds_the_files_that_are_missing(tmp_path: Path) -> None:
    named = [("IMAGES", "A1"), ("IMAGES", "A2"), ("IMAGES", "A1"), None, ("..", "OUT"), ("C:", "X")]
    files = {"disc/DICOMDIR": make_dicomdir(*named), "disc/images/a1.;1": make_dicom(), "disc/extra": make_dicom()}
    write_all(tmp_path, files)
    (tmp_path / "packed.zip").write_bytes(make_zip(files))
    for below in ("disc", "packed.zip/disc"):
        found = {file.source: file for file in discover(tmp_path) if file.source.startswith(below)}
        outcomes = {source.removeprefix(f"{below}/"): outcome(file) for source, file in found.items()}
        assert outcomes == {
            "images/a1.;1": "read",
            "extra": "read",
            "IMAGES/A2": "missing",
            "\\x2e\\x2e/OUT": "unsafe_path",
            "C:/X": "unsafe_path",
        }


def outcome(file: StudyFile) -> str:
    try:
        list(read_frames(file))
    except UnreadableError as error:
        return error.reason
    return "read"


PREAMBLES = {
    "tiff": b"II*\0\x08\0\0\0",
    "tiff-big-endian": b"MM\0*\0\0\0\x08",
    "bigtiff": b"II+\0\x08\0\0\0",
    "png": b"\x89PNG\r\n\x1a\n",
    "jpeg": b"\xff\xd8\xff\xe0",
    "zip": b"PK\x03\x04",
    "empty-zip": b"PK\x05\x06",
    "gzip": b"\x1f\x8b\x08",
    "bmp": b"BM",
    "gif": b"GIF89a",
    "pdf": b"%PDF-1.4",
    "elf": b"\x7fELF",
    "vol": b"HSF-OCT-103",
    "e2e": b"CMDb\0",
    "fda": b"FOCTFDA",
    "big-endian": b"\0\x08\0\x05CS",
}


def test_dicom_is_dicom_whatever_its_preamble_looks_like(tmp_path: Path) -> None:
    """PS3.10 7.1 leaves the 128 bytes before DICM to the application, for example to files that are DICOM and TIFF at once."""
    plain = make_dicom(make_pixels(), StudyInstanceUID="1.2.3")
    (expected,) = read_frames_from_bytes(plain, "x")
    contents = {f"{name}.dcm": preamble.ljust(128, b"\0") + plain[128:] for name, preamble in PREAMBLES.items()}
    contents |= {
        "scan.img": contents["zip.dcm"],
        "P1_Macular Cube 512x128_1-2-2013_10-11-12_OS_sn1_cube_z.img": contents["bmp.dcm"],
    }
    write_all(tmp_path, contents | {"all.zip": make_zip(contents), "stored.zip": make_zip(contents, ZIP_STORED)})
    found = list(discover(tmp_path))
    assert {file.source for file in found} == {
        f"{folder}{name}" for folder in ("", "all.zip/", "stored.zip/") for name in contents
    }
    for file in found:
        (frame,) = read_frames(file)
        assert frame.pixel_sha256 == expected.pixel_sha256, file.source
        assert [stated.study_instance_uid for stated in stated_study(file)] == ["1.2.3"], file.source
        assert locate(tmp_path, file.source) == file


def test_an_archive_is_one_though_a_name_in_it_has_the_letters_of_dicom_at_their_place(tmp_path: Path) -> None:
    for name in (f"{'x' * 98}DICM/1.dcm", f"{'x' * 98}DICM"):
        content = make_zip({name: make_dicom()})
        assert content[128:132] == b"DICM"
        write_all(tmp_path, {"a.zip": content})
        assert [file.source for file in discover(tmp_path)] == [f"a.zip/{name}"]


def test_a_dicomdir_alone_means_the_files_that_it_names(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(make_dicom())
    disc = tmp_path / "disc"
    write_all(
        disc,
        {
            "dicomdir;1": make_dicomdir(("IMAGES", "A1"), ("IMAGES", "A2"), ("LINK", "SECRET"), ("..", "SECRET")),
            "Images/a1": make_dicom(),
            "Images/a3": make_dicom(),
        },
    )
    (disc / "LINK").symlink_to(tmp_path)
    found = list(discover(disc / "dicomdir;1"))
    assert {file.source: outcome(file) for file in found} == {
        "Images/a1": "read",
        "IMAGES/A2": "missing",
        "LINK/secret": "unsafe_path",
        "\\x2e\\x2e/SECRET": "unsafe_path",
    }
    assert locate(disc / "dicomdir;1", "Images/a1") == StudyFile(disc / "Images" / "a1", "Images/a1")


def test_an_image_is_no_dicomdir_because_one_of_its_uids_begins_like_that_of_directories(tmp_path: Path) -> None:
    dataset = make_dataset()
    dataset.file_meta.MediaStorageSOPInstanceUID = f"{MediaStorageDirectoryStorage}.1.2"
    dataset.save_as(tmp_path / "x.dcm", enforce_file_format=True)
    assert [outcome(file) for file in discover(tmp_path / "x.dcm")] == ["read"]


def test_an_image_named_like_a_dicomdir_is_found(tmp_path: Path) -> None:
    write_all(tmp_path, {"DICOMDIR": make_dicom(), "disc/dicomdir": b"not a directory", "disc/a": make_dicom()})
    assert [file.source for file in discover(tmp_path)] == ["DICOMDIR", "disc/a", "disc/dicomdir"]


def test_a_damaged_dicomdir_is_refused_alone_and_harmless_in_a_folder(tmp_path: Path) -> None:
    whole = make_dicomdir(("A",))
    for content, said in {
        whole[:-20]: "The DICOMDIR is cut off.",
        whole[: whole.index(b"TEST") + 4]: "The DICOMDIR is damaged and cannot be read.",
        make_dicomdir(): "The DICOMDIR names no file.",
    }.items():
        write_all(tmp_path, {"DICOMDIR": content, "B": make_dicom()})
        assert [file.source for file in discover(tmp_path)] == ["B"]
        (alone,) = discover(tmp_path / "DICOMDIR")
        with pytest.raises(UnreadableError) as caught:
            read_bytes(alone)
        assert str(caught.value) == f"{said} Give the folder that it lies in instead."


def test_the_dicomdir_of_pydicom_names_the_files_beside_it() -> None:
    path = Path(str(get_testdata_file("DICOMDIR")))
    beside = [one for name in ("77654033", "98892001", "98892003") for one in (path.parent / name).rglob("*") if one.is_file()]
    assert len(beside) == 31
    assert {file.path for file in discover(path)} == set(beside)
    assert {file.refusal for file in discover(path)} == {None}
