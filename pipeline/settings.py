"""Limits, quality gate, preprocessing and the way of reading: one definition for configuration, bundle and code."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum


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
    """What happens to a frame in which a check finds something: it is not used, used and marked, or not checked at all."""

    REJECT = "reject"
    FLAG = "flag"
    IGNORE = "ignore"


ON_REQUEST = frozenset({Check.BURNED_IN_TEXT})
"""Checks that are run only where a gate names them, since they need what not every installation has."""


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


@dataclass(frozen=True, slots=True)
class Gate:
    """What the quality gate asks of a frame, and what happens where it finds something; travels in the bundle.

    Parameters
    ----------
    policies
        For each check; one that is not named flags, or is not run where it is one of `ON_REQUEST`. Where no policy is given at
        all, a wrong modality is rejected, which is MG where no other is expected.
    smallest_side
        A frame with fewer pixels on its shorter side is too small.
    modalities
        Expected values of Modality (0008,0060); empty: any but MG.
    view_positions
        Expected values of View Position (0018,5101); empty: any.
    body_parts
        Expected values of Body Part Examined (0018,0015); empty: any. A frame that names none is not held against it.
    ages
        Youngest and oldest expected age in completed years, both included; None: any.
    """

    policies: Mapping[Check, Policy] = field(default_factory=lambda: {Check.WRONG_MODALITY: Policy.REJECT})
    smallest_side: int = 64
    modalities: tuple[str, ...] = ()
    view_positions: tuple[str, ...] = ()
    body_parts: tuple[str, ...] = ()
    ages: tuple[int, int] | None = None

    def policy(self, check: Check) -> Policy:
        """Return what happens where `check` finds something."""
        return self.policies.get(check, Policy.IGNORE if check in ON_REQUEST else Policy.FLAG)


@dataclass(frozen=True, slots=True)
class Limits:
    """What one file may demand before it is refused: `RESOURCE_LIMIT`, `TIME_LIMIT` or `MEMORY_LIMIT` of `Reason`.

    Parameters
    ----------
    frame_pixels
        Rows x Columns of a frame; the largest radiographs have half of the default.
    file_pixels
        Rows x Columns x Number of Frames of a file.
    file_bytes
        Size of a file, or of a member of an archive once it is unpacked.
    inflated_bytes
        Size of a deflated DICOM data set once it is inflated; zlib packs zeros a thousandfold.
    frame_seconds
        Processor time for one frame, of all threads together, if files are read in worker processes. What else the machine has
        to do does not count.
    worker_bytes
        Memory of one worker process.
    """

    frame_pixels: int = 2**26
    file_pixels: int = 2**30
    file_bytes: int = 2**32
    inflated_bytes: int = 2**29
    frame_seconds: float = 10.0
    worker_bytes: int = 2**31

    @property
    def wall_seconds(self) -> float:
        """Seconds by the clock for one frame, for what waits without an end: no loaded machine stretches a frame so much."""
        return 60.0 + 12.0 * self.frame_seconds


class Fit(StrEnum):
    """How a frame of any shape comes onto the square grid of the network, its aspect ratio kept.

    `pad` shows the whole frame between black bars; `crop` shows the central square, so that the shape of the frame, which
    often tells the device or the protocol and with it the class, cannot be seen by the network. `focus` shows a smaller square
    around the height at which the frame is bright: in a B-scan the retina, wherever the operator has put it.
    """

    PAD = "pad"
    CROP = "crop"
    FOCUS = "focus"


@dataclass(frozen=True, slots=True)
class Preprocessing:
    """Everything between a frame and the tensor that the network takes; travels in the bundle.

    Parameters
    ----------
    size
        Rows and columns of the network's input, in pixels.
    fit
        How the frame comes onto that square.
    mask_white_borders
        Whether white areas that touch the frame's edge (an upstream rotation) are set to black first.
    exact_decoding
        Whether every frame is read whole, even where a lower resolution is enough for `size`.
    voi_explanation
        As in `Reading`.
    """

    size: int
    fit: Fit = Fit.PAD
    mask_white_borders: bool = False
    exact_decoding: bool = True
    voi_explanation: str = ""


@dataclass(frozen=True, slots=True)
class Reading:
    """How files are read.

    Parameters
    ----------
    limits
        What one file may demand.
    side
        How many pixels the shorter side of a frame still has to have: frames may be decoded at a reduced resolution, or blocks
        of their pixels averaged, down to it. None reads every frame whole.
    voi_explanation
        Which of several VOI LUTs or windows is used: the one whose LUT Explanation (0028,3003) or Window Center & Width
        Explanation (0028,1055) is this text; the first where it is empty, or where no explanation is the same.
    hashes
        Whether frames carry hashes of their stored values; what is only scored needs none, and they take a third of the time.
    """

    limits: Limits = Limits()
    side: int | None = None
    voi_explanation: str = ""
    hashes: bool = True


DEFAULT_READING = Reading()
"""Every frame whole, within the default limits, with the first window of the file."""
