"""The source of an object: the instance is read and checked, stands in while highdicom builds, and is named at the end."""

import io
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from importlib import metadata
from typing import Any

from pydicom.config import IGNORE
from pydicom.datadict import dictionary_VR
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue
from pydicom.tag import Tag
from pydicom.uid import SecondaryCaptureImageStorage

from pipeline.imaging import guard
from pipeline.imaging.dicom import elements, header
from pipeline.imaging.dicom.codecs import LOSSY
from pipeline.imaging.dicom.dataset import instance_uids, parse, uid_text
from pipeline.imaging.dicom.layout import read_layout
from pipeline.imaging.dicom.terms import modality
from pipeline.imaging.identity import derived_uid
from pipeline.model.bundle import Manifest
from pipeline.results.dicom import Kind
from pipeline.settings import Limits

_ALWAYS = (
    *("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime"),
    *("AccessionNumber", "ReferringPhysicianName", "StudyID"),
)
"""Type 2 in the Patient and General Study modules (PS3.3 C.7.1.1, C.7.2.1): empty where the source has none."""
_WHERE_KNOWN = (
    *("IssuerOfPatientID", "PatientIdentityRemoved", "DeidentificationMethod", "StudyDescription", "PatientAge"),
    *("LongitudinalTemporalInformationModified", "TimezoneOffsetFromUTC"),
)
_IDENTIFIERS = frozenset({"AccessionNumber", "StudyID", "IssuerOfPatientID"})
"""A part of one names something else, so that one that is too long is left out."""
_LONGEST = {"SH": 16, "LO": 64, "PN": 64}
"""Characters of a value, or of a component group of a name (PS3.5 6.2)."""
_TERMS: Mapping[str, frozenset[str]] = {
    "PatientSex": frozenset("MFO"),
    "PatientIdentityRemoved": frozenset({"YES", "NO"}),
    "LongitudinalTemporalInformationModified": frozenset({"UNMODIFIED", "MODIFIED", "REMOVED"}),
}
_TIME = re.compile(r"([01]\d|2[0-3])([0-5]\d([0-5]\d(\.\d{1,6})?)?)?")
_AGE = re.compile(r"\d{3}[DWMY]")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_OFFSET = re.compile(r"([+-])(\d\d)([0-5]\d)")
_SMALLEST_OFFSET, _LARGEST_OFFSET = -12 * 60, 14 * 60
_MOST = 100_000


@dataclass(frozen=True, slots=True)
class Source:
    """An instance whose header was read and checked.

    Parameters
    ----------
    dataset
        As it was parsed.
    uids
        Study, Series and SOP Instance UID, derived where they are missing, as in the `InstanceKey` of its frames.
    sop_class_uid
        SOP Class UID (0008,0016); Secondary Capture where it is missing.
    modality
        As in `Frame`.
    laterality
        R or L; empty where neither is known.
    is_lossy
        Whether the pixels were compressed with loss, now or before: Lossy Image Compression (0028,2110), or their encoding.
    rows, columns, frames
        As the pixel data have them.
    instance_number
        Instance Number (0020,0013); 1 where it is missing or of no use.
    identity
        Patient and study, as they stand in the source, and Timezone Offset From UTC (0008,0201), by which their times are read.
        Values that are longer than the Standard allows are cut or left out. Patient ID (0010,0020) is kept: by another one an
        archive would file the objects under another patient.
    """

    dataset: Dataset
    uids: tuple[str, str, str]
    sop_class_uid: str
    modality: str
    laterality: str
    is_lossy: bool
    rows: int
    columns: int
    frames: int
    instance_number: int
    identity: tuple[DataElement, ...]

    def local(self, time: datetime) -> datetime:
        """Return a time as the source's times are to be read: with its offset, or without one by the clock of this computer."""
        offset = _offset(_text(self.dataset, "TimezoneOffsetFromUTC"))
        return time.astimezone(None if offset is None else timezone(timedelta(minutes=offset)))


def read_source(content: bytes, limits: Limits) -> Source:
    """Read the header of a DICOM file.

    Raises
    ------
    UnreadableError
        Where the file cannot be read as an image.
    """
    with guard.translated("The DICOM file is damaged: its header cannot be read. Copy or export it again."):
        dataset, syntax, _ = parse(content, limits)
        layout = read_layout(dataset, syntax, limits)
        uids, _ = instance_uids(dataset, content)
        sop_class = uid_text(dataset, "SOPClassUID")
        number = elements.whole_number(dataset, "InstanceNumber") or 1
        scope = elements.Scope.of(dataset, 0)
        return Source(
            dataset=dataset,
            uids=uids,
            sop_class_uid=sop_class or str(SecondaryCaptureImageStorage),
            modality=modality(scope, sop_class),
            laterality=side if (side := header.laterality(scope)) in ("R", "L") else "",
            is_lossy=syntax in LOSSY or elements.code(dataset, "LossyImageCompression") == "01",
            rows=layout.rows,
            columns=layout.columns,
            frames=layout.frames,
            instance_number=number if 0 < number <= _MOST else 1,
            identity=_identity(dataset),
        )


def element(keyword: str, text: str) -> DataElement:
    """Return an element that is written as it stands, valid or not."""
    return DataElement(Tag(keyword), dictionary_VR(keyword), text, validation_mode=IGNORE)


def _identity(dataset: Dataset) -> tuple[DataElement, ...]:
    found = {keyword: _text(dataset, keyword) for keyword in (*_ALWAYS, *_WHERE_KNOWN)}
    if found["PatientIdentityRemoved"] == "YES" and not found["DeidentificationMethod"]:
        found["DeidentificationMethod"] = "See the source image"
    return tuple(element(keyword, text) for keyword, text in found.items() if text or keyword in _ALWAYS)


def _text(dataset: Dataset, keyword: str) -> str:
    """Return an element's value as text; empty where it has none, or none that its value representation allows."""
    found = elements.value(dataset, keyword)
    parts = found if isinstance(found, MultiValue | list) else [] if found is None else [found]
    text = _CONTROL.sub("", "\\".join(str(part) for part in parts)).strip()
    kind = dictionary_VR(keyword)
    if kind == "DA":
        return _date(text)
    if kind == "TM":
        text = text.replace(":", "")
        return text if _TIME.fullmatch(text) else ""
    if kind == "AS":
        return text if _AGE.fullmatch(text) else ""
    if keyword == "TimezoneOffsetFromUTC":
        return text if _offset(text) is not None else ""
    if text not in _TERMS.get(keyword, {text}):
        return ""
    return text if keyword == "PatientID" else _shortened(text, keyword, kind)


def _shortened(text: str, keyword: str, kind: str) -> str:
    """Return a text that is as long as the Standard allows: cut, or empty if it is an identifier."""
    longest, between = _LONGEST.get(kind, len(text)), "=" if kind == "PN" else "\\"
    parts = text.split(between)
    if max(map(len, parts)) <= longest:
        return text
    return "" if keyword in _IDENTIFIERS else between.join(part[:longest].rstrip() for part in parts)


def _offset(text: str) -> int | None:
    """Return Timezone Offset From UTC in minutes; None if the text is none (PS3.3 C.12.1.1.8)."""
    found = _OFFSET.fullmatch(text)
    if found is None:
        return None
    minutes = int(f"{found[1]}1") * (60 * int(found[2]) + int(found[3]))
    return minutes if text != "-0000" and _SMALLEST_OFFSET <= minutes <= _LARGEST_OFFSET else None


def _date(text: str) -> str:
    text = text.replace(".", "")  # as ACR-NEMA wrote dates (PS3.5 6.2)
    try:
        datetime.strptime(text, "%Y%m%d")
    except ValueError:
        return ""
    return text if len(text) == 8 else ""


NOT_FOR_DIAGNOSIS = "Not a medical device: research use only, not for diagnosis."
_SERIES_NUMBERS = {Kind.SR: 9901, Kind.PM: 9902, Kind.SC: 9903}
_SERIES_DESCRIPTIONS = {
    Kind.SR: "octray results (not for diagnosis)",
    Kind.PM: "octray heatmaps of evidence (not for diagnosis)",
    Kind.SC: "octray pictures (not for diagnosis)",
}
_LONGEST_CODE = 16  # of CS and DS (PS3.5 6.2)
_STAMPS = (
    *("InstanceCreationDate", "InstanceCreationTime", "DateOfSecondaryCapture", "TimeOfSecondaryCapture"),
    "ContributingEquipmentSequence",
)
"""What would change from run to run; all are optional."""


@dataclass(frozen=True, slots=True)
class Author:
    """Who writes objects about one instance, and from what.

    Parameters
    ----------
    source
        The instance.
    manifest
        Of the bundle.
    results_sha256
        Hash of the results that are written.
    made
        When the results were made, with its time zone.
    """

    source: Source
    manifest: Manifest
    results_sha256: str
    made: datetime

    @property
    def content_date_time(self) -> tuple[str, str]:
        """Return Content Date (0008,0023) and Content Time (0008,0033): when the content was made."""
        local = self.source.local(self.made)
        return f"{local:%Y%m%d}", f"{local:%H%M%S}"

    @property
    def warning(self) -> str:
        """What every object says: that it is not for diagnosis, and why heatmaps are not to be trusted, if so."""
        return f"{NOT_FOR_DIAGNOSIS} {self.manifest.heatmap.caveat}".rstrip()

    def uid(self, kind: Kind, *parts: object) -> str:
        """Return the SOP Instance UID of an object: it depends on instance, bundle, results, time, versions and parts alone."""
        return self._uid(self.source.uids[2], kind, self.results_sha256, *self.content_date_time, *parts)

    def series_uid(self, kind: Kind, *parts: object) -> str:
        """Return the Series Instance UID: one for each source series, bundle and kind."""
        return self._uid(self.source.uids[1], kind, *parts)

    def arguments(self, kind: Kind, instance_number: int, *parts: object) -> dict[str, Any]:
        """Return the arguments that highdicom's classes have in common; `parts` tell objects of one kind apart."""
        return {
            "series_instance_uid": self.series_uid(kind),
            "series_number": _SERIES_NUMBERS[kind],
            "series_description": _SERIES_DESCRIPTIONS[kind],
            "sop_instance_uid": self.uid(kind, *parts),
            "instance_number": instance_number,
            "manufacturer": "octray",
            "manufacturer_model_name": f"octray {self.manifest.provenance.config_name}"[:64],
            "software_versions": [version(), f"bundle {self.manifest.bundle_id}"],
            "device_serial_number": self.manifest.bundle_id,
        }

    def _uid(self, *parts: object) -> str:
        named = (*parts, self.manifest.bundle_id, version(), metadata.version("highdicom"))
        return derived_uid("\n".join(str(part) for part in named).encode(), "result")


def version() -> str:
    """Return octray's version."""
    return metadata.version("octray")


def stand_in(source: Source, frame_number: int = 0) -> Dataset:
    """Return an image that highdicom takes for the source, or for one frame of it; it holds nothing that could be invalid.

    highdicom refuses sources that lack what their class asks for, which real files do. The true identity, the true UIDs and
    references come with `finished`.
    """
    image = Dataset()
    image.SOPClassUID = SecondaryCaptureImageStorage
    image.StudyInstanceUID, image.SeriesInstanceUID = _placeholder(source, "study"), _placeholder(source, "series")
    image.SOPInstanceUID = _placeholder(source, f"instance {frame_number}")
    for keyword in ("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "StudyID"):
        setattr(image, keyword, "")
    image.AccessionNumber = image.ReferringPhysicianName = ""
    image.Rows, image.Columns, image.Modality = source.rows, source.columns, "OT"
    if source.frames > 1 and not frame_number:
        image.NumberOfFrames = source.frames
    return image


def describe_image(image: Dataset, author: Author) -> None:
    """Say of an image what its source says of its side and of lossy compression, and what it is not for."""
    source = author.source
    image.ImageComments = author.warning
    image.Laterality = source.laterality
    image.LossyImageCompression = "01" if source.is_lossy else "00"
    if source.is_lossy:
        for keyword in ("LossyImageCompressionRatio", "LossyImageCompressionMethod"):
            if keyword in image:
                delattr(image, keyword)
            found = elements.texts(source.dataset, keyword)
            if found and max(map(len, found)) <= _LONGEST_CODE:
                image.add(element(keyword, "\\".join(found)))


def finished(dataset: Dataset, author: Author) -> bytes:
    """Put the truth in the place of the stand-ins, take away what changes between runs, and return the file.

    Parameters
    ----------
    dataset
        What highdicom built from stand-ins.
    author
        Who writes it.
    """
    source = author.source
    for keyword in _STAMPS:
        if keyword in dataset:
            delattr(dataset, keyword)
    dataset.SpecificCharacterSet = "ISO_IR 192"
    for one in source.identity:
        dataset.add(one)
    dataset.ContentDate, dataset.ContentTime = author.content_date_time
    truths = {_placeholder(source, name): uid for name, uid in zip(("study", "series"), source.uids, strict=False)}
    instances = {_placeholder(source, f"instance {number}"): number for number in range(source.frames + 1)}
    _set_uids(dataset, truths, derived_uid(str(dataset.SOPInstanceUID).encode(), "dimensions"))
    _set_references(dataset, source, instances)
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def _set_uids(item: Dataset, truths: Mapping[str, str], dimensions_uid: str) -> None:
    for one in list(item):
        if one.VR == "SQ":
            for child in one.value:
                _set_uids(child, truths, dimensions_uid)
        elif one.keyword == "DimensionOrganizationUID":
            one.value = dimensions_uid
        elif one.VR == "UI" and str(one.value) in truths:
            item.add(element(one.keyword, truths[str(one.value)]))


def _set_references(item: Dataset, source: Source, instances: Mapping[str, int]) -> None:
    number = instances.get(str(item.get("ReferencedSOPInstanceUID", "")))
    if number is not None:
        item.add(element("ReferencedSOPClassUID", source.sop_class_uid))
        item.add(element("ReferencedSOPInstanceUID", source.uids[2]))
        if number and source.frames > 1:
            item.ReferencedFrameNumber = number
        item.pop("SpatialLocationsPreserved", None)  # of the stand-in's pixels, not of the source's
    for one in list(item):
        if one.VR == "SQ":
            for child in one.value:
                _set_references(child, source, instances)


def _placeholder(source: Source, name: str) -> str:
    return derived_uid(source.uids[2].encode(), f"stand-in for {name}")
