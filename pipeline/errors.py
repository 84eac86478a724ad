"""The exceptions of octray; a command turns them into exit codes, the HTTP service into problem details.

A message is a sentence that says what is wrong and what to do. It names files by their own name only, never by a whole
path, and never carries a patient's name or identifier.
"""

import resource
from collections.abc import Sequence
from enum import StrEnum


class OctrayError(Exception):
    """Base of every error that octray raises on purpose."""


class InputError(OctrayError):
    """What was given cannot be used: no readable study, a label for a missing file, an empty class."""


class WorkerError(InputError):
    """No process can be started that reads files."""


class ScoringError(OctrayError):
    """The network failed on frames that were read, which is no fault of theirs."""


class ConfigError(OctrayError):
    """A configuration with one or more faults, all of them reported at once.

    Parameters
    ----------
    faults
        One sentence for each fault.
    """

    def __init__(self, faults: Sequence[str]) -> None:
        self.faults = tuple(faults)
        super().__init__("\n".join(self.faults))

    def __reduce__(self) -> tuple[type["ConfigError"], tuple[tuple[str, ...]]]:
        """Say how a copy is made, so that it can pass from one process to another."""
        return type(self), (self.faults,)


class BundleError(OctrayError):
    """A bundle that is missing, not whole, altered or written by a newer octray."""


class TrainingError(OctrayError):
    """Training cannot go on, for example because the loss is not a number."""


class DownloadError(OctrayError):
    """Weights or data could not be fetched, or are not what their checksum says."""


class TrackingError(OctrayError):
    """MLflow cannot be reached or refuses what it was given."""


class LedgerError(OctrayError):
    """The database that holds the ledger cannot be used.

    Attributes
    ----------
    problem
        `locked`, `full` or `damaged`, if it is one of these.
    """

    def __init__(self, message: str, problem: str = "") -> None:
        super().__init__(message)
        self.problem = problem


class Reason(StrEnum):
    """Why a file or a frame could not be read or was refused; stable codes that others may rely on.

    From `WRONG_MODALITY` on they are those of the checks of the quality gate; `OUT_OF_DISTRIBUTION` is what a bundle says of a
    frame that is unlike all that it was trained on.
    """

    NOT_AN_IMAGE = "not_an_image"
    TRUNCATED = "truncated"
    NO_IMAGE = "no_image"
    NO_PIXELS = "no_pixels"
    EMPTY_IMAGE = "empty_image"
    COLOURED = "coloured"
    UNSUPPORTED_ENCODING = "unsupported_encoding"
    INCONSISTENT = "inconsistent"
    DECODE_FAILED = "decode_failed"
    NOT_OPENED = "not_opened"
    RESOURCE_LIMIT = "resource_limit"
    TIME_LIMIT = "time_limit"
    MEMORY_LIMIT = "memory_limit"
    DECODER_CRASH = "decoder_crash"
    WORKER_ENDED = "worker_ended"
    UNSAFE_PATH = "unsafe_path"
    MISSING = "missing"
    NO_WORKER = "no_worker"
    OUT_OF_DISTRIBUTION = "out_of_distribution"
    WRONG_MODALITY = "wrong_modality"
    WRONG_BODY_PART = "wrong_body_part"
    NOT_FRONTAL = "not_frontal"
    WRONG_AGE = "wrong_age"
    UNKNOWN_AGE = "unknown_age"
    TOO_SMALL = "too_small"
    BLANK = "blank"
    SATURATED = "saturated"
    INVERTED = "inverted"
    ROTATED = "rotated"
    CROPPED = "cropped"
    HALF_FRAME = "half_frame"
    PHOTOGRAPHED_FILM = "photographed_film"
    BURNED_IN_TEXT = "burned_in_text"
    WHITE_BORDERS = "white_borders"


PASSING = frozenset({Reason.NOT_OPENED, Reason.TIME_LIMIT, Reason.MEMORY_LIMIT, Reason.MISSING, Reason.WORKER_ENDED})
"""What another attempt may not meet: it depends on the machine, on what else runs there, or on a disk or a network."""


_LACK_OF_MEMORY = (
    *("failed to map segment", "cannot allocate memory", "bad_alloc", "can't start new thread"),
    *("can't allocate memory", "failed to allocate memory"),  # torch, ONNX Runtime
)


def is_lack_of_memory(error: BaseException) -> bool:
    """Return whether an exception means that there is no memory left: a library that cannot be mapped is an ImportError."""
    text = str(error).lower()
    return isinstance(error, MemoryError) or any(words in text for words in _LACK_OF_MEMORY)


def lack_of_memory() -> str:
    """Return the sentence for an error that `is_lack_of_memory`."""
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    than_now = "" if limit == resource.RLIM_INFINITY else f" than the {limit // 2**20} MiB that it may take now (ulimit -v)"
    return f"There is too little memory. Give octray more{than_now}, and start again."


class UnreadableError(OctrayError):
    """One file, or one frame of it, cannot be read, or is refused by the quality gate.

    Parameters
    ----------
    reason
        The stable code.
    message
        A sentence for people.
    """

    def __init__(self, reason: Reason, message: str) -> None:
        self.reason = reason
        super().__init__(message)

    def __reduce__(self) -> tuple[type["UnreadableError"], tuple[Reason, str]]:
        """Say how a copy is made, so that it can pass from one process to another."""
        return type(self), (self.reason, str(self))
