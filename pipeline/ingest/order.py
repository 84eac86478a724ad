"""Puts the frames of all files in the order of study, series, instance and place in the body, and finds UIDs that clash."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pipeline.ingest.labels import FileId
from pipeline.ingest.reading import ReadFile, SeenFrame


@dataclass(frozen=True, slots=True)
class Row:
    """A frame, and the position of its file in the list of files."""

    file: int
    frame: SeenFrame


def in_order(rows: Sequence[Row]) -> list[Row]:
    """Sort frames; studies, and series within a study, come in the order of their first file.

    The instances of a series are ordered by where their first frame lies along the normal of its plane, where that is known of
    all of them; otherwise by Instance Number (0020,0013), where all have one; otherwise as their files. The frames of an
    instance stand together, by their number.

    Parameters
    ----------
    rows
        In the order of their files.
    """
    studies: dict[str, int] = {}
    series: dict[tuple[str, str], int] = {}
    for number, row in enumerate(rows):
        key = row.frame.key
        studies.setdefault(key.study_instance_uid, number)
        series.setdefault((key.study_instance_uid, key.series_instance_uid), number)
    places = _places(rows)

    def order(row: Row) -> tuple[object, ...]:
        key = row.frame.key
        first = studies[key.study_instance_uid], series[key.study_instance_uid, key.series_instance_uid]
        return *first, places[_instance(row)], row.file, key.sop_instance_uid, key.frame_number

    return sorted(rows, key=order)


def clashes(files: Mapping[FileId, ReadFile]) -> dict[FileId, FileId]:
    """Return the files with an instance that another file has with other pixels, each with such a file.

    Two files with the same SOP Instance UID (0008,0018) and the same pixels are copies, and do not clash.
    """
    contents: dict[str, dict[str, FileId]] = {}
    for file_id, read in files.items():
        for instance, content in _contents(read).items():
            contents.setdefault(instance, {}).setdefault(content, file_id)
    several = {instance: known for instance, known in contents.items() if len(known) > 1}
    return {
        file_id: next(other for known, other in several[instance].items() if known != content)
        for file_id, read in files.items()
        for instance, content in (_contents(read).items() if several else ())
        if instance in several
    }


def _contents(read: ReadFile) -> dict[str, str]:
    """Return for each instance of a file a hash of the pixels of all its frames."""
    contents: dict[str, str] = {}
    for frame in read.frames:
        instance = frame.key.sop_instance_uid
        known = f"{contents.get(instance, '')} {frame.key.frame_number} {frame.pixel_sha256}"
        contents[instance] = hashlib.sha256(known.encode()).hexdigest()
    return contents


_Instance = tuple[int, str, str, str]


def _instance(row: Row) -> _Instance:
    key = row.frame.key
    return row.file, key.study_instance_uid, key.series_instance_uid, key.sop_instance_uid


def _places(rows: Sequence[Row]) -> dict[_Instance, float]:
    """Return for each instance what orders it within its series."""
    firsts: dict[_Instance, SeenFrame] = {}
    for row in rows:
        first = firsts.setdefault(_instance(row), row.frame)
        if row.frame.key.frame_number < first.key.frame_number:
            firsts[_instance(row)] = row.frame
    by_series: dict[tuple[str, str], list[_Instance]] = {}
    for instance in firsts:
        by_series.setdefault(instance[1:3], []).append(instance)
    return {
        instance: place
        for instances in by_series.values()
        for instance, place in zip(instances, _measured([firsts[one] for one in instances]), strict=True)
    }


def _measured(firsts: Sequence[SeenFrame]) -> list[float]:
    positions = [frame.slice_position_mm for frame in firsts]
    numbers = [frame.instance_number for frame in firsts]
    known = positions if None not in positions else numbers
    return [value if value is not None and None not in known else 0.0 for value in known]
