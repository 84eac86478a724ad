"""A DICOM file that is full of identity, in every place where it was seen to be overlooked."""

import io
from pathlib import Path
from typing import Any

import numpy as np
from pydicom.datadict import tag_for_keyword
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import OphthalmicTomographyImageStorage

from pipeline.imaging.guard import silence_decoders
from tests.builders import make_dataset

STUDY, SERIES, INSTANCE, SOURCE = "1.2.999.1", "1.2.999.1.1", "1.2.999.1.1.1", "1.2.999.1.1.7"
SECRETS = (
    "Müller", "Jörg", "Whitfield", "Okonkwo", "MRN-778812", "ACC-55120", "St. Elsewhere", "Lane 5", "WARD9", "19610317",
    "20190304", "SN-99281", "Quennell", "20190305", STUDY, SERIES, INSTANCE, SOURCE, "AETITLE7", "Smuggled",
)  # fmt: skip
"""Texts of which none may be left; in the character set of the file, ISO_IR 100."""
RADIOGRAPH = {
    "PatientName": "Quillfeather^Zebedee",
    "PatientID": "MRN4471230",
    "PatientBirthDate": "19470823",
    "ImageType": ["ORIGINAL", "PRIMARY"],
    "BitsStored": 12,
    "HighBit": 11,
}


def item(**values: Any) -> Dataset:
    made = Dataset()
    for keyword, value in values.items():
        setattr(made, keyword, value)
    return made


def frame_group(day: str, position: int) -> Dataset:
    source = item(ReferencedSOPClassUID=OphthalmicTomographyImageStorage, ReferencedSOPInstanceUID=SOURCE)
    return item(
        FrameContentSequence=[item(FrameAcquisitionDateTime=f"{day}101500.25+0100", InStackPositionNumber=position)],
        DerivationImageSequence=[item(SourceImageSequence=[source], DerivationDescription="for Whitfield")],
    )


def make_identified_dataset(frames: int = 2, **overrides: Any) -> Dataset:
    """A multi-frame OCT with nested names, dates and references, private attributes, an overlay, a curve and a preamble."""
    pixels = np.arange(frames * 8 * 6, dtype=np.uint16).reshape(frames, 8, 6)
    values: dict[str, Any] = {
        "SpecificCharacterSet": "ISO_IR 100",
        "SOPClassUID": OphthalmicTomographyImageStorage,
        "StudyInstanceUID": STUDY,
        "SeriesInstanceUID": SERIES,
        "SOPInstanceUID": INSTANCE,
        "Modality": "OPT",
        "Manufacturer": "Maker",
        "PatientName": "Müller^Jörg",
        "PatientID": "MRN-778812",
        "PatientBirthDate": "19610317",
        "PatientSex": "M",
        "PatientAge": "057Y",
        "PatientWeight": "81",
        "OtherPatientIDs": ["MRN-778812", "B2"],
        "AccessionNumber": "ACC-55120",
        "StudyDate": "20190304",
        "StudyTime": "101112",
        "ContentDate": "20190305",
        "AcquisitionDateTime": "20190304101112.5",
        "StudyDescription": "OCT macula left",
        "SeriesDescription": "Müller OCT",
        "InstitutionName": "St. Elsewhere",
        "InstitutionAddress": "Lane 5",
        "StationName": "WARD9",
        "DeviceSerialNumber": "SN-99281",
        "ReferringPhysicianName": "Whitfield^Ann",
        "ImageComments": "called Okonkwo on 20190304",
        "BodyPartExamined": "EYE",
        "RequestAttributesSequence": [
            item(
                RequestedProcedureDescription="for Okonkwo",
                ReferencedStudySequence=[item(ReferencedSOPInstanceUID=STUDY)],
                RequestingPhysician="Okonkwo^Ada",
            )
        ],
        "ReferencedSeriesSequence": [
            item(SeriesInstanceUID=SERIES, ReferencedInstanceSequence=[item(ReferencedSOPInstanceUID=SOURCE)])
        ],
        "PerFrameFunctionalGroupsSequence": [frame_group("20190304", 1), frame_group("20190305", 2)],
    }
    dataset = make_dataset(pixels, **(values | overrides))
    _add_repeating(dataset)
    _add_private(dataset)
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dataset.file_meta.SourceApplicationEntityTitle = "AETITLE7"
    dataset.preamble = b"Smuggled".ljust(128, b"\0")
    return dataset


def _add_repeating(dataset: Dataset) -> None:
    dataset.add_new(0x60000010, "US", 8)
    dataset.add_new(0x60000022, "LO", "Müller")
    dataset.add_new(0x60003000, "OW", bytes(8))
    dataset.add_new(0x50000010, "US", 1)
    dataset.add_new(0x50003000, "OW", b"Whitfield ")


def _add_private(dataset: Dataset) -> None:
    block = dataset.private_block(0x0029, "MAKER", create=True)
    block.add_new(0x01, "LO", "Müller")
    block.add_new(0x02, "SQ", Sequence([item(PatientName="Quennell^Eve", StudyDate="20190304")]))
    nested = dataset.RequestAttributesSequence[0].private_block(0x0031, "MAKER", create=True)
    nested.add_new(0x01, "PN", "Quennell^Eve")
    dataset.add_new(0x00091001, "UN", b"Okonkwo ")


def file_bytes(dataset: Dataset) -> bytes:
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def make_identified(**overrides: Any) -> bytes:
    return file_bytes(make_identified_dataset(**overrides))


def write_key(path: Path) -> None:
    """Write a key that is always the same: one of 3650 random ones moves 20190305 to 20190304, which then seems to be left."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(bytes(range(32)).hex())
    path.chmod(0o600)


def make_radiograph(representations: dict[str, tuple[str, Any]] | None = None, rows: int = 8, **values: Any) -> bytes:
    """A radiograph of 12 bits of an invented patient, with some elements in another value representation."""
    silence_decoders()
    pixels = np.arange(rows * 6, dtype=np.uint16).reshape(rows, 6)
    dataset = make_dataset(pixels, **(RADIOGRAPH | values))
    for keyword, (representation, value) in (representations or {}).items():
        dataset[keyword] = DataElement(tag_for_keyword(keyword) or 0, representation, value)
    return file_bytes(dataset)
