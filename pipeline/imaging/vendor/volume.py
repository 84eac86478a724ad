"""What the readers of all OCT devices share: the frames of a volume of B-scans, and errors."""

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import Reason, UnreadableError
from pipeline.frames import FloatArray, Frame, InstanceKey
from pipeline.imaging.identity import pixel_sha256, stored_sha256

LARGEST_SPACING_MM = 1.0
"""A larger distance between the pixels of a B-scan is a fault of the file: a B-scan is a few millimetres deep."""


def spacing(axial_mm: float, lateral_mm: float) -> tuple[float, float] | None:
    """Return both distances; None if one of them cannot be true."""
    possible = all(np.isfinite(one) and 0 < one <= LARGEST_SPACING_MM for one in (axial_mm, lateral_mm))
    return (axial_mm, lateral_mm) if possible else None


def fourth_root(reflectivity: NDArray[Any], unmeasured: float) -> FloatArray:
    """Turn reflectivity as Heidelberg stores it, in [0, 1], into grey levels; values of `unmeasured` or more become black."""
    measured = np.where((reflectivity >= 0) & (reflectivity < unmeasured), reflectivity, 0)
    return np.minimum(measured, 1).astype(np.float32) ** np.float32(0.25)


def volume_frames(
    scans: Iterable[tuple[NDArray[Any], FloatArray, tuple[str, ...]]],
    *,
    uids: tuple[str, str, str],
    source: str,
    number_of_frames: int,
    first: int = 1,
    laterality: str = "",
    pixel_spacing_mm: tuple[float, float] | None = None,
    distance_mm: float | None = None,
    notes: tuple[str, ...] = (),
    decoder: str = "octray",
) -> Iterator[Frame]:
    """Yield the frames of a volume.

    Parameters
    ----------
    scans
        For each B-scan the array of shape (rows, columns) as stored in the file, the same in grey levels, and what was assumed
        about it, in sentences.
    uids
        Study, series and SOP Instance UID.
    source, laterality, decoder
        As in `Frame`.
    number_of_frames
        How many B-scans the volume has.
    first
        Frame number of the first one.
    pixel_spacing_mm
        As in `Frame`: along the A-scan, then across it.
    distance_mm
        Between two B-scans, if they are parallel; None if unknown.
    notes
        What was assumed about the file, in sentences.
    """
    for index, (stored, pixels, scan_notes) in enumerate(scans):
        yield Frame(
            pixels=pixels,
            key=InstanceKey(*uids, first + index),
            source=source,
            pixel_sha256=pixel_sha256(stored),
            modality="OPT",
            laterality=laterality,
            pixel_spacing_mm=pixel_spacing_mm,
            number_of_frames=number_of_frames,
            slice_position_mm=None if distance_mm is None else index * distance_mm,
            stored_sha256=stored_sha256(stored),
            stored_range=(float(stored.min()), float(stored.max())),
            notes=notes + scan_notes,
            decoder=decoder,
        )


def cut_off() -> UnreadableError:
    """Return the error for a file that ends too early."""
    return UnreadableError(Reason.TRUNCATED, "The file of the OCT device is cut off. Copy or export it again.")


def no_scan() -> UnreadableError:
    """Return the error for a file without a B-scan."""
    return UnreadableError(
        Reason.NO_PIXELS, "The file of the OCT device holds no B-scan that octray reads. Export it as DICOM."
    )
