"""Reads which files a DICOMDIR names (PS3.3 F.3), and finds them below its folder, however a disc spelled them."""

import io
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from pydicom import dcmread
from pydicom.dataelem import RawDataElement
from pydicom.uid import MediaStorageDirectoryStorage

from pipeline.errors import Reason, UnreadableError
from pipeline.imaging.files.study_file import Refusal, as_text
from pipeline.imaging.guard import silence_decoders, translated

MOST_BYTES = 2**27
"""A larger DICOMDIR is not read; a record of one file takes about half a kilobyte."""
MISSING = Refusal(Reason.MISSING, "The DICOMDIR names this file, but it is not there. Copy the disc or the folder again.")
EMPTY = Refusal(Reason.NO_PIXELS, "The DICOMDIR names no file. Give the folder that it lies in instead.")
OUTSIDE = Refusal(Reason.UNSAFE_PATH, "The DICOMDIR names a file outside of its folder, which is not read. Copy it in.")

_DIRECTORY_CLASS = b"\x02\x00\x02\x00UI\x14\x00" + MediaStorageDirectoryStorage.encode()
"""Media Storage SOP Class UID of a directory with its tag and its length: other UIDs may begin with the same characters."""
_VERSION = re.compile(r"\.?(;[0-9]+)?$")

FileId = tuple[str, ...]
"""Referenced File ID (0004,1500): the folders and the name of a file, below the folder of its DICOMDIR."""


def is_named_dicomdir(name: str) -> bool:
    """Say whether a file of this name is a DICOMDIR (PS3.10 8.6), as discs spell it."""
    return as_key((name,)) == ("DICOMDIR",)


def is_dicomdir(head: bytes) -> bool:
    """Say whether a file that begins with `head` is one: Media Storage SOP Class UID (0002,0002) is that of a directory."""
    return head[128:132] == b"DICM" and _DIRECTORY_CLASS in head


def referenced_files(content: bytes) -> tuple[FileId, ...]:
    """Return the files that the records in use name, in the order of the records, each once.

    Raises
    ------
    UnreadableError
        Where it is damaged.
    """
    silence_decoders()
    with translated("The DICOMDIR is damaged and cannot be read. Give the folder that it lies in instead."):
        dataset = dcmread(io.BytesIO(content))
        sequence = dataset.get_item("DirectoryRecordSequence")
        if isinstance(sequence, RawDataElement) and len(sequence.value or b"") < sequence.length:
            raise UnreadableError(Reason.TRUNCATED, "The DICOMDIR is cut off. Give the folder that it lies in instead.")
        records = dataset.DirectoryRecordSequence
        named = [record.ReferencedFileID for record in records if record.get("ReferencedFileID") and _is_in_use(record)]
        return tuple(dict.fromkeys((one,) if isinstance(one, str) else tuple(map(str, one)) for one in named))


def _is_in_use(record: Mapping[str, object]) -> bool:
    return record.get("RecordInUseFlag", 0xFFFF) != 0


def as_key(parts: Iterable[str]) -> FileId:
    """Return what is the same for all spellings of a path: capitals, no version (`;1`), no empty extension (ISO 9660)."""
    return tuple(_VERSION.sub("", part.upper()) for part in parts)


def is_inside(file_id: FileId) -> bool:
    """Say whether a File ID stays below its folder."""
    return all(part not in ("", ".", "..") and not set(part) & set("/\\:\0") for part in file_id)


def find_files(folder: Path, file_ids: Iterable[FileId]) -> Iterator[tuple[FileId, Path | None]]:
    """Find files below a folder by their File IDs; None where there is none. Each folder is listed once."""
    listed: dict[Path, dict[FileId, str]] = {}
    for file_id in file_ids:
        path: Path | None = folder
        for part in file_id:
            path = _entry(path, part, listed) if path is not None and is_inside(file_id) else None
        yield file_id, path


def _entry(folder: Path, part: str, listed: dict[Path, dict[FileId, str]]) -> Path | None:
    if folder not in listed:
        try:
            listed[folder] = {as_key((as_text(path.name),)): path.name for path in folder.iterdir()}
        except OSError:
            listed[folder] = {}
    name = listed[folder].get(as_key((part,)))
    return None if name is None else folder / name
