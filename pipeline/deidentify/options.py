"""What a user may ask of de-identification, and why a file may be refused."""

from dataclasses import dataclass
from enum import Enum, StrEnum

from pipeline.errors import OctrayError


class Keep(Enum):
    """Options of the Basic Profile that keep more: column of Table E.1-1, code and meaning (PS3.16 CID 7050)."""

    DATES = (
        "retain_longitudinal_modified_dates",
        "113107",
        "Retain Longitudinal Temporal Information Modified Dates Option",
    )
    UIDS = ("retain_uids", "113110", "Retain UIDs Option")
    PATIENT = ("retain_patient_characteristics", "113108", "Retain Patient Characteristics Option")
    DESCRIPTORS = ("clean_descriptors", "113105", "Clean Descriptors Option")

    def __init__(self, column: str, code: str, meaning: str) -> None:
        self.column, self.code, self.meaning = column, code, meaning


@dataclass(frozen=True, slots=True)
class Box:
    """A rectangle of a frame, in pixels from its upper left corner."""

    left: int
    top: int
    width: int
    height: int


@dataclass(frozen=True, slots=True)
class Options:
    """What is asked beyond the Basic Profile.

    Parameters
    ----------
    keep
        What is kept.
    boxes
        What is blanked in every frame of every image.
    clean_pixels
        Whether text is looked for in every frame, and blanked.
    allowed
        What somebody looked at and found to be chance: the SHA-256 of a file's bytes, and the tag of the attribute that may
        stay in this one file as it is.
    """

    keep: frozenset[Keep] = frozenset()
    boxes: tuple[Box, ...] = ()
    clean_pixels: bool = False
    allowed: frozenset[tuple[str, int]] = frozenset()

    def allowed_in(self, sha256: str) -> frozenset[int]:
        """Return the tags of the attributes that are allowed in the file with this hash."""
        return frozenset(tag for file, tag in self.allowed if file == sha256)


class Refusal(StrEnum):
    """Why a file was not de-identified although it can be read; stable codes."""

    NOT_DICOM = "not_dicom"
    BURNED_IN = "burned_in"
    OUTSIDE = "outside"
    NOT_SUPPORTED = "not_supported"
    SAME_UID = "same_uid"
    IDENTITY_LEFT = "identity_left"


class RefusedError(OctrayError):
    """A file is not written, because nobody could answer for it.

    Parameters
    ----------
    refusal
        The stable code.
    message
        A sentence for people, without anything of the file's content.
    """

    def __init__(self, refusal: Refusal, message: str) -> None:
        self.refusal = refusal
        super().__init__(message)

    def __reduce__(self) -> tuple[type["RefusedError"], tuple[Refusal, str]]:
        """Say how a copy is made, so that it can pass from one process to another."""
        return type(self), (self.refusal, str(self))
