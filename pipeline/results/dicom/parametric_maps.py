"""Heatmaps as Parametric Maps (PS3.3 A.75): evidence as floats on the grid of their frames, one object for each label."""

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace

import highdicom as hd
import numpy as np
from highdicom.pm import DerivedPixelContrastValues, ParametricMap, RealWorldValueMapping
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.sr.coding import Code
from pydicom.valuerep import DS

from pipeline.frames import FloatArray
from pipeline.imaging.dicom.dataset import uid_text
from pipeline.imaging.dicom.elements import Scope, numbers
from pipeline.imaging.dicom.header import pixel_spacing
from pipeline.imaging.identity import derived_uid
from pipeline.imaging.preprocess import onto_frame, placement
from pipeline.predictions import DIGITS, FramePrediction
from pipeline.results.dicom import Kind
from pipeline.results.dicom.source import Author, Source, describe_image, placeholder_image, to_file

LONGEST_SIDE = 256
"""Limit on the rows and columns of a map: enough for dozens of pixels a heatmap cell, and small for a whole volume."""
_UPRIGHT = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
_UNKNOWN_MM = 1.0
_SMALLEST_MM, _LARGEST_MM = 1e-6, 1e6
_TOLERANCE = 1e-3


@dataclass(frozen=True, slots=True)
class Space:
    """The place of frames in the patient (PS3.3 C.7.6.2): one orientation and pixel size, and each frame's position.

    Parameters
    ----------
    frame_of_reference_uid
        Frame of Reference UID (0020,0052).
    orientation
        Image Orientation (Patient) (0020,0037).
    spacing
        Distance between rows and between columns in mm.
    thickness
        Slice Thickness (0018,0050) in mm.
    positions
        For each frame the centre of its first pixel in mm, Image Position (Patient) (0020,0032); all are distinct.
    is_synthetic
        Whether the source has no usable geometry. The instance then has a space of its own: first pixels at the origin, frames
        one behind the other in the order in which highdicom sorts them, and pixels of 1 mm if no other spacing is known.
    """

    frame_of_reference_uid: str
    orientation: tuple[float, ...]
    spacing: tuple[float, float]
    thickness: float
    positions: tuple[tuple[float, ...], ...]
    is_synthetic: bool


def space_of(source: Source, frame_numbers: Sequence[int]) -> Space:
    """Return the space of some frames, which count from 1."""
    scopes = [Scope.of(source.dataset, number - 1) for number in frame_numbers]
    reference = uid_text(source.dataset, "FrameOfReferenceUID")
    orientations = {_numbers(scope, "PlaneOrientationSequence", "ImageOrientationPatient") for scope in scopes}
    spacings = {_numbers(scope, "PixelMeasuresSequence", "PixelSpacing") for scope in scopes}
    positions = tuple(_numbers(scope, "PlanePositionSequence", "ImagePositionPatient") for scope in scopes)
    thickness = _positive(_numbers(scopes[0], "PixelMeasuresSequence", "SliceThickness"))
    orientation, spacing = min(orientations), min(spacings)
    is_whole = (
        reference not in ("", *source.uids)
        and (len(orientations), len(spacings), len(set(positions))) == (1, 1, len(positions))
        and _is_orthonormal(orientation)
        and len(spacing) == 2
        and _are_lengths(spacing)
        and all(len(position) == 3 and max(map(abs, position)) < _LARGEST_MM for position in positions)
    )
    if is_whole:
        return Space(reference, orientation, (spacing[0], spacing[1]), thickness, positions, is_synthetic=False)
    return Space(
        derived_uid(source.uids[2].encode(), "frame of reference"),
        _UPRIGHT,
        known if (known := pixel_spacing(scopes[0])) and _are_lengths(known) else (_UNKNOWN_MM, _UNKNOWN_MM),
        thickness,
        tuple((0.0, 0.0, (1 - number) * thickness) for number in frame_numbers),
        is_synthetic=True,
    )


def grid_shape(rows: int, columns: int) -> tuple[int, int]:
    """Return the rows and columns of a map that covers a frame: as many as it has, or fewer by a whole factor, rounded up."""
    factor = math.ceil(max(rows, columns) / LONGEST_SIDE)
    return math.ceil(rows / factor), math.ceil(columns / factor)


def on_grid(space: Space, frame_shape: tuple[int, int], shape: tuple[int, int]) -> Space:
    """Return the space of maps of `shape` that cover frames of `frame_shape`; first centres move with the size of pixels."""
    across, down = np.reshape(space.orientation, (2, 3))
    tall, wide = (space.spacing[axis] * frame_shape[axis] / shape[axis] for axis in (0, 1))
    shift = across * (wide - space.spacing[1]) / 2 + down * (tall - space.spacing[0]) / 2
    positions = tuple(tuple(float(value) for value in np.add(position, shift)) for position in space.positions)
    return replace(space, spacing=(tall, wide), positions=positions)


def _numbers(scope: Scope, macro: str, keyword: str) -> tuple[float, ...]:
    holder = scope.holder(macro, keyword)
    return numbers(holder, keyword) if holder is not None else ()


def _positive(found: tuple[float, ...]) -> float:
    return found[0] if len(found) == 1 and _are_lengths(found) else _UNKNOWN_MM


def _are_lengths(found: tuple[float, ...]) -> bool:
    """Return whether all numbers are plausible lengths in mm: files hold others too, and those break arithmetic."""
    return min(found) > _SMALLEST_MM and max(found) < _LARGEST_MM


def _is_orthonormal(orientation: tuple[float, ...]) -> bool:
    if len(orientation) != 6:
        return False
    axes = np.reshape(orientation, (2, 3))
    return bool(np.abs(axes @ axes.T - np.eye(2)).max() < _TOLERANCE)


_NO_UNITS = Code("1", "UCUM", "no units")
_WEIGHTED = Code("130403", "DCM", "Gradient-weighted class activation")
"""True of every method of `HeatmapMethod`; LUT Explanation (0028,3003) names the method."""


def write_parametric_maps(
    author: Author, results: Sequence[FramePrediction], heights: Mapping[int, float]
) -> Iterator[tuple[int, bytes]]:
    """Write a map of each label but the normal one, with one frame for each scored frame that has its heatmap.

    Parameters
    ----------
    author
        What the objects say of the bundle and the source.
    results
        Of the frames of one instance.
    heights
        As returned by `bright_height`, by frame number; 0.5 for frames that are missing.

    Yields
    ------
    tuple[int, bytes]
        The label's place in the bundle from 1 on, and the DICOM file.
    """
    for place, label in enumerate(author.manifest.labels, 1):
        maps = {
            result.key.frame_number: _on_frame(heatmap.values, author, heights.get(result.key.frame_number, 0.5))
            for result in results
            for heatmap in result.heatmaps
            if heatmap.label == label != author.manifest.normal_label and heatmap.values is not None
        }
        if maps:
            yield place, _write(author, label, place, maps)


def _on_frame(values: FloatArray, author: Author, height: float) -> FloatArray:
    """Map a heatmap onto the grid of a map that covers its frame; its cells are rounded as all written numbers are."""
    source, preprocessing = author.source, author.manifest.preprocessing
    box = placement(source.rows, source.columns, preprocessing, height)
    cells = np.asarray(np.round(values, DIGITS), np.float32)
    return onto_frame(cells, box, preprocessing.size, grid_shape(source.rows, source.columns))


def _write(author: Author, label: str, place: int, maps: Mapping[int, FloatArray]) -> bytes:
    source = author.source
    pixels = np.stack(list(maps.values()))
    space = on_grid(space_of(source, tuple(maps)), (source.rows, source.columns), pixels.shape[1:])
    orientation = hd.PlaneOrientationSequence("PATIENT", space.orientation)
    positions = [hd.PlanePositionSequence("PATIENT", position) for position in space.positions]
    arguments = author.arguments(Kind.PM, _instance_number(author, place), label, hashlib.sha256(pixels.data).hexdigest())
    parametric = ParametricMap(
        source_images=[_located(source, number, space, index) for index, number in enumerate(maps)],
        pixel_array=pixels,
        contains_recognizable_visual_features=False,
        real_world_value_mappings=[_mapping(author, label, pixels)],
        voi_lut_transformations=[_window(author.manifest.heatmap.full_scale)],
        content_label="HEATMAP",
        content_description=f"Heatmap of {label}: {author.manifest.heatmap.meaning}"[:64].replace("\\", "/"),
        pixel_measures=hd.PixelMeasuresSequence(space.spacing, space.thickness),
        plane_orientation=orientation,
        plane_positions=positions,
        derived_pixel_contrast=DerivedPixelContrastValues.QUANTITY,
        **arguments | {"series_instance_uid": author.series_uid(Kind.PM, space.frame_of_reference_uid)},
    )
    describe_image(parametric, author)
    _refer_once(parametric, source)
    return to_file(parametric, author)


def _located(source: Source, number: int, space: Space, index: int) -> Dataset:
    """Return the placeholder of one frame, as if it were a separate image at the frame's position."""
    image = placeholder_image(source, number)
    image.FrameOfReferenceUID = space.frame_of_reference_uid
    image.ImageOrientationPatient = [DS(value, auto_format=True) for value in space.orientation]
    image.ImagePositionPatient = [DS(value, auto_format=True) for value in space.positions[index]]
    image.PixelSpacing = [DS(value, auto_format=True) for value in space.spacing]
    image.SliceThickness = DS(space.thickness, auto_format=True)
    return image


def _refer_once(parametric: Dataset, source: Source) -> None:
    """Reference the source once for the whole object; functional groups already reference the source of each frame."""
    image = placeholder_image(source)
    reference = Dataset()
    reference.ReferencedSOPClassUID, reference.ReferencedSOPInstanceUID = image.SOPClassUID, image.SOPInstanceUID
    parametric.SourceImageSequence = [reference]
    series = Dataset()
    series.SeriesInstanceUID, series.ReferencedInstanceSequence = image.SeriesInstanceUID, [deepcopy(reference)]
    parametric.ReferencedSeriesSequence = [series]


def _instance_number(author: Author, place: int) -> int:
    return (author.source.instance_number - 1) * len(author.manifest.labels) + place


def _mapping(author: Author, label: str, pixels: NDArray[np.float32]) -> RealWorldValueMapping:
    support = author.manifest.heatmap
    what = "exact evidence" if support.is_part_of_logit else "evidence"
    return RealWorldValueMapping(
        lut_label="EVIDENCE",
        lut_explanation=f"{support.method}, {what} for {label}"[:64].replace("\\", "/"),
        unit=_NO_UNITS,
        value_range=(float(pixels.min()), float(pixels.max())),
        slope=1.0,
        intercept=0.0,
        quantity_definition=_WEIGHTED,
    )


def _window(full_scale: float) -> hd.VOILUTTransformation:
    """Return the window that shows maps on the scale of the bundle, as its pictures do."""
    return hd.VOILUTTransformation(
        window_center=full_scale / 2,
        window_width=full_scale,
        voi_lut_function=hd.VOILUTFunctionValues.LINEAR_EXACT,  # LINEAR allows no width below 1 (PS3.3 C.11.2.1.2)
    )
