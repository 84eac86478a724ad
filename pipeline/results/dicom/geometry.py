"""Says where the frames of an instance lie in space, or places them in a space of their own where the file does not say it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from pipeline.imaging.dicom.dataset import uid_text
from pipeline.imaging.dicom.header import Scope, numbers, pixel_spacing
from pipeline.imaging.identity import derived_uid
from pipeline.results.dicom.source import Source

LONGEST_SIDE = 256
"""Rows or columns of a map at most: a cell of a heatmap still has dozens of them, and a volume of maps stays small."""
_UPRIGHT = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
_UNKNOWN_MM = 1.0
_SMALLEST_MM, _LARGEST_MM = 1e-6, 1e6
_TOLERANCE = 1e-3


@dataclass(frozen=True, slots=True)
class Space:
    """Where frames lie (PS3.3 C.7.6.2): one orientation and pixel size, and each frame's position.

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
        Whether the source says nothing usable, so that the space is the instance's own: first pixels at the origin, one frame
        behind the other in the order in which highdicom sorts them, pixels of 1 mm where no other spacing is known.
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
    """Say whether numbers can be lengths of something in a patient: others break arithmetic, and a file may hold any."""
    return min(found) > _SMALLEST_MM and max(found) < _LARGEST_MM


def _is_orthonormal(orientation: tuple[float, ...]) -> bool:
    if len(orientation) != 6:
        return False
    axes = np.reshape(orientation, (2, 3))
    return bool(np.abs(axes @ axes.T - np.eye(2)).max() < _TOLERANCE)
