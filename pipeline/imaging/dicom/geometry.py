"""Reads from a DICOM header where a frame lies and how large its pixels are; a broken or missing element is unknown."""

import numpy as np

from pipeline.imaging.dicom.header import Scope, numbers

_SPACINGS = ("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing")


def pixel_spacing(scope: Scope) -> tuple[float, float] | None:
    """Pixel Spacing (0028,0030), Imager Pixel Spacing (0018,1164) or Nominal Scanned Pixel Spacing (0018,2010), in mm."""
    holder = scope.holder("PixelMeasuresSequence", *_SPACINGS)
    if holder is None:
        return None
    for keyword in _SPACINGS:
        found = numbers(holder, keyword)
        if len(found) == 2 and min(found) > 0:
            return found[0], found[1]
    return None


def slice_position(scope: Scope) -> float | None:
    """Return Image Position (0020,0032) along the normal of Image Orientation (0020,0037), in mm (PS3.3 C.7.6.2.1.1)."""
    place = scope.holder("PlanePositionSequence", "ImagePositionPatient")
    plane = scope.holder("PlaneOrientationSequence", "ImageOrientationPatient")
    position = numbers(place, "ImagePositionPatient") if place is not None else ()
    directions = numbers(plane, "ImageOrientationPatient") if plane is not None else ()
    if len(position) != 3 or len(directions) != 6:
        return None
    normal = np.cross(directions[:3], directions[3:])
    length = float(np.linalg.norm(normal))
    return float(np.dot(position, normal)) / length if length > 0 else None
