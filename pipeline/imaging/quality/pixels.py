"""Checks of the quality gate on grey levels: no picture, over- and underexposure, white wedges."""

import numpy as np

from pipeline.imaging.quality.look import Look, Subject, reduced
from pipeline.imaging.quality.ocr import find_text
from pipeline.records import FloatArray

BLANK_DEVIATION = 0.02
"""Standard deviation of a copy of `BLANK_SIDE` without a picture; real radiographs and B-scans have 0.067 and more."""
BLANK_SIDE = 24
"""Pixels on the shorter side of that copy, so few that noise averages out."""
CLIPPED_WHITE, CLIPPED_BLACK = 0.98, 0.02
CLIPPED_SHARE = 0.25
"""Of the middle half of the rows and columns. Of real radiographs not more than 0.004 is white or black there, of real B-scans
0.165 is white where a wedge reaches into it."""

CHARACTERS = 3


def blank(look: Look) -> str:
    """No picture: next to no differences between the grey levels, once noise has averaged out."""
    if float(reduced(look.small, BLANK_SIDE).std()) >= BLANK_DEVIATION:
        return ""
    return "The frame shows no picture: it is of one grey all over. Export it again, or leave it out."


def saturated(look: Look) -> str:
    """Over- or underexposed: too much of the middle of the frame is fully white, or in a radiograph fully black."""
    middle = central(look.small)
    if np.count_nonzero(middle >= np.float32(CLIPPED_WHITE)) > CLIPPED_SHARE * middle.size:
        return "Large parts of the frame are fully white: it is overexposed, or its window is wrong."
    if look.subject is Subject.CHEST and np.count_nonzero(middle <= np.float32(CLIPPED_BLACK)) > CLIPPED_SHARE * middle.size:
        return "Large parts of the frame are fully black: it is underexposed, or its window is wrong."
    return ""


def white_borders(look: Look) -> str:
    """White wedges that an earlier rotation left at the edges, as `imaging.borders` finds them."""
    if not look.wedges.any():
        return ""
    return "White wedges at the edges show that the frame was rotated before. Mask them, or use the original frame."


def burned_in_text(look: Look) -> str:
    """Burned In Annotation (0028,0301), or at least `CHARACTERS` characters in one place; side markers are shorter."""
    said = look.frame.burned_in_annotation == "YES"
    if not said and all(box.characters < CHARACTERS for box in find_text(look.frame.pixels)):
        return ""
    return "There is text in the pixels, which may name the patient."


def central(pixels: FloatArray) -> FloatArray:
    """Return the middle half of the rows and of the columns, which collimation hardly reaches."""
    rows, columns = pixels.shape
    return pixels[rows // 4 : rows - rows // 4, columns // 4 : columns - columns // 4]
