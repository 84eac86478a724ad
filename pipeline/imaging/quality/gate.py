"""The quality gate: says of a frame, in sentences for people, what speaks against using it, and refuses it where it has to."""

from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType

from pipeline.errors import ConfigError, Reason, UnreadableError
from pipeline.frames import Frame
from pipeline.imaging.quality import header, ocr, pixels, position
from pipeline.imaging.quality.look import Look
from pipeline.settings import Check, Flag, Gate, Policy

_CHECKS: Mapping[Check, Callable[[Look], str]] = MappingProxyType(
    {
        Check.WRONG_MODALITY: header.wrong_modality,
        Check.WRONG_BODY_PART: header.wrong_body_part,
        Check.NOT_FRONTAL: header.not_frontal,
        Check.WRONG_AGE: header.wrong_age,
        Check.UNKNOWN_AGE: header.unknown_age,
        Check.TOO_SMALL: header.too_small,
        Check.PHOTOGRAPHED_FILM: header.photographed_film,
        Check.BLANK: pixels.blank,
        Check.SATURATED: pixels.saturated,
        Check.WHITE_BORDERS: pixels.white_borders,
        Check.INVERTED: position.inverted,
        Check.CROPPED: position.cropped,
        Check.HALF_FRAME: position.half_frame,
        Check.ROTATED: position.rotated,
        Check.BURNED_IN_TEXT: pixels.burned_in_text,
    }
)
"""What is asked of a frame, in this order, which ends where there is no picture; each returns a sentence, empty where it finds
nothing."""

_OF_PIXELS = frozenset(check for check, find in _CHECKS.items() if find.__module__ != header.__name__)


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
        Where a check finds something that the gate rejects; its reason has the code of the check.
    """
    flags = []
    for flag in _findings(frame, gate):
        if gate.quality.policy(flag.check) is Policy.REJECT:
            raise UnreadableError(Reason(flag.check.value), flag.message)
        flags.append(flag)
    return tuple(flags)


def may_differ(frame: Frame, gate: Gate) -> bool:
    """Say whether the checks might find something else in the whole frame than in this one, decoded at a reduced resolution.

    That is so if a check finds something in it, or would find it if its threshold gave way a little. What the header alone
    says is the same at any resolution.
    """
    look = Look(frame, gate, wary=True)
    checks = ((check, find) for check, find in _CHECKS.items() if check in _OF_PIXELS)
    return any(gate.quality.policy(check) is not Policy.IGNORE and find(look) for check, find in checks)


def check_tools(gate: Gate) -> None:
    """Find out, before the first frame comes, whether all that the checks of a gate need is installed.

    Raises
    ------
    ConfigError
        Where text is to be found and no text recognition is installed.
    """
    if gate.quality.policy(Check.BURNED_IN_TEXT) is not Policy.IGNORE and not ocr.is_installed():
        raise ConfigError(["quality.burned_in_text needs text recognition: pip install 'octray[ocr]', or set it to ignore."])


def _findings(frame: Frame, gate: Gate) -> Iterator[Flag]:
    look = Look(frame, gate)
    for check, find in _CHECKS.items():
        if gate.quality.policy(check) is not Policy.IGNORE and (message := find(look)):
            yield Flag(check, message)
            if check is Check.BLANK:
                return
