"""What a frame shows, in DICOM's own terms: Modality, part of the body and view.

Codes decide if they are known: `codes.csv` holds those of PS3.16 CID 4010 (views) and CID 4031 (parts of the body). Otherwise
the text of Body Part Examined (0018,0015) and View Position (0018,5101) decides, word by word, by `terms.csv`. A text means a
part or a view only if each of its words is in that table: `CHEST PA` is a chest, `CHEST LORDOTIC` and `CHEST ABDOMEN` are not.
Modality (0008,0060) is corrected by the SOP class and, in ophthalmic objects, by the frame's own type.
"""

import csv
import re
import unicodedata
from collections.abc import Collection
from functools import cache, lru_cache
from importlib import resources
from types import MappingProxyType
from typing import NamedTuple

from pydicom import uid
from pydicom.dataset import Dataset

from pipeline.imaging.dicom.elements import Scope, code, item, texts, value

RADIOGRAPHY = frozenset({"CR", "DX", "RG", "DR"})
"""Values of Modality (0008,0060) for projection radiographs (PS3.3 C.7.3.1.1.1); older files say DR for DX."""
_ASKED_AS_RADIOGRAPHS = frozenset({"CR", "DX"})
_STANDS_FOR = {"FRONTAL": frozenset({"AP", "PA"}), "LATERAL": frozenset({"LL", "RL"})}
_LONGEST_TERM = 2
"""Words in the longest term of `terms.csv`."""
_TERM = re.compile(r"[A-Z0-9][A-Z0-9 ]{0,31}")

TOMOGRAPHY, EN_FACE, PHOTOGRAPH = "OPT", "OPTENF", "OP"

_BY_CLASS = MappingProxyType(
    {
        uid.OphthalmicPhotography8BitImageStorage: PHOTOGRAPH,
        uid.OphthalmicPhotography16BitImageStorage: PHOTOGRAPH,
        uid.WideFieldOphthalmicPhotographyStereographicProjectionImageStorage: PHOTOGRAPH,
        uid.WideFieldOphthalmicPhotography3DCoordinatesImageStorage: PHOTOGRAPH,
        uid.OphthalmicOpticalCoherenceTomographyEnFaceImageStorage: EN_FACE,
        uid.OphthalmicOpticalCoherenceTomographyBscanVolumeAnalysisStorage: "OPTBSV",
        uid.DigitalMammographyXRayImageStorageForPresentation: "MG",
        uid.DigitalMammographyXRayImageStorageForProcessing: "MG",
    }
)
"""SOP classes whose definition allows one Modality only; it counts, whatever the file says."""
_IF_MISSING = MappingProxyType(
    {
        uid.OphthalmicTomographyImageStorage: TOMOGRAPHY,
        uid.ComputedRadiographyImageStorage: "CR",
        uid.DigitalXRayImageStorageForPresentation: "DX",
        uid.DigitalXRayImageStorageForProcessing: "DX",
    }
)
_FOR_PROCESSING = (uid.DigitalXRayImageStorageForProcessing, uid.DigitalMammographyXRayImageStorageForProcessing)
_EN_FACE = re.compile(r"\b(EN[ _-]?FACE|TRANSVERSE|PROJECTION|C[ _-]?SCAN)\b")
_PHOTOGRAPH = re.compile(r"\b(LOCALIZER|FUNDUS|SLO|IR|RED[ _-]?FREE)\b")


_WITHOUT_PIXELS_BELOW = tuple(
    f"1.2.840.10008.{root}."
    for root in (
        "1.3",  # Media Storage Directory
        *("5.1.4.34", "5.1.4.38", "5.1.4.39", "5.1.4.43", "5.1.4.44", "5.1.4.45"),  # RT instructions, protocols, templates
        "5.1.4.1.1.9",  # waveforms
        "5.1.4.1.1.11",  # presentation states
        *("5.1.4.1.1.78", "5.1.4.1.1.79", "5.1.4.1.1.80"),  # measurements of eyes
        "5.1.4.1.1.88",  # structured reports and key object selections
        "5.1.4.1.1.104",  # encapsulated documents
        *("5.1.4.1.1.200", "5.1.4.1.1.201"),  # procedure protocols, inventories
    )
)
"""Roots of SOP classes (PS3.4 B.5, PS3.6 Annex A) none of which has Pixel Data (7FE0,0010) or the like."""
_WITHOUT_PIXELS = frozenset(
    (
        uid.MRSpectroscopyStorage,
        uid.RawDataStorage,
        uid.SpatialRegistrationStorage,
        uid.SpatialFiducialsStorage,
        uid.DeformableSpatialRegistrationStorage,
        uid.SurfaceSegmentationStorage,
        uid.TractographyResultsStorage,
        uid.RealWorldValueMappingStorage,
        uid.SurfaceScanMeshStorage,
        uid.SurfaceScanPointCloudStorage,
        uid.StereometricRelationshipStorage,
        uid.ContentAssessmentResultsStorage,
        uid.MicroscopyBulkSimpleAnnotationsStorage,
        uid.BasicStructuredDisplayStorage,
        uid.DICOSThreatDetectionReportStorage,
        *(f"1.2.840.10008.5.1.4.1.1.{number}" for number in (8, 9, 10, 11)),  # standalone overlays, curves, LUTs (retired)
        *(f"1.2.840.10008.5.1.4.1.1.481.{number}" for number in (*range(3, 23), 25)),  # of radiotherapy, but images and doses
        "1.2.840.10008.5.1.4.1.1.129",  # standalone PET curves (retired)
        "1.2.840.10008.5.1.1.27",  # stored print (retired)
        "1.3.12.2.1107.5.9.1",  # Siemens CSA Non-Image, which scanners send with every study
    )
)


class TextMeaning(NamedTuple):
    """What the words of a text mean; `other` is the text, in plain capitals, if a word of it is not in the table."""

    body_parts: frozenset[str]
    view_positions: frozenset[str]
    other: str


def body_part(scope: Scope) -> str:
    """Return the part of the body that a frame shows, for example CHEST; empty if it is not known.

    Anatomic Region Sequence (0008,2218) of the frame or of the instance, else Body Part Examined (0018,0015). A text that is
    not in the table is returned as it is, in capitals.
    """
    holder = scope.holder("FrameAnatomySequence", "AnatomicRegionSequence")
    coded = _meaning("body_part", item(holder, "AnatomicRegionSequence")) if holder is not None else ""
    text = read_text(" ".join(texts(scope.dataset, "BodyPartExamined")))
    return coded or text.other or (next(iter(text.body_parts)) if len(text.body_parts) == 1 else "")


def view_position(dataset: Dataset) -> str:
    """Return the view of a file: AP, PA, LL, RL, FRONTAL, LATERAL or another term; empty if it is not known.

    View Code Sequence (0054,0220) with View Modifier Code Sequence (0054,0222), else View Position (0018,5101), else a view
    that Body Part Examined (0018,0015) names beside the part, as in `CHEST LATERAL`.
    """
    entry = item(dataset, "ViewCodeSequence")
    if coded := _meaning("view_position", entry):
        modified = entry is not None and item(entry, "ViewModifierCodeSequence") is not None
        return f"{coded} MODIFIED" if modified else coded
    text = read_text(" ".join(texts(dataset, "ViewPosition")))
    if text.other:
        return text.other
    return _one_view(text.view_positions or read_text(" ".join(texts(dataset, "BodyPartExamined"))).view_positions)


@lru_cache(maxsize=1024)
def read_text(text: str) -> TextMeaning:
    """Read a part of the body and a view from a text; `UNKNOWN` is read as an empty text."""
    plain = unicodedata.normalize("NFKD", text.upper().replace(".", ""))
    words = re.sub(r"[^\w]|_", " ", "".join(one for one in plain if not unicodedata.combining(one))).split()
    found: dict[str, set[str]] = {"body_part": set(), "view_position": set(), "neither": set(), "unknown": set()}
    place = 0
    while place < len(words):
        for length in range(min(_LONGEST_TERM, len(words) - place), 0, -1):
            if meaning := _terms().get(" ".join(words[place : place + length])):
                found[meaning[0]].add(meaning[1])
                place += length
                break
        else:
            whole = " ".join(words)
            return TextMeaning(frozenset(), frozenset(), whole if _TERM.fullmatch(whole) else "")
    return TextMeaning(frozenset(found["body_part"]), frozenset(found["view_position"]), "")


def is_expected_modality(modality: str, expected: Collection[str]) -> bool:
    """Return whether a Modality is among those expected; RG and DR are if CR or DX is."""
    as_radiograph = modality in RADIOGRAPHY - _ASKED_AS_RADIOGRAPHS and not _ASKED_AS_RADIOGRAPHS.isdisjoint(expected)
    return modality in expected or as_radiograph


def is_expected_body_part(part: str, expected: Collection[str]) -> bool:
    """Return whether a part of the body is among those expected, whatever words the configuration uses for them."""
    return part in expected or any(part in read_text(one).body_parts for one in expected)


def is_expected_view(view: str, expected: Collection[str]) -> bool:
    """Return whether a view is among those expected; FRONTAL stands for AP and PA, LATERAL for LL and RL."""
    named = {one for text in expected for one in (text.upper(), *read_text(text).view_positions)}
    return not _views(view).isdisjoint(named.union(*map(_views, named)))


def _views(view: str) -> frozenset[str]:
    return _STANDS_FOR.get(view, frozenset({view}))


def _one_view(views: Collection[str]) -> str:
    """Return the one view that a text names: FRONTAL for both frontal ones, empty for a frontal and a lateral one."""
    if len(views) == 1:
        return next(iter(views))
    return next((name for name, both in _STANDS_FOR.items() if views and set(views) <= both | {name}), "")


def _meaning(attribute: str, entry: Dataset | None) -> str:
    """Return the term of a code; its scheme may be written in the old way, SNM3 or 99SDM for SRT (PS3.16 8.1.1)."""
    if entry is None:
        return ""
    scheme = "".join(texts(entry, "CodingSchemeDesignator")).strip().upper()
    scheme = "SRT" if scheme in ("SNM3", "99SDM") else scheme
    return _codes().get((attribute, scheme, "".join(texts(entry, "CodeValue")).strip().upper()), "")


@cache
def _codes() -> dict[tuple[str, str, str], str]:
    return {(row["attribute"], row["scheme"], row["code"]): row["means"] for row in _table("codes.csv")}


@cache
def _terms() -> dict[str, tuple[str, str]]:
    return {row["term"]: (row["kind"], row["means"]) for row in _table("terms.csv")}


def _table(name: str) -> list[dict[str, str]]:
    return list(csv.DictReader((resources.files(__package__) / name).read_text(encoding="utf-8").splitlines()))


def is_without_pixels(sop_class: str) -> bool:
    """Return whether a SOP class (0008,0016) is one of objects that never have pixels."""
    return sop_class in _WITHOUT_PIXELS or sop_class.startswith(_WITHOUT_PIXELS_BELOW)


def modality(scope: Scope, sop_class: str) -> str:
    """Return the Modality (0008,0060) of a frame; only B-scans are OPT, never en-face frames or pictures of the fundus.

    Within Ophthalmic Tomography, Ophthalmic Image Orientation (0022,0039) and Frame Type (0008,9007), or Image Type
    (0008,0008), say which frames are no B-scans.
    """
    named = _BY_CLASS.get(uid.UID(sop_class)) or code(scope.dataset, "Modality") or _IF_MISSING.get(uid.UID(sop_class), "")
    return _ophthalmic(scope) if named == TOMOGRAPHY else named


def intent_notes(dataset: Dataset, sop_class: str) -> tuple[str, ...]:
    """Return a note if the picture is meant for processing, by Presentation Intent Type (0008,0068) or the SOP class."""
    if code(dataset, "PresentationIntentType") != "FOR PROCESSING" and sop_class not in _FOR_PROCESSING:
        return ()
    return (
        "The image is meant for processing, not for presentation: its values are shown as they are, without the processing "
        "of the device. Use the image for presentation if there is one.",
    )


def _ophthalmic(scope: Scope) -> str:
    place = scope.holder("OphthalmicFrameLocationSequence", "OphthalmicImageOrientation")
    if place is not None and code(place, "OphthalmicImageOrientation") == "TRANSVERSE":
        return EN_FACE
    words = " ".join(_frame_type(scope)).upper()
    if _EN_FACE.search(words):
        return EN_FACE
    return PHOTOGRAPH if _PHOTOGRAPH.search(words) else TOMOGRAPHY


def _frame_type(scope: Scope) -> tuple[str, ...]:
    """Return Frame Type, whatever macro it is in, or else Image Type; without their first two values."""
    for group in scope.groups:
        macros = (item(group, element.keyword) for element in group if element.keyword.endswith("FrameTypeSequence"))
        for holder in (group, *macros):
            if holder is not None and value(holder, "FrameType") is not None:
                return texts(holder, "FrameType")[2:]
    return texts(scope.dataset, "ImageType")[2:]
