"""Says what is used and what is not: files that failed, frames that the gate rejected, files that contradict another."""

from collections.abc import Collection, Iterator, Mapping
from pathlib import PurePosixPath

from pipeline.frames import Quarantined, of_whole_file
from pipeline.ingest.labels import FileId
from pipeline.ingest.order import clashes
from pipeline.ingest.reading import ReadFile, SeenFrame

Used = Mapping[FileId, tuple[SeenFrame, ...]]
"""The files that are used, in their order, with their frames."""

NO_LABEL = "no_label"
UID_CLASH = "uid_clash"
NOT_NAMED = "The table of labels does not name this file. Add a row for it to use it."
NO_FOLDER = "No folder of this file is the label by --label-from. Move it into one, or name another folder, to use it."


def usable(outcomes: Mapping[FileId, ReadFile]) -> dict[FileId, tuple[SeenFrame, ...]]:
    """Return the files with frames that can be used, in their order, with these frames."""
    clashing = clashes(outcomes)
    frames = {
        file_id: tuple(frame for frame in read.frames if frame.rejection is None)
        for file_id, read in outcomes.items()
        if file_id not in clashing
    }
    return {file_id: found for file_id, found in frames.items() if found}


def quarantined(files: Collection[FileId], outcomes: Mapping[FileId, ReadFile], unlabelled: str) -> Iterator[Quarantined]:
    """Yield a row for each file that is not used, and for each frame that is not of one that is, in the order of the files.

    Parameters
    ----------
    files
        Every file that was found.
    outcomes
        What was read; the others have no label.
    unlabelled
        A sentence that says why these have none.
    """
    clashing = clashes(outcomes)
    for root, source in files:
        read, other = outcomes.get((root, source)), clashing.get((root, source))
        if read is None:
            yield Quarantined(source, NO_LABEL, unlabelled, root=root)
        elif read.failure:
            yield Quarantined(source, read.failure.reason, read.failure.message, root=root)
        elif other:
            yield Quarantined(source, UID_CLASH, _clash(other[1]), root=root)
        else:
            rows = [
                Quarantined(source, frame.rejection.reason, frame.rejection.message, frame.key.frame_number, root)
                for frame in read.frames
                if frame.rejection
            ]
            yield from of_whole_file(rows) if len(rows) == len(read.frames) else rows


def _clash(other: str) -> str:
    return (
        f"The file {PurePosixPath(other).name} has the same SOP Instance UID (0008,0018) and other pixels. Find out which of "
        "them is right, and leave the other out."
    )
