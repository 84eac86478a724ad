"""From the rows of an index to the network's input: reads each file once, two at a time, in the order of the rows."""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import groupby
from pathlib import Path

from pipeline.errors import InputError, UnreadableError
from pipeline.imaging.preprocess import prepare
from pipeline.imaging.sources import StudyFile, read_frames
from pipeline.records import FloatArray, ImageRecord, Preprocessing

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
        Where a file is gone, cannot be read any more, or has other pixels than when it was ingested.
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


def _prepare_file(rows: Iterable[ImageRecord], root: Path, preprocessing: Preprocessing) -> list[FloatArray]:
    wanted = {record.key.frame_number: record for record in rows}
    source = next(iter(wanted.values())).source
    found: dict[int, FloatArray] = {}
    try:
        for frame in read_frames(StudyFile(root / source, source)):
            record = wanted.get(frame.key.frame_number)
            if record is None:
                continue
            if record.pixel_sha256 != frame.pixel_sha256:
                raise InputError(f"{Path(source).name} has other pixels than when it was ingested. Ingest the folder again.")
            found[frame.key.frame_number] = prepare(frame.pixels, preprocessing)
    except UnreadableError as error:
        raise InputError(f"{Path(source).name} could be read when it was ingested: {error} Ingest the folder again.") from None
    if missing := set(wanted) - set(found):
        raise InputError(f"{Path(source).name} has no frame {min(missing)} any more. Ingest the folder again.")
    return [found[number] for number in wanted]
