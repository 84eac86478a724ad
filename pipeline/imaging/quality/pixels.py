"""Checks of the quality gate on grey levels: no picture, over- and underexposure, white wedges."""

import numpy as np

from pipeline.frames import FloatArray
from pipeline.imaging.borders import NEARLY_WHITE, STRETCH
from pipeline.imaging.quality.look import Look, Subject, reduced
from pipeline.imaging.quality.ocr import find_text

BLANK_DEVIATION = 0.02
"""Standard deviation of a copy of `BLANK_SIDE` without a picture; real radiographs and B-scans have 0.067 and more."""
BLANK_SIDE = 24
"""Pixels on the shorter side of that copy, so few that noise averages out."""
CLIPPED_WHITE, CLIPPED_BLACK = 0.98, 0.02
CLIPPED_SHARE = 0.25
"""Of the middle half of the rows and columns. Of real radiographs not more than 0.004 is white or black there, of real B-scans
0.165 is white where a wedge reaches into it."""
BLANK_DOUBT, CLIPPED_DOUBT = 0.005, 0.03
"""By how much such figures may change from a whole frame to a reduced one; DECISIONS.md says what was measured."""
THIN, THIN_BESIDE = 0.25, 0.75
"""A white line along an edge, thinner than a pixel of a reduced frame, makes up this part of it at least; it is looked for
beside pixels that are darker than the second number."""

CHARACTERS = 3


def blank(look: Look) -> str:
    """No picture: next to no differences between the grey levels, once noise has averaged out."""
    if float(reduced(look.small, BLANK_SIDE).std()) >= BLANK_DEVIATION + look.doubt(BLANK_DOUBT):
        return ""
    return "The frame shows no picture: it is of one grey all over. Export it again, or leave it out."


def saturated(look: Look) -> str:
    """Over- or underexposed: too much of the middle of the frame is fully white, or in a radiograph fully black."""
    middle = central(look.small)
    most = (CLIPPED_SHARE - look.doubt(CLIPPED_DOUBT)) * middle.size
    if np.count_nonzero(middle >= np.float32(CLIPPED_WHITE)) > most:
        return "Large parts of the frame are fully white: it is overexposed, or its window is wrong."
    if look.subject is Subject.CHEST and np.count_nonzero(middle <= np.float32(CLIPPED_BLACK)) > most:
        return "Large parts of the frame are fully black: it is underexposed, or its window is wrong."
    return ""


def white_borders(look: Look) -> str:
    """White wedges that an earlier rotation left at the edges, as `imaging.borders` finds them."""
    if not look.wedges.any() and not (look.wary and _may_have_thin_wedge(look.frame.pixels)):
        return ""
    return "White wedges at the edges show that the frame was rotated before. Mask them, or use the original frame."


def _may_have_thin_wedge(pixels: FloatArray) -> bool:
    """Say whether an edge of a reduced frame is so much brighter than what lies beside it that white lines may hide in it."""
    for edge, beside in (
        (pixels[0], pixels[1]),
        (pixels[-1], pixels[-2]),
        (pixels[:, 0], pixels[:, 1]),
        (pixels[:, -1], pixels[:, -2]),
    ):
        hides = (edge - beside >= THIN * (NEARLY_WHITE - beside)) & (beside < THIN_BESIDE)
        if np.count_nonzero(hides) * 2 * STRETCH >= len(edge):
            return True
    return False


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
