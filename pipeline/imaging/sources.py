"""The door of the room: finds study files and reads their frames, whatever their kind; the content decides the kind."""

from collections.abc import Callable, Iterator
from pathlib import Path

from pipeline.errors import Reason, UnreadableError
from pipeline.frames import Frame
from pipeline.imaging.dicom.dataset import PREAMBLE, PREFIX, is_dicom
from pipeline.imaging.dicom.reader import read_dicom
from pipeline.imaging.files.archives import is_archive
from pipeline.imaging.files.discovery import discover, discover_all, locate
from pipeline.imaging.files.names import as_text
from pipeline.imaging.files.study_file import StudyFile, read_bytes, read_head
from pipeline.imaging.guard import silence_decoders
from pipeline.imaging.raster import JPEG, PNG, read_picture
from pipeline.imaging.tiff import TIFF, read_tiff
from pipeline.imaging.vendor.heidelberg import E2E, VOL, read_e2e, read_vol
from pipeline.imaging.vendor.topcon import TOPCON, read_topcon
from pipeline.imaging.vendor.zeiss import is_named_by_the_device, is_named_img, read_img
from pipeline.settings import DEFAULT_READING, Reading

__all__ = [
    "StudyFile",
    "discover",
    "discover_all",
    "locate",
    "open_file",
    "read_bytes",
    "read_frames",
    "read_frames_from_bytes",
]

HEAD = 512
"""Bytes from the start of a file that are enough to tell its kind."""

Reader = Callable[[bytes, str, Reading], Iterator[Frame]]

_READERS: tuple[tuple[bytes | tuple[bytes, ...], Reader], ...] = (
    ((PNG, JPEG), read_picture),
    (TIFF, read_tiff),
    (VOL, read_vol),
    (E2E, read_e2e),
    (TOPCON, read_topcon),
)
"""The first bytes of the files of each kind."""


def read_frames(file: StudyFile | Path | str, reading: Reading = DEFAULT_READING) -> Iterator[Frame]:
    """Read the frames of one file, in its order, in this process.

    A file that was made to do harm can take much time and memory; `describe_files` and scoring read in worker processes with
    limits.

    Parameters
    ----------
    file
        A path, or what `discover` finds in a folder or an archive.
    reading
        Limits, and which window is used.

    Yields
    ------
    Frame
        Its pixels are a float32 array of shape (rows, columns) in [0, 1]; 0 is black.

    Raises
    ------
    UnreadableError
        If it cannot be opened, is not an image, or is damaged. Frames before a damaged one have been yielded by then.
    """
    if not isinstance(file, StudyFile):
        path = Path(file)
        file = StudyFile(path, as_text(path.name))
    _, frames = open_file(file, reading)
    yield from frames


def open_file(file: StudyFile, reading: Reading = DEFAULT_READING) -> tuple[bytes, Iterator[Frame]]:
    """Read the content of a file that may be an image, for callers who need it beside the frames.

    Returns
    -------
    tuple
        The content, and an iterator over the frames in it as `read_frames` gives them.

    Raises
    ------
    UnreadableError
        If it cannot be opened or is not an image.
    """
    reader = _reader(read_head(file, HEAD), file.source)
    content = read_bytes(file, reading)
    silence_decoders()
    return content, reader(content, file.source, reading)


def read_frames_from_bytes(content: bytes, source: str, reading: Reading = DEFAULT_READING) -> Iterator[Frame]:
    """Read the frames of a file that is in memory already.

    Raises
    ------
    UnreadableError
        As `read_frames`.
    """
    reader = _reader(content[:HEAD], source)
    silence_decoders()
    yield from reader(content, source, reading)


def _reader(head: bytes, source: str) -> Reader:
    if not head:
        raise UnreadableError(Reason.NOT_AN_IMAGE, "The file is empty. Copy it again.")
    # Pixels of Zeiss without any header may look like DICOM without a preamble.
    if is_dicom(head) and not (is_named_by_the_device(source) and head[PREAMBLE : PREAMBLE + len(PREFIX)] != PREFIX):
        return read_dicom
    for signatures, reader in _READERS:
        if head.startswith(signatures):
            return reader
    if is_named_img(source):  # has no header
        return read_img
    if is_archive(head):
        raise UnreadableError(
            Reason.NOT_AN_IMAGE,
            "The file is a zip archive or an office document, not an image. Give octray the images themselves.",
        )
    raise UnreadableError(
        Reason.NOT_AN_IMAGE,
        "octray does not recognise the content of the file: it is neither DICOM, PNG, JPEG nor TIFF, nor a supported OCT file, "
        "whatever its name says.",
    )
