"""The profile of PS3.15 Annex E: its options, its table, the other attributes that are kept, and why a file is refused."""

import csv
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum, StrEnum
from functools import cache
from importlib import resources

from pydicom.datadict import keyword_for_tag

from pipeline.errors import OctrayError

# What the user asks for


class Keep(Enum):
    """Options of the Basic Profile that retain more: column of Table E.1-1, code and meaning (PS3.16 CID 7050)."""

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
class Rectangle:
    """A rectangle of a frame, in pixels from its upper left corner."""

    left: int
    top: int
    width: int
    height: int


@dataclass(frozen=True, slots=True)
class Options:
    """What the user asks for beyond the Basic Profile.

    Parameters
    ----------
    keep
        Options of the profile.
    rectangles
        Rectangles that are blanked in every frame of every image.
    clean_pixels
        Whether burned-in text is searched for in every frame and blanked.
    allowed
        False alarms of the verifier that a person has checked: the SHA-256 of a file's bytes, and the tag of the attribute that
        may stay in this one file.
    """

    keep: frozenset[Keep] = frozenset()
    rectangles: tuple[Rectangle, ...] = ()
    clean_pixels: bool = False
    allowed: frozenset[tuple[str, int]] = frozenset()

    def allowed_in(self, sha256: str) -> frozenset[int]:
        """Return the tags of the attributes that may stay in the file with this hash."""
        return frozenset(tag for file, tag in self.allowed if file == sha256)


class RefusalReason(StrEnum):
    """Why a readable file is not de-identified; stable codes."""

    NOT_DICOM = "not_dicom"
    BURNED_IN = "burned_in"
    OUTSIDE = "outside"
    NOT_SUPPORTED = "not_supported"
    SAME_UID = "same_uid"
    IDENTITY_LEFT = "identity_left"


class RefusedError(OctrayError):
    """A file is not written, because its de-identification cannot be guaranteed.

    Parameters
    ----------
    reason
        The stable code.
    message
        A sentence for the user, without any content of the file.
    """

    def __init__(self, reason: RefusalReason, message: str) -> None:
        self.reason = reason
        super().__init__(message)

    def __reduce__(self) -> tuple[type["RefusedError"], tuple[RefusalReason, str]]:
        """Make it picklable, so that it can pass from one process to another."""
        return type(self), (self.reason, str(self))


# Table E.1-1

_TABLE = "table_e1_1.csv"
_PRIVATE = "private"


class Action(StrEnum):
    """What happens to an attribute (PS3.15 Table E.1-1a).

    The table's combined actions depend on the attribute's Type in the object. octray takes the one that conforms to every
    Type: a dummy value if one may be needed, else an empty value, else removal.
    """

    DUMMY = "D"
    EMPTY = "Z"
    REMOVE = "X"
    KEEP = "K"
    CLEAN = "C"
    UID = "U"


_COMBINED = {
    "X/Z": Action.EMPTY,
    "X/D": Action.DUMMY,
    "Z/D": Action.DUMMY,
    "X/Z/D": Action.DUMMY,
    "X/Z/U*": Action.UID,
}


@dataclass(frozen=True, slots=True)
class TableRow:
    """One row of Table E.1-1.

    Parameters
    ----------
    tag
        Eight hexadecimal digits, with `x` for any digit of a repeating group, or `private`.
    name
        The attribute's name.
    basic
        The action of the Basic Profile, as the table writes it.
    options
        The actions of the options that mention this attribute, by column name.
    """

    tag: str
    name: str
    basic: str
    options: Mapping[str, str]

    def action(self, keep: Iterable[Keep]) -> Action:
        """Return the action under some options: keeping wins over cleaning, and cleaning over the Basic Profile."""
        chosen = {self.options.get(option.column) for option in keep}
        for action in (Action.KEEP, Action.CLEAN):
            if action.value in chosen:
                return action
        return _COMBINED.get(self.basic) or Action(self.basic)

    @property
    def is_structured_content(self) -> bool:
        """Whether the attribute holds the content of a report, such as a Content Sequence (0040,A730)."""
        return "clean_structured_content" in self.options


@cache
def edition() -> str:
    """Return the edition of the Standard that the table is from, for example "DICOM PS3.15 2026d"."""
    return _table_text().splitlines()[0].removeprefix("# ").partition(",")[0]


@cache
def table() -> Mapping[str, TableRow]:
    """Return every row of the table by its tag."""
    rows = csv.DictReader(_table_text().splitlines()[1:])
    columns = [name for name in rows.fieldnames or () if name not in ("tag", "name", "basic")]
    return {
        row["tag"]: TableRow(row["tag"], row["name"], row["basic"], {name: row[name] for name in columns if row[name]})
        for row in rows
    }


def find_row(tag: int) -> TableRow | None:
    """Return the row of a tag, also of private tags and repeating groups (50xx, 60xx); None if the table has none."""
    if tag >> 16 & 1:
        return table()[_PRIVATE]
    digits = f"{tag:08X}"
    repeating = f"{digits[:2]}xx"
    return table().get(digits) or table().get(f"{repeating}{digits[4:]}") or table().get(f"{repeating}xxxx")


def _table_text() -> str:
    return resources.files(__package__).joinpath(_TABLE).read_text(encoding="utf-8")


# Attributes that are not in the table: text and bytes may hold anything, so only those that images need are kept

CODE_TEXT = frozenset({"CodeMeaning", "CodeValue", "CodingSchemeDesignator", "CodingSchemeVersion", "LongCodeValue"})
"""Text of coded entries (PS3.3 8.8), which is checked against the dictionaries of codes."""
ALLOWED_TEXT = CODE_TEXT | {
    "AttenuationCorrectionMethod",
    "CollimatorGridName",
    "ConvolutionKernel",
    "FilterType",
    "ImageFilter",
    "ImagedNucleus",
    "LUTExplanation",
    "Manufacturer",
    "ManufacturerModelName",
    "ModalityLUTType",
    "PixelSpacingCalibrationDescription",
    "PulseSequenceName",
    "ReceiveCoilName",
    "ReconstructionMethod",
    "RescaleType",
    "ScatterCorrectionMethod",
    "SecondaryCaptureDeviceManufacturer",
    "SecondaryCaptureDeviceManufacturerModelName",
    "SequenceName",
    "SoftwareVersions",
    "StackID",
    "TransmitCoilName",
    "WindowCenterWidthExplanation",
}
"""Text about devices, techniques and grey levels."""
PIXEL_BYTES = frozenset(
    {"DoubleFloatPixelData", "ExtendedOffsetTable", "ExtendedOffsetTableLengths", "FloatPixelData", "PixelData"}
)
"""Bytes that are kept at the top level only: inside a sequence they would be an icon."""
TABLE_BYTES = frozenset(
    {
        "AlphaPaletteColorLookupTableData",
        "BluePaletteColorLookupTableData",
        "GreenPaletteColorLookupTableData",
        "LUTData",
        "RedPaletteColorLookupTableData",
        "SegmentedAlphaPaletteColorLookupTableData",
        "SegmentedBluePaletteColorLookupTableData",
        "SegmentedGreenPaletteColorLookupTableData",
        "SegmentedRedPaletteColorLookupTableData",
    }
)
"""Bytes of tables from stored values to grey levels and colours."""
REFUSED_BYTES = frozenset({"PointCoordinatesData", "SpectroscopyData", "WaveformData"})
"""Bytes that cannot be kept, and without which an object is useless."""
_CLASS_UIDS = (
    *(f"{name}UID{suffix}" for name in ("SOPClass", "TransferSyntax") for suffix in ("", "InFile")),
    *("SOPClassesInSeries", "SOPClassesInStudy", "SOPClassesSupported"),
)


def holds_class_uid(tag: int) -> bool:
    """Return whether the values of an attribute are SOP classes or transfer syntaxes, which identify no instance."""
    return keyword_for_tag(tag).endswith(_CLASS_UIDS)
