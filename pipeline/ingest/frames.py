"""From the rows of an index to the network's input: reads each file once, two at a time, in the order of the rows."""

import hashlib
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from itertools import groupby
from pathlib import Path, PurePosixPath

from pipeline.errors import InputError, UnreadableError
from pipeline.imaging.preprocess import prepare, reading_for
from pipeline.imaging.sources import StudyFile, locate, open_file
from pipeline.records import FloatArray, Frame, ImageRecord, InstanceKey, Limits, Preprocessing

_WORKERS = 2
_AHEAD = 8


def prepared_frames(
    records: Sequence[ImageRecord], sources: Sequence[Path], preprocessing: Preprocessing
) -> Iterator[FloatArray]:
    """Yield the network's input for every record, in their order.

    Parameters
    ----------
    records
        Rows of an index; rows of one file stand together and are read in one go.
    sources
        The index's source folders.
    preprocessing
        The same as in scoring, so that the same file gives the same bytes.

    Yields
    ------
    FloatArray
        Of shape (1, size, size) in [0, 1].

    Raises
    ------
    InputError
        Where a file is gone, cannot be read any more, or is not the same as when it was ingested.
    """
    files = (list(group) for _, group in groupby(records, key=lambda record: (record.root, record.source)))
    with ThreadPoolExecutor(_WORKERS) as pool:
        pending: deque[Future[list[FloatArray]]] = deque()
        try:
            for rows in files:
                pending.append(pool.submit(_prepare_file, rows, sources[rows[0].root], preprocessing))
                if len(pending) >= _AHEAD:
                    yield from pending.popleft().result()
            while pending:
                yield from pending.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


def _prepare_file(rows: Sequence[ImageRecord], root: Path, preprocessing: Preprocessing) -> list[FloatArray]:
    source = rows[0].source
    found: dict[InstanceKey, FloatArray] = {}
    try:
        for frame in _frames(rows, locate(root, source), preprocessing):
            found[frame.key] = prepare(frame.pixels, preprocessing, frame.whole_box)
    except UnreadableError as error:
        raise InputError(f"{_own_name(source)} could be read when it was ingested: {error} Ingest the folder again.") from None
    if missing := {record.key for record in rows} - set(found):
        number = min(key.frame_number for key in missing)
        raise InputError(f"{_own_name(source)} has no frame {number} any more. Ingest the folder again.")
    return [found[record.key] for record in rows]


def _frames(rows: Sequence[ImageRecord], file: StudyFile, preprocessing: Preprocessing) -> Iterator[Frame]:
    """Yield the frames of a file that `rows` are about, after a check that they are what was ingested.

    An index of octray 0.1 has no hash of the file; its frames are decoded whole and compared one by one.
    """
    wanted = {record.key: record for record in rows}
    reading = reading_for(preprocessing, Limits())
    whole = not rows[0].file_sha256
    content, frames = open_file(file, replace(reading, side=None, hashes=True) if whole else reading)
    if not whole and hashlib.sha256(content).hexdigest() != rows[0].file_sha256:
        raise _changed(file)
    for frame in frames:
        record = wanted.get(frame.key)
        if record is not None:
            if whole and frame.pixel_sha256 != record.pixel_sha256:
                raise _changed(file)
            yield frame


def _changed(file: StudyFile) -> InputError:
    return InputError(f"{_own_name(file.source)} is not the same as when it was ingested. Ingest the folder again.")


def _own_name(source: str) -> str:
    return PurePosixPath(source).name
