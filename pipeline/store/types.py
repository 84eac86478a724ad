"""What goes into a ledger and comes out of it."""

from dataclasses import dataclass
from enum import StrEnum


class Order(StrEnum):
    """In which order outcomes are read: as the studies were found, or the most urgent first."""

    POSITION = "position"
    URGENCY = "urgency"


@dataclass(frozen=True, slots=True)
class StudyWork:
    """A study that is to be worked on.

    Parameters
    ----------
    key
        Names it within its run.
    position
        Its place among the others.
    fingerprint
        Changes where the study does.
    work
        What the worker has to know; the ledger does not look into it.
    """

    key: str
    position: int
    fingerprint: str
    work: bytes


@dataclass(frozen=True, slots=True)
class Claim:
    """A study that one owner works on until its lease runs out; the rest as in `StudyWork`.

    Parameters
    ----------
    attempt
        Starts at 1.
    scored_at
        As in `Outcome`, if the same files were scored before and something that was written is lost; else 0.
    """

    id: int
    key: str
    fingerprint: str
    attempt: int
    work: bytes
    scored_at: float = 0.0


@dataclass(frozen=True, slots=True)
class Output:
    """A file that was written, known by its content.

    Parameters
    ----------
    name
        Path below the folder of results, with forward slashes.
    sha256
        Of its bytes; empty where it could not be written.
    size
        In bytes.
    """

    name: str
    sha256: str
    size: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a study.

    Parameters
    ----------
    id
        As in its `Claim`.
    record
        What is kept of it; the ledger does not look into it.
    rank, probability
        How urgent it is: a higher rank comes first, and within it a higher probability.
    outputs
        The files that were written.
    is_final
        Whether another attempt would give the same; a study whose outcome is not final may be tried again.
    scored_at
        When these files of the study were first scored, in seconds since 1970; scoring them again does not change it.
    """

    id: int
    record: bytes
    rank: int
    probability: float
    outputs: tuple[Output, ...] = ()
    is_final: bool = True
    scored_at: float = 0.0
