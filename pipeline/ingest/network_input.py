"""From the rows of an index to the network's input: reads each file once, several at a time, in the order of the rows."""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import closing
from itertools import chain, groupby
from pathlib import Path, PurePosixPath

import numpy as np

from pipeline.errors import InputError, UnreadableError
from pipeline.frames import FloatArray, Frame, ImageRecord, InstanceKey
from pipeline.imaging.preprocess import prepare, reading_for
from pipeline.imaging.quality.gate import check_intended_use
from pipeline.imaging.sources import locate, open_file
from pipeline.settings import Gate, Limits, Preprocessing
from pipeline.workers.ahead import map_ahead
from pipeline.workers.cores import usable_cores

_AHEAD = 4
"""How many files are begun for each core before they are needed."""


def prepared_frames(
    records: Sequence[ImageRecord],
    sources: Sequence[Path],
    preprocessing: Preprocessing,
    limits: Limits = Limits(),  # noqa: B008
    gate: Gate | None = None,
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
    gate
        Refuses frames that it is not meant for, as in scoring; None refuses none.

    Yields
    ------
    FloatArray
        Of shape (1, size, size) in [0, 1].

    Raises
    ------
    InputError
        If a file is gone, cannot be read any more, is not the same as when it was ingested, or has a frame that the gate
        refuses or a pixel that is not a number.
    """
    files = (list(group) for _, group in groupby(records, key=lambda record: (record.root, record.source)))
    cores = usable_cores()

    def prepared(rows: Sequence[ImageRecord]) -> list[FloatArray]:
        return _prepare_file(rows, sources[rows[0].root], preprocessing, limits, gate)

    with closing(map_ahead(prepared, files, cores, _AHEAD * cores)) as results:
        yield from chain.from_iterable(results)


def _prepare_file(
    rows: Sequence[ImageRecord], root: Path, preprocessing: Preprocessing, limits: Limits, gate: Gate | None
) -> list[FloatArray]:
    source = rows[0].source
    name = PurePosixPath(source).name
    wanted = {row.key for row in rows}
    found: dict[InstanceKey, FloatArray] = {}
    try:
        content, frames = open_file(locate(root, source), reading_for(preprocessing, limits))
        if rows[0].file_sha256 != hashlib.sha256(content).hexdigest():
            raise InputError(f"{name} is not the same as when it was ingested. Ingest the folder again.")
        for frame in frames:
            if frame.key in wanted:
                if gate is not None:
                    _check_intended_use(frame, gate, name)
                found[frame.key] = prepare(frame.pixels, preprocessing, frame.whole_box, frame.whole_shape)
    except UnreadableError as error:
        raise InputError(f"{name} could be read when it was ingested: {error} Ingest the folder again.") from None
    if missing := [row.key.frame_number for row in rows if row.key not in found]:
        raise InputError(f"{name} has no frame {missing[0]} any more. Ingest the folder again.")
    if broken := [row.key.frame_number for row in rows if not np.isfinite(found[row.key]).all()]:
        raise InputError(
            f"Frame {broken[0]} of {name} has pixels that are not numbers. Export the file again, or leave it out."
        )
    return [found[row.key] for row in rows]


def _check_intended_use(frame: Frame, gate: Gate, name: str) -> None:
    try:
        check_intended_use(frame, gate)
    except UnreadableError as error:
        raise InputError(
            f"{name} is not what the model is meant for, and scoring would refuse it. {error} Ingest again with --config, "
            "which leaves such frames out, or change the section data of the configuration."
        ) from None
