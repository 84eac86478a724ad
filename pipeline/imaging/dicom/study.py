"""Says which study a DICOM file belongs to, from the start of the file alone."""

import io
from collections.abc import Iterator

from pydicom.filereader import read_partial
from pydicom.tag import BaseTag, Tag

from pipeline.errors import UnreadableError
from pipeline.imaging.dicom.dataset import is_cut_off, parse, uid_text
from pipeline.imaging.dicom.reader import PREAMBLE, PREFIX, is_dicom
from pipeline.imaging.files.contents import read_bytes, read_head
from pipeline.imaging.files.study_file import StudyFile
from pipeline.intake import DEFAULT_READING

_HEAD = 2**16
_STUDY_KEYWORD = "StudyInstanceUID"
_STUDY = Tag(_STUDY_KEYWORD)


def may_state_study(file: StudyFile) -> bool:
    """Say whether `stated_study` has to look at a file: not where it plainly is no DICOM file, or cannot be read."""
    try:
        return bool(file.inside) or is_dicom(read_head(file, PREAMBLE + len(PREFIX)))
    except UnreadableError:
        return False


def stated_study(file: StudyFile) -> Iterator[str]:
    """Yield the Study Instance UID (0020,000D) that a file states, once; made for worker processes, since it parses.

    It is empty for what is no DICOM file, for one that states no valid UID, and for one that cannot be read, which reading it
    as a whole will say.
    """
    try:
        head = read_head(file, _HEAD)
        if not is_dicom(head):
            yield ""
            return
        yield _at_start(head) or _in_whole(file)
    except UnreadableError:
        yield ""


def _at_start(head: bytes) -> str:
    """Return the UID if it lies in `head` as a whole; the part of a longer one would be the UID of another study."""
    try:
        found = read_partial(io.BytesIO(head), stop_when=_is_behind, force=True, specific_tags=[_STUDY])
        return "" if is_cut_off(found, _STUDY) else uid_text(found, _STUDY_KEYWORD)
    except Exception:  # pydicom has no common base for what it raises at a file's cut end, or where it is deflated
        return ""


def _in_whole(file: StudyFile) -> str:
    try:
        dataset, _, _ = parse(read_bytes(file), DEFAULT_READING.limits)
    except UnreadableError:
        raise
    except Exception:  # the same, of a damaged file
        return ""
    return uid_text(dataset, _STUDY_KEYWORD)


def _is_behind(tag: BaseTag, *_: object) -> bool:
    return bool(tag > _STUDY)
