"""Everything that makes an object octray's and the same one every time: its UIDs, its equipment, and the last touches."""

import io
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from importlib import metadata
from typing import Any

from pydicom.dataset import Dataset
from pydicom.uid import SecondaryCaptureImageStorage

from pipeline.imaging.dicom import header
from pipeline.imaging.identity import derived_uid
from pipeline.model.bundle import Manifest
from pipeline.results.dicom.kinds import Kind
from pipeline.results.dicom.source import Source, element

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
            found = header.texts(source.dataset, keyword)
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
