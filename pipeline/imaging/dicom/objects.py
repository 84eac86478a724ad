"""Tells what kind of picture a frame is: from its SOP class, its Modality and, in ophthalmic objects, the frame's own type."""

import re
from types import MappingProxyType

from pydicom import uid
from pydicom.dataset import Dataset

from pipeline.imaging.dicom.header import Scope, code, item, texts, value

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
_WHERE_MISSING = MappingProxyType(
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
"""Roots of SOP classes (PS3.4 B.5, PS3.6 Annex A) all of which are without Pixel Data (7FE0,0010) and the like."""
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


def is_without_pixels(sop_class: str) -> bool:
    """Return whether a SOP class (0008,0016) is one of objects that never have pixels."""
    return sop_class in _WITHOUT_PIXELS or sop_class.startswith(_WITHOUT_PIXELS_BELOW)


def modality(scope: Scope, sop_class: str) -> str:
    """Return the Modality (0008,0060) of a frame; OPT is said of B-scans only, never of en-face frames or of the fundus.

    Within Ophthalmic Tomography, Ophthalmic Image Orientation (0022,0039) and Frame Type (0008,9007), or Image Type
    (0008,0008), say which frames are no B-scans.
    """
    named = _BY_CLASS.get(uid.UID(sop_class)) or code(scope.dataset, "Modality") or _WHERE_MISSING.get(uid.UID(sop_class), "")
    return _ophthalmic(scope) if named == TOMOGRAPHY else named


def intent_notes(dataset: Dataset, sop_class: str) -> tuple[str, ...]:
    """Say of pictures that are meant for processing what was assumed: Presentation Intent Type (0008,0068), SOP class."""
    if code(dataset, "PresentationIntentType") != "FOR PROCESSING" and sop_class not in _FOR_PROCESSING:
        return ()
    return (
        "The image is meant for processing, not for presentation: its values are shown as they are, without the processing "
        "of the device. Use the image for presentation where there is one.",
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
    """Return Frame Type, of whatever macro it stands in, or else Image Type; without their first two values."""
    for group in scope.groups:
        macros = (item(group, element.keyword) for element in group if element.keyword.endswith("FrameTypeSequence"))
        for holder in (group, *macros):
            if holder is not None and value(holder, "FrameType") is not None:
                return texts(holder, "FrameType")[2:]
    return texts(scope.dataset, "ImageType")[2:]
