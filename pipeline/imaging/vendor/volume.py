"""What the files of all OCT devices have in common: a volume of B-scans, and the frame that is made of each."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import Reason, UnreadableError
from pipeline.frames import FloatArray, Frame, InstanceKey
from pipeline.imaging.identity import pixel_sha256, stored_sha256

LARGEST_SPACING_MM = 1.0
"""A larger distance between the pixels of a B-scan is a fault of the file: a B-scan is a few millimetres deep."""


@dataclass(frozen=True, slots=True)
class Volume:
    """The facts of a file that hold for all B-scans of a volume.

    Parameters
    ----------
    uids
        Study, series and SOP Instance UID.
    source
        As in `Frame`.
    number_of_frames
        How many B-scans it has.
    laterality
        R, L, or empty if the file names no eye.
    pixel_spacing_mm
        As in `Frame`: along the A-scan, then across it.
    distance_mm
        Between two B-scans, if they are parallel; None if unknown.
    notes
        What was assumed, in sentences.
    decoder
        As in `Frame`.
    """

    uids: tuple[str, str, str]
    source: str
    number_of_frames: int
    laterality: str = ""
    pixel_spacing_mm: tuple[float, float] | None = None
    distance_mm: float | None = None
    notes: tuple[str, ...] = ()
    decoder: str = "octray"


def spacing(axial_mm: float, lateral_mm: float) -> tuple[float, float] | None:
    """Return both distances; None if one of them cannot be true."""
    possible = all(np.isfinite(one) and 0 < one <= LARGEST_SPACING_MM for one in (axial_mm, lateral_mm))
    return (axial_mm, lateral_mm) if possible else None


def fourth_root(reflectivity: NDArray[Any], unmeasured: float) -> FloatArray:
    """Turn reflectivity as Heidelberg stores it, in [0, 1], into grey levels; values of `unmeasured` or more become black."""
    measured = np.where((reflectivity >= 0) & (reflectivity < unmeasured), reflectivity, 0)
    return np.minimum(measured, 1).astype(np.float32) ** np.float32(0.25)


def volume_frame(volume: Volume, number: int, stored: NDArray[Any], pixels: FloatArray, notes: tuple[str, ...] = ()) -> Frame:
    """Make the frame of one B-scan.

    Parameters
    ----------
    volume
        The volume that it belongs to.
    number
        From 1.
    stored
        Array of shape (rows, columns) as it lies in the file.
    pixels
        The same in grey levels.
    notes
        What else was assumed.
    """
    return Frame(
        pixels=pixels,
        key=InstanceKey(*volume.uids, number),
        source=volume.source,
        pixel_sha256=pixel_sha256(stored),
        modality="OPT",
        laterality=volume.laterality,
        pixel_spacing_mm=volume.pixel_spacing_mm,
        number_of_frames=volume.number_of_frames,
        slice_position_mm=None if volume.distance_mm is None else (number - 1) * volume.distance_mm,
        stored_sha256=stored_sha256(stored),
        stored_range=(float(stored.min()), float(stored.max())),
        notes=volume.notes + notes,
        decoder=volume.decoder,
    )


def cut_off() -> UnreadableError:
    """Return the error for a file that ends too early."""
    return UnreadableError(Reason.TRUNCATED, "The file of the OCT device is cut off. Copy or export it again.")


def no_scan() -> UnreadableError:
    """Return the error for a file without a B-scan."""
    return UnreadableError(
        Reason.NO_PIXELS, "The file of the OCT device holds no B-scan that octray reads. Export it as DICOM."
    )
