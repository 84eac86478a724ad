"""The quality gate: checks a frame, says in sentences for people what is wrong with it, and refuses it if the gate says so.

A value that the file does not state is never held against it, and no message contains a value of the file.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from enum import Enum
from functools import cached_property
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import ConfigError, Reason, UnreadableError
from pipeline.frames import FloatArray, Frame
from pipeline.imaging.dicom.terms import RADIOGRAPHY, is_expected_body_part, is_expected_modality, is_expected_view
from pipeline.imaging.preprocess import NEARLY_WHITE, STRETCH, white_borders
from pipeline.imaging.quality import ocr, position
from pipeline.settings import Check, Flag, Gate, Policy

SIDE = 96
"""The shorter side of the small copy has at least this many pixels, if the frame has."""
EDGE = 4
"""Pixels of the small copy along its edges, and along wedges, that checks of its picture leave aside."""
SPREAD = (1.5, 3.0)
"""Standard deviation of the smoothing in rows and columns of the small copy."""
BLANK_DEVIATION = 0.02
"""Standard deviation of a copy of `BLANK_SIDE` without a picture; real radiographs and B-scans have 0.067 and more."""
BLANK_SIDE = 24
"""Pixels on the shorter side of that copy, so few that noise averages out."""
CLIPPED_WHITE, CLIPPED_BLACK = 0.98, 0.02
CLIPPED_SHARE = 0.25
"""Of the middle half of the rows and columns. Of real radiographs not more than 0.004 is white or black there, of real B-scans
0.165 is white if a wedge reaches into it."""
WEDGE_DOUBT, BLANK_DOUBT, CLIPPED_DOUBT = 0.03, 0.005, 0.03
CORRELATION_DOUBT, EMPTY_DOUBT, GREY_DOUBT, SCAN_DOUBT = 0.08, 0.03, 2 / 255, 0.05
"""By how much such figures may change from a whole frame to a reduced one; DECISIONS.md says what was measured."""
THIN, THIN_BESIDE = 0.25, 0.75
"""A white line along an edge, thinner than a pixel of a reduced frame, makes up this part of it at least; it is looked for
beside pixels that are darker than the second number."""
CHARACTERS = 3
"""Least number of characters in one place that count as text; side markers are shorter."""
_CHEST = "CHEST"


class Subject(Enum):
    """What a frame shows, if header and gate leave no doubt."""

    CHEST = "chest radiograph"
    B_SCAN = "OCT B-scan"
    OTHER = "something else, or unknown"


class CheckedFrame:
    """A frame, what is expected of it, and what several checks need to know of it, computed once.

    Parameters
    ----------
    frame
        The frame to check, at whatever resolution it was decoded.
    gate
        What is expected of it.
    strict
        Whether thresholds give way, so that checks of a frame decoded at a reduced resolution find as well what they might find
        in the whole frame.
    """

    def __init__(self, frame: Frame, gate: Gate, strict: bool = False) -> None:
        self.frame = frame
        self.gate = gate
        self.strict = strict

    def doubt(self, most: float) -> float:
        """Return by how much a threshold is relaxed: `most`, the change from the whole frame to a reduced one, or 0."""
        return most if self.strict else 0.0

    @cached_property
    def small(self) -> FloatArray:
        """The frame with block averages of whole numbers of pixels, so that every size is judged at nearly the same one."""
        return reduced(self.frame.pixels, SIDE)

    @cached_property
    def wedges(self) -> NDArray[np.bool_]:
        """A mask of the whole frame that is true in white wedges of an earlier rotation."""
        return white_borders(self.frame.pixels, self.doubt(WEDGE_DOUBT))

    @cached_property
    def seen(self) -> NDArray[np.bool_]:
        """A mask of the small copy, true in the picture: neither in a wedge, nor within `EDGE` pixels of one or of an edge."""
        from scipy import ndimage  # takes a third of a second to import, and few frames need it

        picture = np.zeros(self.small.shape, bool)
        picture[EDGE:-EDGE, EDGE:-EDGE] = True
        if self.wedges.any():
            covered = reduced(self.wedges.astype(np.float32), SIDE) > 0
            picture &= ~ndimage.maximum_filter(covered, 2 * EDGE + 1)
        return picture

    @cached_property
    def smooth(self) -> FloatArray:
        """The small copy, each pixel averaged with those near it, more of them across than down, that are seen."""
        from scipy import ndimage

        weight = ndimage.gaussian_filter(self.seen.astype(np.float32), SPREAD)
        total = ndimage.gaussian_filter(np.where(self.seen, self.small, np.float32(0)), SPREAD)
        average: FloatArray = total / np.maximum(weight, np.float32(1e-3))
        return average

    @cached_property
    def subject(self) -> Subject:
        """What the frame shows, by its header; if that is silent, what the gate expects."""
        modalities = {self.frame.modality} if self.frame.modality else set(self.gate.intended_use.modalities)
        if modalities == {"OPT"}:
            return Subject.B_SCAN
        if modalities and modalities <= RADIOGRAPHY and self._is_chest():
            return Subject.CHEST
        return Subject.OTHER

    def _is_chest(self) -> bool:
        """Return whether the header says so, or, if it is silent, whether the gate expects frontal radiographs of chests."""
        if self.frame.body_part:
            return self.frame.body_part == _CHEST
        return bool(self.gate.intended_use.body_parts) and all(
            is_expected_body_part(_CHEST, (part,)) for part in self.gate.intended_use.body_parts
        )

    @cached_property
    def is_inverted(self) -> bool:
        """Whether the frame is the negative of a chest radiograph or of a B-scan.

        The negative of a chest correlates better with that of `UPRIGHT_CHEST`, however it is turned. A B-scan has few bright
        pixels in a dark frame, so the skewness of its grey levels is positive (0.52 and more in real ones); that of its
        negative is not.
        """
        if self.subject is Subject.CHEST:
            correlations = position.chest_correlations(self.small)
            as_it_is = max(correlations.max(), position.half_chest_correlation(self.small))
            doubt, negative = self.doubt(CORRELATION_DOUBT), -correlations.min()
            return bool(negative >= position.NEGATIVE - doubt and negative > as_it_is + position.CHEST_MARGIN - doubt)
        if self.subject is not Subject.B_SCAN or min(self.small.shape) < position.SMALLEST or not self.seen.any():
            return False
        levels = self.smooth[self.seen]
        return bool(((levels - levels.mean()) ** 3).mean() < self.doubt(SCAN_DOUBT) * levels.std() ** 3)

    @cached_property
    def is_cut(self) -> bool:
        """Whether the retina runs out of a B-scan at its first or last row."""
        if min(self.small.shape) < position.SMALLEST:
            return False
        return max(position.bright_ends(self.smooth, self.seen)) >= position.TOUCHING - self.doubt(SCAN_DOUBT)


def reduced(pixels: FloatArray, side: int) -> FloatArray:
    """Average blocks of pixels, of the largest size that leaves the shorter side with at least `side` of them.

    Parameters
    ----------
    pixels
        float32 array of shape (rows, columns).
    side
        In pixels.
    """
    block = max(1, min(pixels.shape) // side)
    rows, columns = pixels.shape[0] // block, pixels.shape[1] // block
    down = pixels[: rows * block, : columns * block].reshape(rows, block, columns * block).sum(axis=1)
    averages: FloatArray = sum(down[:, column::block] for column in range(block)) / np.float32(block * block)
    return averages


def central(pixels: FloatArray) -> FloatArray:
    """Return the middle half of the rows and of the columns, which collimation hardly reaches."""
    rows, columns = pixels.shape
    return pixels[rows // 4 : rows - rows // 4, columns // 4 : columns - columns // 4]


def assess(frame: Frame, gate: Gate) -> tuple[Flag, ...]:
    """Return what the checks find in a frame, whether it would be rejected for it or not.

    Parameters
    ----------
    frame
        At whatever resolution it was decoded.
    gate
        What is expected; checks that it ignores are not run.
    """
    return tuple(_findings(frame, gate))


def admit(frame: Frame, gate: Gate) -> tuple[Flag, ...]:
    """Let a frame pass, marked with what the checks find in it, or refuse it.

    Raises
    ------
    UnreadableError
        If a check finds something that the gate rejects; its reason has the code of the check.
    """
    flags = []
    for flag in _findings(frame, gate):
        if gate.quality.policy(flag.check) is Policy.REJECT:
            raise UnreadableError(Reason(flag.check.value), flag.message)
        flags.append(flag)
    return tuple(flags)


def check_intended_use(frame: Frame, gate: Gate) -> None:
    """Refuse a frame of studies that the gate is not meant for, by modality, part of the body, view or age, as `admit` does.

    Raises
    ------
    UnreadableError
        As `admit`.
    """
    checked = CheckedFrame(frame, gate)
    for check in (Check.WRONG_MODALITY, Check.WRONG_BODY_PART, Check.NOT_FRONTAL, Check.WRONG_AGE):
        if gate.quality.policy(check) is Policy.REJECT and (message := _HEADER_CHECKS[check](checked)):
            raise UnreadableError(Reason(check.value), message)


def may_differ(frame: Frame, gate: Gate) -> bool:
    """Return whether the checks might find something else in the whole frame than in this one, decoded at a reduced resolution.

    They might if a check finds something in it, or would find it if its threshold gave way a little. What the header alone
    says is the same at any resolution.
    """
    checked = CheckedFrame(frame, gate, strict=True)
    return any(gate.quality.policy(check) is not Policy.IGNORE and find(checked) for check, find in _PIXEL_CHECKS.items())


def check_tools(gate: Gate) -> None:
    """Check, before the first frame comes, that everything the checks of a gate need is installed.

    Raises
    ------
    ConfigError
        If the gate looks for text and no text recognition is installed.
    """
    if gate.quality.policy(Check.BURNED_IN_TEXT) is not Policy.IGNORE and not ocr.is_installed():
        raise ConfigError(["quality.burned_in_text needs text recognition: pip install 'octray[ocr]', or set it to ignore."])


def _findings(frame: Frame, gate: Gate) -> Iterator[Flag]:
    checked = CheckedFrame(frame, gate)
    for check, find in (*_HEADER_CHECKS.items(), *_PIXEL_CHECKS.items()):
        if gate.quality.policy(check) is not Policy.IGNORE and (message := find(checked)):
            yield Flag(check, message)
            if check is Check.BLANK:
                return


# Checks of the header


def _wrong_modality(checked: CheckedFrame) -> str:
    """Modality (0008,0060) against what is expected; if nothing is, only mammograms (MG) are wrong."""
    modality, expected = checked.frame.modality, checked.gate.intended_use.modalities
    if not expected and modality == "MG":
        return "The frame is a mammogram, which is used only if Modality MG is asked for by name."
    if not modality or not expected or is_expected_modality(modality, expected):
        return ""
    return f"The frame is of another modality than {_listed(expected)}. Use a model that was made for it."


def _wrong_body_part(checked: CheckedFrame) -> str:
    """Body Part Examined (0018,0015), or its code, against what is expected, as `imaging.dicom.terms` reads both."""
    part, expected = checked.frame.body_part, checked.gate.intended_use.body_parts
    if not part or not expected or is_expected_body_part(part, expected):
        return ""
    return f"The header names another part of the body than {_listed(expected)}, or names it in words unknown to octray."


def _not_frontal(checked: CheckedFrame) -> str:
    """View Position (0018,5101), or its code, against what is expected; the pixels are not looked at."""
    view, expected = checked.frame.view_position, checked.gate.intended_use.view_positions
    if not view or not expected or is_expected_view(view, expected):
        return ""
    return (
        f"The header names another view than {_listed(expected)}, for example one from the side, or names it in words "
        "unknown to octray."
    )


def _wrong_age(checked: CheckedFrame) -> str:
    """The patient's age against what is expected; an unknown age is not held against the frame."""
    age, expected = checked.frame.patient_age, checked.gate.intended_use.ages
    if age is None or expected is None or expected[0] <= age <= expected[1]:
        return ""
    return f"By its header, the patient is not {expected[0]} to {expected[1]} years old. Use a model for this age."


def _unknown_age(checked: CheckedFrame) -> str:
    """An age that the file does not state, if one is expected."""
    ages = checked.gate.intended_use.ages
    if ages is None or checked.frame.patient_age is not None:
        return ""
    return f"The file does not state the patient's age; check that it is {ages[0]} to {ages[1]} years."


def _too_small(checked: CheckedFrame) -> str:
    """Rows (0028,0010) and columns (0028,0011) of the file, whatever the resolution it was decoded at."""
    rows, columns = checked.frame.shape
    smallest = checked.gate.quality.smallest_side
    if min(rows, columns) >= smallest:
        return ""
    return f"The frame has {rows} x {columns} pixels; its shorter side needs at least {smallest}. Export it at its full size."


def _photographed_film(checked: CheckedFrame) -> str:
    """The photograph of a film or screen, if the file itself says that a camera took it; the pixels are not looked at."""
    if not checked.frame.by_camera:
        return ""
    return "By its file, a camera took the frame: it is a photograph of a film or screen. Use the original file."


def _listed(values: Sequence[str]) -> str:
    return " or ".join(values)


# Checks of the pixels


def _blank(checked: CheckedFrame) -> str:
    """No picture: next to no differences between the grey levels, once noise has averaged out."""
    if float(reduced(checked.small, BLANK_SIDE).std()) >= BLANK_DEVIATION + checked.doubt(BLANK_DOUBT):
        return ""
    return "The frame shows no picture: nearly all of it has one grey level. Export it again, or leave it out."


def _saturated(checked: CheckedFrame) -> str:
    """Over- or underexposed: too much of the middle of the frame is fully white, or in a radiograph fully black."""
    middle = central(checked.small)
    most = (CLIPPED_SHARE - checked.doubt(CLIPPED_DOUBT)) * middle.size
    if np.count_nonzero(middle >= np.float32(CLIPPED_WHITE)) > most:
        return "Large parts of the frame are fully white: it is overexposed, or its window is wrong."
    if checked.subject is Subject.CHEST and np.count_nonzero(middle <= np.float32(CLIPPED_BLACK)) > most:
        return "Large parts of the frame are fully black: it is underexposed, or its window is wrong."
    return ""


def _white_borders(checked: CheckedFrame) -> str:
    """White wedges that an earlier rotation left at the edges, as `imaging.preprocess` finds them."""
    if not checked.wedges.any() and not (checked.strict and _may_have_thin_wedge(checked.frame.pixels)):
        return ""
    return "White wedges at the edges show that the frame was rotated before. Mask them, or use the original frame."


def _may_have_thin_wedge(pixels: FloatArray) -> bool:
    """Return whether an edge of a reduced frame is so much brighter than its neighbours that white lines may hide in it."""
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


def _inverted(checked: CheckedFrame) -> str:
    """Black and white exchanged, for chest radiographs and B-scans; other frames are not judged."""
    if not checked.is_inverted:
        return ""
    return "Black and white seem to be exchanged: the frame looks like a negative. Export it again as MONOCHROME2."


def _cropped(checked: CheckedFrame) -> str:
    """The retina runs out of a B-scan at its first or last row; other frames are not judged."""
    if checked.subject is not Subject.B_SCAN or checked.is_inverted or not checked.is_cut:
        return ""
    return "The retina is cut off at the upper or lower edge of the B-scan. Export the whole frame, or take it again."


def _half_frame(checked: CheckedFrame) -> str:
    """The left or right half of a chest, or a chest of which about half is empty; other frames are not judged.

    A B-scan of a clean device can be black over more than half of its rows.
    """
    if checked.subject is not Subject.CHEST or checked.is_inverted:
        return ""
    one_grey = position.ONE_GREY + checked.doubt(GREY_DOUBT)
    if position.empty_part(checked.small, one_grey) >= position.EMPTY - checked.doubt(EMPTY_DOUBT):
        return "About half of the frame is empty. It may be cut off: copy or export it again."
    half, doubt = position.half_chest_correlation(checked.small), checked.doubt(CORRELATION_DOUBT)
    whole = float(position.chest_correlations(checked.small).max())
    if half >= position.ALIKE - doubt and half - whole > position.HALF_MARGIN - doubt:
        return "The frame seems to show one half of a chest only. Use the whole radiograph."
    return ""


def _rotated(checked: CheckedFrame) -> str:
    """On its side or upside down, for chest radiographs and B-scans; other frames and negatives are not judged."""
    if checked.is_inverted:
        return ""
    turns = {Subject.CHEST: _chest_turns, Subject.B_SCAN: _b_scan_turns}.get(checked.subject)
    found = turns(checked) if turns else 0
    if not found:
        return ""
    kind = "radiograph" if checked.subject is Subject.CHEST else "B-scan"
    return f"The {kind} seems to {'be upside down' if found == 2 else 'lie on its side'}. Turn it, and export it again."


def _chest_turns(checked: CheckedFrame) -> int:
    """Return by how many quarter turns a chest is turned."""
    correlations = position.chest_correlations(checked.small)
    best, doubt = int(correlations.argmax()), checked.doubt(CORRELATION_DOUBT)
    margin = correlations[best] - correlations[0]
    return best if correlations[best] >= position.ALIKE - doubt and margin > position.CHEST_MARGIN - doubt else 0


def _b_scan_turns(checked: CheckedFrame) -> int:
    """Return by how many quarter turns a B-scan is turned; half a retina cannot tell what is up."""
    if min(checked.small.shape) < position.SMALLEST:
        return 0
    doubt = checked.doubt(SCAN_DOUBT)
    if position.layering(checked.small, checked.seen) < position.SIDEWAYS + doubt:
        return 1
    is_upside_down = position.steepness(checked.smooth, checked.seen) < position.UPSIDE_DOWN + doubt
    return 2 if is_upside_down and not checked.is_cut else 0


def _burned_in_text(checked: CheckedFrame) -> str:
    """Burned In Annotation (0028,0301), or at least `CHARACTERS` characters in one place."""
    stated = checked.frame.burned_in_annotation == "YES"
    if not stated and all(box.characters < CHARACTERS for box in ocr.find_text(checked.frame.pixels)):
        return ""
    return "There is text in the pixels, which may name the patient."


_HEADER_CHECKS: Mapping[Check, Callable[[CheckedFrame], str]] = MappingProxyType(
    {
        Check.WRONG_MODALITY: _wrong_modality,
        Check.WRONG_BODY_PART: _wrong_body_part,
        Check.NOT_FRONTAL: _not_frontal,
        Check.WRONG_AGE: _wrong_age,
        Check.UNKNOWN_AGE: _unknown_age,
        Check.TOO_SMALL: _too_small,
        Check.PHOTOGRAPHED_FILM: _photographed_film,
    }
)
_PIXEL_CHECKS: Mapping[Check, Callable[[CheckedFrame], str]] = MappingProxyType(
    {
        Check.BLANK: _blank,
        Check.SATURATED: _saturated,
        Check.WHITE_BORDERS: _white_borders,
        Check.INVERTED: _inverted,
        Check.CROPPED: _cropped,
        Check.HALF_FRAME: _half_frame,
        Check.ROTATED: _rotated,
        Check.BURNED_IN_TEXT: _burned_in_text,
    }
)
"""The checks in their order, headers first; a blank frame is not checked further. Each returns a sentence, empty if it finds
nothing."""
