"""Writes the results of one source instance as DICOM objects of its study."""

import hashlib
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict
from datetime import datetime

from pipeline.imaging import guard
from pipeline.imaging.dicom.dataset import PREAMBLE, is_dicom
from pipeline.imaging.dicom.reader import read_dicom
from pipeline.imaging.preprocess import bright_height, reading_for
from pipeline.levels import LevelResult
from pipeline.model.bundle import Manifest
from pipeline.predictions import FramePrediction, rounded
from pipeline.results.dicom import Kind
from pipeline.results.dicom.parametric_maps import write_parametric_maps
from pipeline.results.dicom.secondary_captures import write_secondary_capture
from pipeline.results.dicom.source import Author, read_source
from pipeline.results.dicom.structured_report import write_structured_report
from pipeline.settings import Fit

PngFiles = Mapping[tuple[int, str], bytes]
NO_PICTURES: PngFiles = {}


def write_objects(
    content: bytes,
    results: Sequence[FramePrediction],
    manifest: Manifest,
    kinds: Collection[Kind],
    made: datetime,
    pictures: PngFiles = NO_PICTURES,
    levels: Sequence[LevelResult] = (),
) -> Iterator[tuple[str, bytes]]:
    """Write the results of a bundle for the frames of one instance as DICOM objects.

    Parameters
    ----------
    content
        The source file. If it is not DICOM, it gets no objects.
    results
        Results of its scored frames, with heatmaps if `kinds` has parametric maps.
    manifest
        Manifest of the bundle.
    kinds
        Which objects to write.
    made
        When the results were made, with its time zone; to the second, it is the Content Date and Time of all objects.
    pictures
        PNG files by frame number and label; each becomes a secondary capture.
    levels
        Results of the study and of the eyes in it, which the report states behind those of the frames.

    Yields
    ------
    tuple[str, bytes]
        A file name and a DICOM file: one report, a map of each label but the normal one, and each picture. Equal arguments give
        equal bytes and UIDs, and equal UIDs mean equal bytes, wherever and whenever the files are written.

    Raises
    ------
    UnreadableError
        If the file cannot be read; no other exception is raised, whatever the bytes are.
    """
    if not results or not is_dicom(content[: PREAMBLE + 4]):
        return
    guard.silence_decoders()
    objects = _objects(content, results, manifest, kinds, made, pictures, levels)
    while True:
        with guard.unreadable("No DICOM object could be made for this file. Export it again, or score it without --dicom."):
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
    pictures: PngFiles,
    levels: Sequence[LevelResult],
) -> Iterator[tuple[str, bytes]]:
    author = Author(read_source(content, manifest.limits), manifest, _sha256(content, results, levels), made)
    ordered = sorted(results, key=lambda result: result.key.frame_number)
    if Kind.SR in kinds:
        yield _name(author, Kind.SR), write_structured_report(author, ordered, levels)
    if Kind.PM in kinds:
        for place, file in write_parametric_maps(author, ordered, _heights(content, manifest)):
            yield _name(author, Kind.PM, place), file
    if Kind.SC in kinds:
        for number, label in sorted(pictures):
            place = manifest.labels.index(label) + 1
            yield _name(author, Kind.SC, number, place), write_secondary_capture(author, number, label, pictures[number, label])


def _name(author: Author, kind: Kind, *parts: int) -> str:
    """Return a file name: the UID of the source, the kind, and `parts` that distinguish objects of one kind."""
    return "-".join([author.source.uids[2], kind.value, *map(str, parts)]) + ".dcm"


def _heights(content: bytes, manifest: Manifest) -> Mapping[int, float]:
    """Return the height at which each frame is bright, for bundles that look there; reads the frames once more."""
    preprocessing = manifest.preprocessing
    if preprocessing.fit is not Fit.FOCUS:
        return {}
    frames = read_dicom(content, "", reading_for(preprocessing, manifest.limits))
    return {frame.key.frame_number: bright_height(frame.pixels, preprocessing) for frame in frames}


def _sha256(content: bytes, results: Sequence[FramePrediction], levels: Sequence[LevelResult]) -> str:
    """Hash the source and everything that a report says of it, with numbers rounded as they are written."""
    said: list[object] = [
        (
            result.key.frame_number,
            result.facts.laterality,
            rounded(result.distance),
            [flag.check.value for flag in result.flags],
            [(one.label, rounded(one.probability), one.positive, one.conformal_set) for one in result.predictions],
        )
        for result in results
    ]
    said += [
        (
            *(one.level, one.laterality, one.pooling, one.frames, one.left_out),
            [(each.label, rounded(each.probability), each.state, each.deciding) for each in one.predictions],
        )
        for one in levels
    ]
    return hashlib.sha256(hashlib.sha256(content).digest() + json.dumps(said, default=asdict).encode()).hexdigest()
