"""Turns synthetic pictures into DICOM datasets: digital and computed radiographs, and Ophthalmic Tomography volumes."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence as Items
from pydicom.uid import (
    UID,
    ComputedRadiographyImageStorage,
    DigitalXRayImageStorageForPresentation,
    ExplicitVRLittleEndian,
    OphthalmicTomographyImageStorage,
    generate_uid,
)

from pipeline.phantoms.drawing import Drawing


@dataclass(frozen=True, slots=True)
class Identity:
    """Whose picture it is: everything that the UIDs of one synthetic study are made from."""

    name: str
    patient_id: str
    study: int

    def uid(self, level: str) -> UID:
        """Return the UID of the study, series or instance, the same one every time."""
        return generate_uid(entropy_srcs=[self.name, self.patient_id, str(self.study), level])


def radiograph(rng: np.random.Generator, drawing: Drawing, identity: Identity) -> Dataset:
    """Return a CR or DX dataset of 12 bits stored in 16.

    Photometric Interpretation (0028,0004), window (0028,1050) and (0028,1051), rescale (0028,1052) and (0028,1053) and View
    Position (0018,5101) vary, as PS3.3 C.8.11.3, C.11.1 and C.11.2 allow; the picture that they describe is the same.
    """
    digital, inverted = bool(rng.random() < 0.5), bool(rng.random() < 0.3)
    uid = DigitalXRayImageStorageForPresentation if digital else ComputedRadiographyImageStorage
    dataset = _dataset(identity, uid, "DX" if digital else "CR")
    dataset.ViewPosition, dataset.BodyPartExamined, dataset.PatientOrientation = (
        str(rng.choice(["PA", "AP"])),
        "CHEST",
        ["L", "F"],
    )
    stored = np.round((1 - drawing.pixels if inverted else drawing.pixels) * 4095).astype(np.uint16)
    _add_pixels(dataset, stored, 12, "MONOCHROME1" if inverted else "MONOCHROME2")
    dataset.PixelSpacing = [round(float(rng.uniform(0.3, 0.45)), 3)] * 2
    slope, intercept = 1.0, 0.0
    if rng.random() < 0.4:
        slope, intercept = float(rng.choice([0.5, 2.0])), float(rng.choice([-1024.0, 0.0]))
        dataset.RescaleSlope, dataset.RescaleIntercept, dataset.RescaleType = slope, intercept, "US"
    if rng.random() < 0.5:
        dataset.WindowCenter = round(2048 * slope + intercept, 1)
        dataset.WindowWidth = round(4096 * slope, 1)
    return dataset


def tomogram(rng: np.random.Generator, drawings: Sequence[Drawing], identity: Identity, laterality: str) -> Dataset:
    """Return a multi-frame Ophthalmic Tomography dataset of 8 bits (PS3.3 A.52.4), one frame a B-scan.

    Pixel measures, frame anatomy and plane orientation are shared; frame content and plane position come with each frame.
    """
    stored = np.round(np.stack([drawing.pixels for drawing in drawings]) * 255).astype(np.uint8)
    frames, rows, columns = stored.shape
    dataset = _dataset(identity, OphthalmicTomographyImageStorage, "OPT")
    dataset.ImageType, dataset.ImageLaterality = ["ORIGINAL", "PRIMARY"], laterality
    dataset.BurnedInAnnotation, dataset.LossyImageCompression, dataset.PresentationLUTShape = "NO", "00", "IDENTITY"
    dataset.FrameOfReferenceUID = identity.uid("frame of reference")
    dataset.NumberOfFrames = frames
    _add_pixels(dataset, stored, 8, "MONOCHROME2")
    width, depth = float(rng.uniform(5.5, 6.5)), 1.9
    dataset.SharedFunctionalGroupsSequence = [_shared_groups(laterality, (depth / rows, width / columns), width / frames)]
    dataset.PerFrameFunctionalGroupsSequence = [_frame_groups(number, number * width / frames) for number in range(frames)]
    return dataset


def _dataset(identity: Identity, sop_class_uid: UID, modality: str) -> Dataset:
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = sop_class_uid
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = identity.uid("instance")
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = identity.uid("study"), identity.uid("series")
    dataset.PatientID, dataset.PatientName = identity.patient_id, f"Phantom^{identity.patient_id}"
    dataset.PatientBirthDate, dataset.PatientSex = "", "O"
    dataset.StudyDate = dataset.ContentDate = "20200101"
    dataset.StudyTime = dataset.ContentTime = "120000"
    dataset.AccessionNumber, dataset.ReferringPhysicianName, dataset.StudyID = "", "", str(identity.study)
    dataset.Modality, dataset.Manufacturer, dataset.ManufacturerModelName = modality, "octray", "phantom"
    dataset.DeviceSerialNumber, dataset.SoftwareVersions = "1", "1"
    dataset.SeriesNumber = dataset.InstanceNumber = 1
    return dataset


def _add_pixels(dataset: Dataset, stored: NDArray[np.integer], bits: int, photometric_interpretation: str) -> None:
    dataset.Rows, dataset.Columns = stored.shape[-2:]
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, photometric_interpretation
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = stored.dtype.itemsize * 8, bits, bits - 1
    dataset.PixelRepresentation = 0
    dataset.PixelData = stored.astype(stored.dtype.newbyteorder("<")).tobytes()
    dataset["PixelData"].VR = "OW" if bits > 8 else "OB"


def _shared_groups(laterality: str, spacing: tuple[float, float], thickness: float) -> Dataset:
    measures, anatomy, region, orientation, groups = Dataset(), Dataset(), Dataset(), Dataset(), Dataset()
    measures.PixelSpacing = [round(value, 6) for value in spacing]
    measures.SliceThickness = round(thickness, 4)
    region.CodeValue, region.CodingSchemeDesignator, region.CodeMeaning = "5665001", "SCT", "Retina"
    anatomy.AnatomicRegionSequence, anatomy.FrameLaterality = Items([region]), laterality
    orientation.ImageOrientationPatient = [1, 0, 0, 0, 0, -1]
    groups.PixelMeasuresSequence, groups.FrameAnatomySequence = Items([measures]), Items([anatomy])
    groups.PlaneOrientationSequence = Items([orientation])
    return groups


def _frame_groups(index: int, position: float) -> Dataset:
    content, plane, groups = Dataset(), Dataset(), Dataset()
    content.StackID, content.InStackPositionNumber, content.DimensionIndexValues = "1", index + 1, [1, index + 1]
    plane.ImagePositionPatient = [0, round(position, 4), 0]
    groups.FrameContentSequence, groups.PlanePositionSequence = Items([content]), Items([plane])
    return groups
