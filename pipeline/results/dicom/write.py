"""Writes the results of one source instance as DICOM objects of its study."""

import hashlib
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import datetime

from pipeline.imaging import guard
from pipeline.imaging.dicom.dataset import PREAMBLE, is_dicom
from pipeline.imaging.dicom.reader import read_dicom
from pipeline.imaging.preprocess import bright_height, reading_for
from pipeline.model.bundle import Manifest
from pipeline.predictions import FramePrediction, rounded
from pipeline.results.dicom import Kind
from pipeline.results.dicom.parametric_maps import write_parametric_maps
from pipeline.results.dicom.secondary_captures import write_secondary_capture
from pipeline.results.dicom.source import Author, read_source
from pipeline.results.dicom.structured_report import write_structured_report
from pipeline.settings import Fit

Pictures = Mapping[tuple[int, str], bytes]
NO_PICTURES: Pictures = {}


def write_objects(
    content: bytes,
    results: Sequence[FramePrediction],
    manifest: Manifest,
    kinds: Collection[Kind],
    made: datetime,
    pictures: Pictures = NO_PICTURES,
) -> Iterator[tuple[str, bytes]]:
    """Write what a bundle said of the frames of one instance.

    Parameters
    ----------
    content
        The source file; one that is not DICOM gets no objects.
    results
        Of its scored frames, with their heatmaps where maps are asked for.
    manifest
        Of the bundle.
    kinds
        Which objects to write.
    made
        When the results were made, with its time zone; to the second, it is the Content Date and Time of all objects.
    pictures
        PNG files by frame number and label; each becomes a secondary capture.

    Yields
    ------
    tuple[str, bytes]
        A file name and a DICOM file: one report, a map of each label but the normal one, each picture. Equal arguments give
        equal bytes and UIDs, and equal UIDs mean equal bytes; nothing in them says when or where the files were written.

    Raises
    ------
    UnreadableError
        Where the file cannot be read; nothing else, whatever the bytes are.
    """
    if not results or not is_dicom(content[: PREAMBLE + 4]):
        return
    guard.silence_decoders()
    objects = _objects(content, results, manifest, kinds, made, pictures)
    while True:
        with guard.translated("No DICOM object could be made for this file. Leave out --dicom for it, or export it again."):
            found = next(objects, None)
        if found is None:
            return
        yield found


def _objects(
    content: bytes,
    results: Sequence[FramePrediction],
    manifest: Manifest,
    kinds: Collection[Kind],
    made: datetime,
    pictures: Pictures,
) -> Iterator[tuple[str, bytes]]:
    author = Author(read_source(content, manifest.limits), manifest, _sha256(content, results), made)
    ordered = sorted(results, key=lambda result: result.key.frame_number)
    if Kind.SR in kinds:
        yield _name(author, Kind.SR), write_structured_report(author, ordered)
    if Kind.PM in kinds:
        for place, file in write_parametric_maps(author, ordered, _heights(content, manifest)):
            yield _name(author, Kind.PM, place), file
    if Kind.SC in kinds:
        for number, label in sorted(pictures):
            place = manifest.labels.index(label) + 1
            yield _name(author, Kind.SC, number, place), write_secondary_capture(author, number, label, pictures[number, label])


def _name(author: Author, kind: Kind, *parts: int) -> str:
    """Return a file name of the source's UID, which says where it belongs, and what tells the object from the others."""
    return "-".join([author.source.uids[2], kind.value, *map(str, parts)]) + ".dcm"


def _heights(content: bytes, manifest: Manifest) -> Mapping[int, float]:
    """Return the height at which each frame is bright, where the bundle looks there: for it frames are read once more."""
    preprocessing = manifest.preprocessing
    if preprocessing.fit is not Fit.FOCUS:
        return {}
    frames = read_dicom(content, "", reading_for(preprocessing, manifest.limits))
    return {frame.key.frame_number: bright_height(frame.pixels, preprocessing) for frame in frames}


def _sha256(content: bytes, results: Sequence[FramePrediction]) -> str:
    """Hash the source and all that a report says of it; numbers as they are written."""
    said = [
        (
            result.key.frame_number,
            result.facts.laterality,
            None if result.distance is None else rounded(result.distance),
            [flag.check.value for flag in result.flags],
            [(one.label, rounded(one.probability), one.positive, one.conformal_set) for one in result.predictions],
        )
        for result in results
    ]
    return hashlib.sha256(hashlib.sha256(content).digest() + json.dumps(said).encode()).hexdigest()
