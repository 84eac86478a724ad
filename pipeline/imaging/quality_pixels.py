"""Checks of the quality gate on grey levels: no picture, over- and underexposure, white wedges."""

import numpy as np

from pipeline.imaging.borders import white_borders as wedges
from pipeline.imaging.quality_look import Look, Subject
from pipeline.records import FloatArray

BLANK_DEVIATION = 0.02
CLIPPED_WHITE, CLIPPED_BLACK = 0.98, 0.02
WHITE_SHARE, BLACK_SHARE = 0.25, 0.25


def blank(look: Look) -> str:
    """No picture: next to no differences between the grey levels of the small copy, in which noise averages out."""
    if float(look.small.std()) >= BLANK_DEVIATION:
        return ""
    return "The frame shows no picture: it is of one grey all over. Export it again, or leave it out."


def saturated(look: Look) -> str:
    """Over- or underexposed: too much of the middle of the frame is fully white, or in a radiograph fully black."""
    middle = central(look.small)
    if float(np.mean(middle >= np.float32(CLIPPED_WHITE))) > WHITE_SHARE:
        return "Large parts of the frame are fully white: it is overexposed, or its window is wrong."
    if look.subject is Subject.CHEST and float(np.mean(middle <= np.float32(CLIPPED_BLACK))) > BLACK_SHARE:
        return "Large parts of the frame are fully black: it is underexposed, or its window is wrong."
    return ""


def white_borders(look: Look) -> str:
    """White wedges that an earlier rotation left at the edges, as `imaging.borders` finds them."""
    if not wedges(look.frame.pixels).any():
        return ""
    return "White wedges at the edges show that the frame was rotated before. Mask them, or use the original frame."


def central(pixels: FloatArray) -> FloatArray:
    """Return the middle half of the rows and of the columns, which collimation and wedges hardly reach."""
    rows, columns = pixels.shape
    return pixels[rows // 4 : rows - rows // 4, columns // 4 : columns - columns // 4]
