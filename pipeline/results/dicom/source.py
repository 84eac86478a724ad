"""The source of DICOM objects: its header, checked, and the placeholder that stands for it while highdicom builds."""

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
from pipeline.imaging.dicom import elements
from pipeline.imaging.dicom.codecs import LOSSY
from pipeline.imaging.dicom.dataset import parse
from pipeline.imaging.dicom.header import read_header
from pipeline.imaging.dicom.layout import read_layout
from pipeline.imaging.identity import derived_uid
from pipeline.model.bundle import Manifest
from pipeline.results.dicom import Kind
from pipeline.settings import Limits

_ALWAYS = (
    *("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime"),
    *("AccessionNumber", "ReferringPhysicianName", "StudyID"),
)
"""Type 2 in the Patient and General Study modules (PS3.3 C.7.1.1, C.7.2.1): empty if the source has none."""
_IF_KNOWN = (
    *("IssuerOfPatientID", "PatientIdentityRemoved", "DeidentificationMethod", "StudyDescription", "PatientAge"),
    *("LongitudinalTemporalInformationModified", "TimezoneOffsetFromUTC"),
)
_IDENTIFIERS = frozenset({"AccessionNumber", "StudyID", "IssuerOfPatientID"})
"""Part of an identifier identifies something else, so an identifier that is too long is left out."""
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
        Study, Series and SOP Instance UID, derived if they are missing, as in the `InstanceKey` of its frames.
    sop_class_uid
        SOP Class UID (0008,0016); Secondary Capture if it is missing.
    modality
        As in `Frame`.
    laterality
        R or L; empty if unknown.
    is_lossy
        Whether the pixels were compressed with loss, now or before: Lossy Image Compression (0028,2110), or their encoding.
    rows, columns, frames
        As the pixel data have them.
    instance_number
        Instance Number (0020,0013); 1 if it is missing or unusable.
    identity
        Patient and study as in the source, and Timezone Offset From UTC (0008,0201), which their times depend on. Values longer
        than the Standard allows are cut or left out, but not Patient ID (0010,0020): with another ID, an archive would file the
        objects under another patient.
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
        """Return a time in the time zone of the source, or in that of this computer if the source names none."""
        offset = _offset(_text(self.dataset, "TimezoneOffsetFromUTC"))
        return time.astimezone(None if offset is None else timezone(timedelta(minutes=offset)))


def read_source(content: bytes, limits: Limits) -> Source:
    """Read the header of a DICOM file.

    Raises
    ------
    UnreadableError
        If the file cannot be read as an image.
    """
    with guard.unreadable("The DICOM file is damaged: its header cannot be read. Copy or export it again."):
        dataset, syntax, _ = parse(content, limits)
        header = read_header(dataset, read_layout(dataset, syntax, limits), content)
        frame, number = header.frame(1), header.instance_number or 1
        return Source(
            dataset=dataset,
            uids=header.uids,
            sop_class_uid=header.sop_class_uid or str(SecondaryCaptureImageStorage),
            modality=frame.modality,
            laterality=frame.laterality if frame.laterality in ("R", "L") else "",
            is_lossy=syntax in LOSSY or elements.code(dataset, "LossyImageCompression") == "01",
            rows=header.layout.rows,
            columns=header.layout.columns,
            frames=header.layout.frames,
            instance_number=number if 0 < number <= _MOST else 1,
            identity=_identity(dataset),
        )


def element(keyword: str, text: str) -> DataElement:
    """Return an element that is written unchanged, valid or not."""
    return DataElement(Tag(keyword), dictionary_VR(keyword), text, validation_mode=IGNORE)


def _identity(dataset: Dataset) -> tuple[DataElement, ...]:
    found = {keyword: _text(dataset, keyword) for keyword in (*_ALWAYS, *_IF_KNOWN)}
    if found["PatientIdentityRemoved"] == "YES" and not found["DeidentificationMethod"]:
        found["DeidentificationMethod"] = "See the source image"
    return tuple(element(keyword, text) for keyword, text in found.items() if text or keyword in _ALWAYS)


def _text(dataset: Dataset, keyword: str) -> str:
    """Return an element's value as text; empty if it is missing or its value representation does not allow it."""
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
    """Shorten a text to what the Standard allows; an identifier that is too long becomes empty."""
    longest, between = _LONGEST.get(kind, len(text)), "=" if kind == "PN" else "\\"
    parts = text.split(between)
    if max(map(len, parts)) <= longest:
        return text
    return "" if keyword in _IDENTIFIERS else between.join(part[:longest].rstrip() for part in parts)


def _offset(text: str) -> int | None:
    """Return Timezone Offset From UTC in minutes; None if the text is not valid (PS3.3 C.12.1.1.8)."""
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
"""Optional elements that would differ from run to run."""


@dataclass(frozen=True, slots=True)
class Author:
    """What all objects about one instance say of the bundle that made them and of their source, and their UIDs.

    Parameters
    ----------
    source
        The instance.
    manifest
        Manifest of the bundle.
    results_sha256
        Hash of the results.
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
        """Text in every object: it is not for diagnosis, and whether its heatmaps failed their checks."""
        return f"{NOT_FOR_DIAGNOSIS} {self.manifest.heatmap.caveat}".rstrip()

    def uid(self, kind: Kind, *parts: object) -> str:
        """Return the SOP Instance UID of an object, derived from instance, bundle, results, time, versions and `parts`."""
        return self._uid(self.source.uids[2], kind, self.results_sha256, *self.content_date_time, *parts)

    def series_uid(self, kind: Kind, *parts: object) -> str:
        """Return the Series Instance UID, derived from source series, bundle, kind and `parts`."""
        return self._uid(self.source.uids[1], kind, *parts)

    def arguments(self, kind: Kind, instance_number: int, *parts: object) -> dict[str, Any]:
        """Return the arguments that highdicom's classes share; `parts` distinguish objects of one kind."""
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


def placeholder_image(source: Source, frame_number: int = 0) -> Dataset:
    """Return a minimal valid image for highdicom to build on, in place of the source or of one of its frames.

    highdicom refuses sources that lack what their class requires, and many real files do. `to_file` replaces identity, UIDs and
    references by the true ones.
    """
    image = Dataset()
    image.SOPClassUID = SecondaryCaptureImageStorage
    image.StudyInstanceUID, image.SeriesInstanceUID = _placeholder_uid(source, "study"), _placeholder_uid(source, "series")
    image.SOPInstanceUID = _placeholder_uid(source, f"instance {frame_number}")
    for keyword in ("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "StudyID"):
        setattr(image, keyword, "")
    image.AccessionNumber = image.ReferringPhysicianName = ""
    image.Rows, image.Columns, image.Modality = source.rows, source.columns, "OT"
    if source.frames > 1 and not frame_number:
        image.NumberOfFrames = source.frames
    return image


def describe_image(image: Dataset, author: Author) -> None:
    """Copy laterality and lossy compression of the source to an image, and add the warning."""
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


def to_file(dataset: Dataset, author: Author) -> bytes:
    """Return an object as a file: placeholders are replaced, and what differs between runs is removed.

    Parameters
    ----------
    dataset
        What highdicom built from placeholders.
    author
        What the object says of the bundle and the source.
    """
    source = author.source
    for keyword in _STAMPS:
        if keyword in dataset:
            delattr(dataset, keyword)
    dataset.SpecificCharacterSet = "ISO_IR 192"
    for one in source.identity:
        dataset.add(one)
    dataset.ContentDate, dataset.ContentTime = author.content_date_time
    truths = {_placeholder_uid(source, name): uid for name, uid in zip(("study", "series"), source.uids, strict=False)}
    instances = {_placeholder_uid(source, f"instance {number}"): number for number in range(source.frames + 1)}
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
        item.pop("SpatialLocationsPreserved", None)  # of the placeholder's pixels, not of the source's
    for one in list(item):
        if one.VR == "SQ":
            for child in one.value:
                _set_references(child, source, instances)


def _placeholder_uid(source: Source, name: str) -> str:
    return derived_uid(source.uids[2].encode(), f"stand-in for {name}")
