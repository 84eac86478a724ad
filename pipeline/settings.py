"""Limits, quality gate, preprocessing and the way of reading: one definition for configuration, bundle and code.

Configuration and bundle are pydantic models that hold these dataclasses, so their values are checked when they are read from a
file. The dataclasses themselves need no pydantic, since worker processes that only read files import them, too.
"""

import os
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Literal

from annotated_types import Ge, Le

from pipeline.errors import InputError

FRAME_SECONDS = "OCTRAY_FRAME_SECONDS"
WORKER_BYTES = "OCTRAY_WORKER_BYTES"

PositiveInt = Annotated[int, Ge(1)]
Age = Annotated[int, Ge(0), Le(150)]


@dataclass(frozen=True, slots=True)
class Limits:
    """The largest files that are read; travels in the bundle, so that scoring accepts what training accepted.

    A file above a limit is refused with `Reason.RESOURCE_LIMIT`.

    Parameters
    ----------
    frame_pixels
        Rows x Columns of a frame; the largest radiographs have half of the default.
    file_pixels
        Rows x Columns x Number of Frames of a file.
    file_bytes
        Size of a file, or of a member of an archive after unpacking.
    inflated_bytes
        Size of a deflated DICOM data set after inflating; zlib packs zeros a thousandfold.
    """

    frame_pixels: PositiveInt = 2**26
    file_pixels: PositiveInt = 2**30
    file_bytes: PositiveInt = 2**32
    inflated_bytes: PositiveInt = 2**29


@dataclass(frozen=True, slots=True)
class WorkerLimits:
    """Time and memory of a worker process: they depend on the machine, so whoever runs octray sets them.

    A file that takes more is refused with `Reason.TIME_LIMIT` or `Reason.MEMORY_LIMIT`.

    Parameters
    ----------
    frame_seconds
        Processor time for one frame, of all threads together. Other work of the machine does not count.
    worker_bytes
        Address space of one worker process.
    """

    frame_seconds: float = 10.0
    worker_bytes: int = 2**31

    @property
    def wall_seconds(self) -> float:
        """Seconds by the clock for one frame, in case a read waits forever; no loaded machine slows a frame down so much."""
        return 60.0 + 12.0 * self.frame_seconds


def worker_limits() -> WorkerLimits:
    """Return the limits that OCTRAY_FRAME_SECONDS and OCTRAY_WORKER_BYTES set, and the default for those that they do not.

    Raises
    ------
    InputError
        If OCTRAY_FRAME_SECONDS is not a positive number, or OCTRAY_WORKER_BYTES not a whole number from 2^29 on: Python and its
        decoders need half a GiB.
    """
    default = WorkerLimits()
    seconds = os.environ.get(FRAME_SECONDS, "").strip()
    memory = os.environ.get(WORKER_BYTES, "").strip()
    try:
        frame_seconds = float(seconds) if seconds else default.frame_seconds
    except ValueError:
        frame_seconds = 0.0
    if not 0 < frame_seconds <= 86400:
        raise InputError(f"{FRAME_SECONDS} must be a number of seconds above 0, at most 86400. Got {seconds[:20]} instead.")
    if memory and not (memory.isascii() and memory.isdigit() and int(memory) >= 2**29):
        raise InputError(f"{WORKER_BYTES} must be a whole number from {2**29} on. Got {memory[:20]} instead.")
    return WorkerLimits(frame_seconds, int(memory) if memory else default.worker_bytes)


class Check(StrEnum):
    """What the quality gate looks for in a frame."""

    BLANK = "blank"
    SATURATED = "saturated"
    TOO_SMALL = "too_small"
    WRONG_MODALITY = "wrong_modality"
    WRONG_BODY_PART = "wrong_body_part"
    NOT_FRONTAL = "not_frontal"
    WRONG_AGE = "wrong_age"
    UNKNOWN_AGE = "unknown_age"
    INVERTED = "inverted"
    ROTATED = "rotated"
    CROPPED = "cropped"
    HALF_FRAME = "half_frame"
    PHOTOGRAPHED_FILM = "photographed_film"
    BURNED_IN_TEXT = "burned_in_text"
    WHITE_BORDERS = "white_borders"


class Policy(StrEnum):
    """What happens to a frame if a check finds something: it is refused, used and marked, or not checked at all."""

    REJECT = "reject"
    FLAG = "flag"
    IGNORE = "ignore"


@dataclass(frozen=True, slots=True)
class Flag:
    """Something that a check found in a frame.

    Parameters
    ----------
    check
        Which check.
    message
        A sentence for people, without any text of the file.
    """

    check: Check
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Quality:
    """What happens to a frame for each finding of the quality gate; travels in the bundle.

    Parameters
    ----------
    blank, saturated, too_small, wrong_modality, wrong_body_part, not_frontal, wrong_age, unknown_age, inverted, rotated, \
    cropped, half_frame, photographed_film, burned_in_text, white_borders
        One policy for each `Check`. An unknown age never rejects. Text is only looked for if asked, since that needs text
        recognition, which not every installation has.
    smallest_side
        A frame with fewer pixels on its shorter side is too small.
    """

    blank: Policy = Policy.REJECT
    saturated: Policy = Policy.FLAG
    too_small: Policy = Policy.REJECT
    wrong_modality: Policy = Policy.REJECT
    wrong_body_part: Policy = Policy.REJECT
    not_frontal: Policy = Policy.REJECT
    wrong_age: Policy = Policy.REJECT
    unknown_age: Literal[Policy.FLAG, Policy.IGNORE] = Policy.FLAG
    inverted: Policy = Policy.REJECT
    rotated: Policy = Policy.FLAG
    cropped: Policy = Policy.FLAG
    half_frame: Policy = Policy.FLAG
    photographed_film: Policy = Policy.FLAG
    burned_in_text: Policy = Policy.IGNORE
    white_borders: Policy = Policy.FLAG
    smallest_side: PositiveInt = 64

    def policy(self, check: Check) -> Policy:
        """Return what happens if `check` finds something."""
        policy: Policy = getattr(self, check.value)
        return policy


@dataclass(frozen=True, slots=True, kw_only=True)
class IntendedUse:
    """The studies that a model is meant for; travels in the bundle.

    A frame that does not state one of these values is not refused for it.

    Parameters
    ----------
    modalities
        Expected values of Modality (0008,0060); empty: any but MG.
    view_positions
        Expected values of View Position (0018,5101); empty: any.
    body_parts
        Expected values of Body Part Examined (0018,0015); empty: any.
    ages
        Youngest and oldest expected age in completed years, both included; None: any.
    """

    modalities: tuple[str, ...] = ()
    view_positions: tuple[str, ...] = ()
    body_parts: tuple[str, ...] = ()
    ages: tuple[Age, Age] | None = None


@dataclass(frozen=True, slots=True)
class Gate:
    """The quality gate: which studies are expected, and what happens to a frame in which a check finds something."""

    quality: Quality = Quality()
    intended_use: IntendedUse = IntendedUse()


LENIENT = Gate(
    Quality(
        blank=Policy.FLAG,
        too_small=Policy.FLAG,
        wrong_body_part=Policy.FLAG,
        not_frontal=Policy.FLAG,
        wrong_age=Policy.FLAG,
        inverted=Policy.FLAG,
    )
)
"""Rejects mammograms alone, as a wrong modality; everything else is only marked. For ingest without a configuration."""


class Fit(StrEnum):
    """How a frame of any shape is put on the square grid of the network, with its aspect ratio kept.

    `pad` shows the whole frame between black bars. `crop` shows the central square, so that the network cannot see the shape of
    the frame, which often gives away the device or the protocol and with it the class. `focus` shows a smaller square around
    the height at which the frame is bright: in a B-scan the retina, wherever the operator has put it.
    """

    PAD = "pad"
    CROP = "crop"
    FOCUS = "focus"


@dataclass(frozen=True, slots=True)
class Preprocessing:
    """From a frame to the tensor that the network takes; travels in the bundle.

    Parameters
    ----------
    size
        Rows and columns of the network's input, in pixels.
    fit
        How the frame is put on that square.
    mask_white_borders
        Whether white areas at the frame's edge (from an earlier rotation) are set to black first.
    exact_decoding
        Whether every frame is decoded whole, even if a lower resolution is enough for `size`.
    voi_explanation
        Which VOI LUT or window is used, as in `Reading`.
    """

    size: Annotated[int, Ge(32), Le(1024)] = 224
    fit: Fit = Fit.PAD
    mask_white_borders: bool = False
    exact_decoding: bool = False
    voi_explanation: str = ""


@dataclass(frozen=True, slots=True)
class Reading:
    """How files are read.

    Parameters
    ----------
    limits
        The largest files that are read.
    side
        Pixels that the shorter side of a frame must keep: frames may be decoded at a reduced resolution, or blocks of their
        pixels averaged, down to it. None reads every frame whole.
    voi_explanation
        Which of several VOI LUTs or windows is used: the one whose LUT Explanation (0028,3003) or Window Center & Width
        Explanation (0028,1055) is this text; the first if it is empty, or if no explanation matches.
    hashes
        Whether frames carry hashes of their stored values. Scoring needs none, and they take a third of the time.
    """

    limits: Limits = Limits()
    side: int | None = None
    voi_explanation: str = ""
    hashes: bool = True


DEFAULT_READING = Reading()
"""Every frame whole, within the default limits, with the first window of the file."""
