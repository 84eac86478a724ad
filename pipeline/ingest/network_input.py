"""From the rows of an index to the network's input: reads each file once, several at a time, in the order of the rows."""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from itertools import chain, groupby
from pathlib import Path, PurePosixPath

from pipeline.errors import InputError, UnreadableError
from pipeline.frames import FloatArray, Frame, ImageRecord
from pipeline.imaging.preprocess import prepare, reading_for
from pipeline.imaging.sources import locate, open_file
from pipeline.settings import Limits, Preprocessing, Reading
from pipeline.workers.ahead import map_ahead
from pipeline.workers.cores import usable_cores

_AHEAD = 4
"""How many files are begun for each core before they are needed."""


def prepared_frames(
    records: Sequence[ImageRecord],
    sources: Sequence[Path],
    preprocessing: Preprocessing,
    limits: Limits = Limits(),  # noqa: B008
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
    limits
        What one file may demand; no less than when it was ingested.

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
    cores = usable_cores()

    def prepared(rows: Sequence[ImageRecord]) -> list[FloatArray]:
        return _prepare_file(rows, sources[rows[0].root], preprocessing, limits)

    with closing(map_ahead(prepared, files, cores, _AHEAD * cores)) as results:
        yield from chain.from_iterable(results)


def _prepare_file(rows: Sequence[ImageRecord], root: Path, preprocessing: Preprocessing, limits: Limits) -> list[FloatArray]:
    source = rows[0].source
    try:
        content, frames = open_file(locate(root, source), _reading(rows, preprocessing, limits))
        if rows[0].file_sha256 not in ("", hashlib.sha256(content).hexdigest()):
            raise _changed(source)
        found = _found(rows, frames, preprocessing)
    except UnreadableError as error:
        raise InputError(f"{_own_name(source)} could be read when it was ingested: {error} Ingest the folder again.") from None
    if missing := [number for number, row in enumerate(rows) if number not in found]:
        number = rows[missing[0]].key.frame_number
        raise InputError(f"{_own_name(source)} has no frame {number} any more. Ingest the folder again.")
    return [found[number] for number in range(len(rows))]


def _reading(rows: Sequence[ImageRecord], preprocessing: Preprocessing, limits: Limits) -> Reading:
    """Say how a file is read: whole, so that its pixels can be compared, where octray 0.1 kept no hash of it."""
    reading = reading_for(preprocessing, limits)
    return reading if rows[0].file_sha256 else replace(reading, side=None, hashes=True)


def _found(rows: Sequence[ImageRecord], frames: Iterable[Frame], preprocessing: Preprocessing) -> dict[int, FloatArray]:
    """Return what the network takes for each row, by its position; rows of octray 0.1 are known by their frame number only."""
    hashed = bool(rows[0].file_sha256)
    wanted = {row.key if hashed else row.key.frame_number: position for position, row in enumerate(rows)}
    found: dict[int, FloatArray] = {}
    for frame in frames:
        position = wanted.get(frame.key if hashed else frame.key.frame_number)
        if position is None:
            continue
        if not hashed and frame.pixel_sha256 != rows[position].pixel_sha256:
            raise _changed(frame.source)
        found[position] = prepare(frame.pixels, preprocessing, frame.whole_box, frame.whole_shape)
    return found


def _changed(source: str) -> InputError:
    return InputError(f"{_own_name(source)} is not the same as when it was ingested. Ingest the folder again.")


def _own_name(source: str) -> str:
    return PurePosixPath(source).name
