import io
import random
import stat
import struct
import zipfile
import zlib
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import pytest

from pipeline.errors import Reason, UnreadableError
from pipeline.imaging.files import archives, study_file
from pipeline.imaging.files.study_file import ArchiveMember, read_head
from pipeline.imaging.sources import StudyFile, discover, locate, read_bytes, read_frames
from pipeline.settings import Limits, Reading
from tests.builders import make_dicom, make_dicomdir, make_zip


def find(tmp_path: Path, content: bytes) -> dict[str, StudyFile]:
    (tmp_path / "study.zip").write_bytes(content)
    return {file.source.removeprefix("study.zip/"): file for file in discover(tmp_path)}


def refusal(file: StudyFile, reading: Reading | None = None) -> tuple[Reason, str]:
    with pytest.raises(UnreadableError) as caught:
        read_bytes(file, reading or Reading())
    with pytest.raises(UnreadableError):
        list(read_frames(file, reading or Reading()))
    assert str(file.path.parent) not in str(caught.value)
    return caught.value.reason, str(caught.value)


def contents(files: Mapping[str, StudyFile]) -> dict[str, bytes]:
    return {source: read_bytes(file) for source, file in files.items()}


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_members_are_read_as_they_were_packed(tmp_path: Path, compression: int) -> None:
    members = {"b/2.dcm": make_dicom(), "a.dcm": make_dicom(), "empty": b"", "b/long": bytes(range(256)) * 5000}
    packed = make_zip(members, compression)
    assert contents(find(tmp_path, packed)) == members
    assert contents(find(tmp_path, b"")) == {"study.zip": b""}
    assert [file.source for file in discover(tmp_path)] == ["study.zip"]


def test_members_are_found_in_order_and_by_content_not_by_name(tmp_path: Path) -> None:
    (tmp_path / "no suffix").write_bytes(make_zip({"z": b"1", "a/b": b"2"}))
    (tmp_path / "p.zip").write_bytes(make_dicom())
    assert [file.source for file in discover(tmp_path)] == ["no suffix/a/b", "no suffix/z", "p.zip"]
    assert [file.source for file in discover(tmp_path / "no suffix")] == ["no suffix/a/b", "no suffix/z"]
    assert len(list(read_frames(StudyFile(tmp_path / "p.zip", "p.zip")))) == 1


def test_frames_of_members_name_their_member(tmp_path: Path) -> None:
    content = make_dicom()
    (file,) = find(tmp_path, make_zip({"a/b.dcm": content})).values()
    (frame,) = read_frames(file)
    assert frame.source == "study.zip/a/b.dcm"


def test_data_before_the_archive_and_a_comment_do_no_harm(tmp_path: Path) -> None:
    buffer = io.BytesIO(make_zip({"a": b"x"}))
    with zipfile.ZipFile(buffer, "a") as archive:
        archive.comment = b"c" * 1000
    assert contents(find(tmp_path, b"PK\x03\x04" + bytes(500) + buffer.getvalue())) == {"a": b"x"}


def test_archives_of_one_pass_with_data_descriptors_and_zip64_are_read(tmp_path: Path) -> None:
    class Pipe(io.RawIOBase):
        def __init__(self) -> None:
            self.written = bytearray()

        def writable(self) -> bool:
            return True

        def write(self, content: bytes) -> int:  # type: ignore[override]
            self.written += content
            return len(content)

    pipe = Pipe()
    with zipfile.ZipFile(pipe, "w") as archive, archive.open("a", "w", force_zip64=True) as stream:
        stream.write(b"content")
    assert contents(find(tmp_path, bytes(pipe.written))) == {"a": b"content"}


@pytest.mark.parametrize("outer", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("middle", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_archives_within_archives_are_read(tmp_path: Path, outer: int, middle: int) -> None:
    innermost = make_zip({"deep.dcm": make_dicom(), "also": b"also"})
    inner = make_zip({"x/innermost": innermost, "beside": b"beside"}, middle)
    files = find(tmp_path, make_zip({"inner.zip": inner, "plain": b"plain"}, outer))
    read = contents(files)
    assert list(read) == ["inner.zip/beside", "inner.zip/x/innermost/also", "inner.zip/x/innermost/deep.dcm", "plain"]
    assert [read["inner.zip/beside"], read["inner.zip/x/innermost/also"], read["plain"]] == [b"beside", b"also", b"plain"]
    assert len(list(read_frames(files["inner.zip/x/innermost/deep.dcm"]))) == 1


def test_what_is_hidden_or_a_folder_is_left_out_and_an_office_document_is_one_file(tmp_path: Path) -> None:
    names = ("a/", "a/b", ".DS_Store", "__MACOSX/a/._b", ".git/c", "a/.hidden/d", "./e")
    document = make_zip({"[Content_Types].xml": b"x", "word/document.xml": b"y"})
    files = find(tmp_path, make_zip(dict.fromkeys(names, b"x") | {"letter.docx": document}))
    assert list(files) == ["a/b", "e", "letter.docx"]
    assert read_bytes(files["letter.docx"]) == document
    assert "zip archive or an office document" in refuse_frames(files["letter.docx"])


def refuse_frames(file: StudyFile) -> str:
    with pytest.raises(UnreadableError) as caught:
        list(read_frames(file))
    assert caught.value.reason is Reason.NOT_AN_IMAGE
    return str(caught.value)


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("../../etc/passwd", r"\x2e\x2e/\x2e\x2e/etc/passwd"),
        ("a/../../b", r"a/\x2e\x2e/\x2e\x2e/b"),
        ("..\\windows", r"\x2e\x2e/windows"),
        ("/etc/passwd", "etc/passwd"),
        ("\\\\server\\share", "server/share"),
        ("C:\\windows\\x", r"C\x3a/windows/x"),
        ("c:x", r"c\x3a/x"),
    ],
)
def test_paths_that_lead_out_are_refused_and_shown_harmless(tmp_path: Path, name: str, shown: str) -> None:
    files = find(tmp_path, make_zip({name: make_dicom(), "good": b"good"}))
    assert set(files) == {shown, "good"}
    assert refusal(files[shown])[0] is Reason.UNSAFE_PATH
    assert read_bytes(files["good"]) == b"good"


def test_backslashes_of_windows_programs_are_separators(tmp_path: Path) -> None:
    assert contents(find(tmp_path, make_zip({"a\\b\\c.dcm": b"x", "d\\": b""}))) == {"a/b/c.dcm": b"x"}


def test_links_in_archives_are_refused(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        info = zipfile.ZipInfo("link")
        info.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(info, "/etc/passwd")
    assert refusal(find(tmp_path, buffer.getvalue())["link"])[0] is Reason.UNSAFE_PATH


def test_members_of_one_name_are_refused_together(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("a", "1")
        with pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr("a", "2")
        archive.writestr("./a", "3")
        archive.writestr("b", "4")
    files = find(tmp_path, buffer.getvalue())
    assert set(files) == {"a", "b"}
    assert refusal(files["a"]) == (
        Reason.INCONSISTENT,
        "The zip archive has 3 members of this name. Pack the folder again.",
    )


def test_encrypted_members_and_unknown_compressions_are_refused(tmp_path: Path) -> None:
    packed = make_zip({"a": b"x"})
    flags = packed.rindex(b"PK\x01\x02") + 8
    locked = packed[:flags] + b"\x01\x00" + packed[flags + 2 :]
    assert refusal(find(tmp_path, locked)["a"]) == (
        Reason.UNSUPPORTED_ENCODING,
        "The member of the zip archive is encrypted. Unpack the archive with its password first.",
    )
    reason, message = refusal(find(tmp_path, make_zip({"a": b"x"}, zipfile.ZIP_BZIP2))["a"])
    assert reason is Reason.UNSUPPORTED_ENCODING
    assert "packed by method 12" in message


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_damaged_members_are_refused_and_others_read(tmp_path: Path, compression: int) -> None:
    content = bytes(range(256)) * 40
    packed = bytearray(make_zip({"bad": content, "good": content}, compression))
    packed[200] ^= 0xFF
    files = find(tmp_path, bytes(packed))
    assert refusal(files["bad"])[0] is Reason.DECODE_FAILED
    assert read_bytes(files["good"]) == content


@pytest.mark.parametrize("cut", range(1, 10))
def test_archives_that_are_cut_off_are_refused_as_one(tmp_path: Path, cut: int) -> None:
    packed = make_zip({"a": make_dicom(), "b": make_dicom()})
    files = find(tmp_path, packed[: len(packed) * cut // 10])
    assert list(files) == ["study.zip"]
    assert refusal(files["study.zip"]) == (
        Reason.DECODE_FAILED,
        "The zip archive is damaged: it cannot be unpacked. Copy it again.",
    )


@pytest.mark.parametrize("cut", [1, 3, 22, 30, 100])
def test_an_archive_that_is_cut_off_is_not_taken_for_the_last_one_in_it(tmp_path: Path, cut: int) -> None:
    inner = make_zip({"c": b"c"}, zipfile.ZIP_STORED)
    files = find(tmp_path, make_zip({"a": b"a", "b": b"b", "inner.zip": inner}, zipfile.ZIP_STORED)[:-cut])
    assert list(files) == ["study.zip"]
    assert refusal(files["study.zip"])[0] is Reason.DECODE_FAILED


@pytest.mark.parametrize(
    ("comment", "after", "whole"),
    [
        (b"", bytes(50), True),
        (b"made by hand", b"", True),
        (b"made by hand", bytes(9), True),
        (b"", b"\0x", False),
        (b"x", b"x", False),
    ],
)
def test_nothing_but_zeros_may_follow_an_archive(tmp_path: Path, comment: bytes, after: bytes, whole: bool) -> None:
    buffer = io.BytesIO(make_zip({"a": b"x"}))
    with zipfile.ZipFile(buffer, "a") as archive:
        archive.comment = comment
    assert list(find(tmp_path, buffer.getvalue() + after)) == ["a" if whole else "study.zip"]
    assert list(find(tmp_path, buffer.getvalue()[: -len(comment)] if comment else b"")) == ["study.zip"]


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_damaged_archive_within_another_is_refused_alone(tmp_path: Path, compression: int) -> None:
    files = find(tmp_path, make_zip({"inner.zip": make_zip({"a": b"x"})[:-9], "b": b"b"}, compression))
    assert list(files) == ["b", "inner.zip"]
    assert refusal(files["inner.zip"])[0] is Reason.DECODE_FAILED


def test_an_empty_archive_is_refused(tmp_path: Path) -> None:
    assert refusal(find(tmp_path, make_zip({}))["study.zip"]) == (Reason.NOT_AN_IMAGE, "The zip archive is empty.")


def test_bombs_are_refused_before_they_are_inflated(tmp_path: Path) -> None:
    files = find(tmp_path, make_zip({"bomb": bytes(archives.RATIO_FROM + 1), "blank.dcm": bytes(archives.RATIO_FROM)}))
    assert refusal(files["bomb"])[0] is Reason.RESOURCE_LIMIT
    assert len(read_bytes(files["blank.dcm"])) == archives.RATIO_FROM


def test_members_above_the_limit_are_refused(tmp_path: Path) -> None:
    file = find(tmp_path, make_zip({"a": bytes(1001)}))["a"]
    assert refusal(file, Reading(Limits(file_bytes=1000)))[0] is Reason.RESOURCE_LIMIT
    assert len(read_bytes(file, Reading(Limits(file_bytes=1001)))) == 1001


def test_a_member_that_inflates_to_more_than_it_says_is_damaged_and_costs_no_memory(tmp_path: Path) -> None:
    packed = bytearray(make_zip({"liar": bytes(2**26)}))
    entry = packed.rindex(b"PK\x01\x02")
    struct.pack_into("<I", packed, entry + 24, 10)
    assert refusal(find(tmp_path, bytes(packed))["liar"])[0] is Reason.DECODE_FAILED


def test_members_that_overlap_are_refused(tmp_path: Path) -> None:
    packed = make_zip({"a": bytes(range(256)) * 100, "b": b""}, zipfile.ZIP_STORED)
    entry = packed.rindex(b"PK\x01\x02")
    overlapping = bytearray(packed)
    struct.pack_into("<II", overlapping, entry + 20, 25600, 25600)
    struct.pack_into("<I", overlapping, entry + 42, 0)
    assert refusal(find(tmp_path, bytes(overlapping))["study.zip"])[0] is Reason.INCONSISTENT


def test_numbers_of_members_bytes_and_archives_are_limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deep = make_zip({"leaf": b"leaf"})
    for level in range(3):
        deep = make_zip({f"{level}.zip": deep, f"beside{level}": b"x"})
    files = find(tmp_path, deep)
    assert set(files) == {"beside2", "2.zip/beside1", "2.zip/1.zip/beside0", "2.zip/1.zip/0.zip"}
    assert refusal(files["2.zip/1.zip/0.zip"])[0] is Reason.RESOURCE_LIMIT

    many = make_zip({"inner.zip": make_zip({"1": b"1", "2": b"2"}), "a": b"a", "b": b"b"})
    monkeypatch.setattr(archives, "MOST_MEMBERS", 4)
    files = find(tmp_path, many)
    assert refusal(files.pop("inner.zip"))[0] is Reason.RESOURCE_LIMIT
    assert contents(files) == {"a": b"a", "b": b"b"}
    monkeypatch.setattr(archives, "MOST_MEMBERS", 2)
    assert refusal(find(tmp_path, many)["study.zip"])[0] is Reason.RESOURCE_LIMIT
    monkeypatch.undo()
    monkeypatch.setattr(archives, "MOST_UNPACKED", 100)
    assert refusal(find(tmp_path, many)["study.zip"])[0] is Reason.RESOURCE_LIMIT
    monkeypatch.undo()
    monkeypatch.setattr(archives, "MOST_DIRECTORY", 100)
    assert "too many members" in refusal(find(tmp_path, many)["study.zip"])[1]
    monkeypatch.undo()
    monkeypatch.setattr(study_file, "MOST_NESTED", 10)
    assert refusal(find(tmp_path, many)["inner.zip"])[0] is Reason.RESOURCE_LIMIT


def test_an_archive_that_is_gone_or_changed_is_refused(tmp_path: Path) -> None:
    file = find(tmp_path, make_zip({"a": b"x" * 100, "inner": make_zip({"b": b"y"})}))
    (tmp_path / "study.zip").write_bytes(bytes(1000))
    assert {refusal(one)[0] for one in file.values()} == {Reason.DECODE_FAILED}
    (tmp_path / "study.zip").unlink()
    assert {refusal(one)[0] for one in file.values()} == {Reason.MISSING}
    sentences = {refusal(one)[1] for one in file.values()}
    assert sentences == {"The file does not exist any more, or is a link to nowhere. Copy the file back."}


def test_the_start_of_a_member_is_found_behind_any_number_of_empty_blocks(tmp_path: Path) -> None:
    """A writer that flushes often puts empty blocks into the data (RFC 1951 3.2.4), here more than are read at once."""
    packed = bytearray(make_zip({"a.dcm": bytes(5)}, zipfile.ZIP_STORED))
    content, empty = make_dicom(), b"\0\0\0\xff\xff"
    compressor = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    deflated = empty * 5000 + compressor.compress(content) + compressor.flush()
    (tmp_path / "study.zip").write_bytes(packed[:35] + deflated)
    member = ArchiveMember(0, len(deflated), len(content), zlib.crc32(content), zipfile.ZIP_DEFLATED)
    file = StudyFile(tmp_path / "study.zip", "study.zip/a.dcm", (member,))
    assert read_head(file, 132) == content[:132]
    assert read_bytes(file) == content


def test_altered_archives_are_read_or_refused(tmp_path: Path) -> None:
    rng = random.Random(6)  # noqa: S311 - no secret
    inner = make_zip({"x/1.dcm": make_dicom(), "2": b"hello" * 50})
    directory = make_dicomdir(("A",), ("B", "C"))
    for compression in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        whole = make_zip({"a": b"abc" * 99, "in.zip": inner, "DICOMDIR": directory}, compression)
        for _ in range(150):
            altered = bytearray(whole)
            for _ in range(rng.randint(1, 6)):
                altered[rng.randrange(len(whole))] = rng.randrange(256)
            for file in find(tmp_path, bytes(altered)).values():
                assert locate(tmp_path, file.source) == file or file.refusal is not None
                with suppress(UnreadableError):
                    read_bytes(file)


def test_names_are_utf_8_and_an_archive_with_others_is_refused(tmp_path: Path) -> None:
    assert list(find(tmp_path, make_zip({"caf\xe9": b"x"}))) == ["caf\xe9"]
    broken = make_zip({"caf\xe9": b"x"}).replace("\xe9".encode(), b"\xe9\xe9")
    assert refusal(find(tmp_path, broken)["study.zip"])[0] is Reason.DECODE_FAILED
