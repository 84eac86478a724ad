"""Turns labels, states and modalities into codes: SNOMED CT's or DICOM's where known, octray's own otherwise."""

import csv
import hashlib
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources

from pydicom.sr.coding import Code

from pipeline.predictions import State

PRIVATE = "99OCTRAY"
"""Coding Scheme Designator (0008,0102) of codes that only octray gives a meaning (PS3.16 8.2)."""
STATES = {
    State.POSITIVE: Code("10828004", "SCT", "Positive"),
    State.NEGATIVE: Code("260385009", "SCT", "Negative"),
    State.UNCERTAIN: Code("64957009", "SCT", "Uncertain"),
}
PRESENCE = Code("121052", "DCM", "Presence of property")
PRESENT = {
    State.POSITIVE: Code("52101004", "SCT", "Present"),
    State.NEGATIVE: Code("272519000", "SCT", "Absent"),
    State.UNCERTAIN: Code("121059", "DCM", "Presence Undetermined"),
}
"""Values of `PRESENCE`: of CID 240, and of DCM if neither holds."""
RETINA = Code("5665001", "SCT", "Retina")
SIDES = {"R": Code("24028007", "SCT", "Right"), "L": Code("7771000", "SCT", "Left")}
_MODALITIES = {
    "CR": "Computed Radiography",
    "DX": "Digital Radiography",
    "RG": "Radiographic imaging",
    "OPT": "Ophthalmic Tomography",
    "OP": "Ophthalmic Photography",
    "OCT": "Optical Coherence Tomography",
    "CT": "Computed Tomography",
    "MR": "Magnetic Resonance",
    "XC": "External-camera Photography",
}
_LONGEST_CODE, _LONGEST_MEANING = 16, 64


@dataclass(frozen=True, slots=True)
class Finding:
    """A label as a code.

    Parameters
    ----------
    code
        What the label means.
    in_retina
        Whether it is a finding of the retina.
    """

    code: Code
    in_retina: bool = False


def finding(label: str) -> Finding:
    """Return a label's code from `findings.csv`, else one of octray's own with the label as its meaning."""
    return _table().get(label) or Finding(private(label, label))


def private(name: str, meaning: str) -> Code:
    """Return a code of octray's own; names that are too long for a Code Value (0008,0100) are hashed."""
    short = name.replace("\\", "/")
    if len(short) > _LONGEST_CODE:
        short = hashlib.sha256(name.encode()).hexdigest()[:_LONGEST_CODE]
    return Code(short, PRIVATE, meaning.replace("\\", "/")[:_LONGEST_MEANING])


def modality(name: str) -> Code:
    """Return Modality (0008,0060) as a code of CID 33; `OT` where it is another."""
    return Code(name, "DCM", _MODALITIES[name]) if name in _MODALITIES else Code("OT", "DCM", "Other Modality")


@lru_cache(maxsize=1)
def _table() -> dict[str, Finding]:
    with (resources.files(__package__) / "findings.csv").open(encoding="utf-8") as file:
        return {
            row["label"]: Finding(Code(row["code"], row["scheme"], row["meaning"]), row["site"] == "retina")
            for row in csv.DictReader(file)
        }
