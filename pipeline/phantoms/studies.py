"""Writes synthetic studies with known lesions, the same ones for the same seed, for trying and testing octray."""

import csv
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image
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

from pipeline.errors import InputError
from pipeline.frames import FloatArray
from pipeline.phantoms.drawing import DME, DRUSEN, PNEUMONIA, LesionBox, draw_chest, draw_volume
from pipeline.progress import Progress, silent

NORMAL = "NORMAL"
FINDINGS = {"xray": (PNEUMONIA,), "oct": (DRUSEN, DME)}
Modality = Literal["xray", "oct"]
_NORMAL_SHARE = 0.45
_SECOND_STUDY_SHARE = 0.25
_PNG_SHARE = 0.3


@dataclass(frozen=True, slots=True)
class _Study:
    """A study to be written; its UIDs are made of the name of the set, the patient and the study's number."""

    set_name: str
    patient_id: str
    number: int
    label: str
    laterality: str

    def uid(self, level: str) -> UID:
        """Return the UID of the study, series or instance, always the same one."""
        return generate_uid(entropy_srcs=[self.set_name, self.patient_id, str(self.number), level])

    def path(self, suffix: str) -> str:
        """Return the path of a file below the output folder."""
        return f"studies/{self.patient_id}/study-{self.number:04d}{suffix}"


def write_phantom(
    out: Path | str, modality: Modality = "xray", studies: int = 120, seed: int = 0, progress: Progress = silent
) -> None:
    """Write synthetic studies to `out/studies`, with their labels and the truth about their lesions.

    Radiographs are CR or DX DICOM files or 8 and 16 bit PNG, labelled NORMAL or PNEUMONIA; OCT volumes are multi-frame
    Ophthalmic Tomography DICOM, labelled NORMAL, DRUSEN or DME. About 45 % are normal; some patients have two studies.
    `labels.csv` has the columns file, label and patient_key. `truth.json` has the label of each file and the boxes (label, top,
    left, rows, columns) of each frame, in pixels. `file` is the path below `out`.

    Parameters
    ----------
    out
        The output folder; files of an earlier run are replaced.
    modality
        Chest radiographs (xray) or retinal OCT volumes (oct).
    studies
        How many studies, at least 1.
    seed
        The same seed writes the same bytes.
    progress
        Shows how many studies are done.

    Raises
    ------
    InputError
        If `studies` is less than 1, `seed` is less than 0, or `out` cannot be written.
    """
    if studies < 1:
        raise InputError(f"The number of synthetic studies must be 1 or more. Got {studies} instead.")
    if seed < 0:
        raise InputError(f"The seed must be 0 or more. Got {seed} instead.")
    out, plan = Path(out), _plan(modality, studies, seed)
    write = _write_chest if modality == "xray" else _write_volume
    truth, rows = {}, []
    try:
        for study in progress(plan, f"writing {modality} phantoms", len(plan)):
            rng = np.random.default_rng([seed, study.number])
            file, boxes = write(out, rng, study)
            rows.append((file, study.label, study.patient_id))
            truth[file] = _truth(study.label, boxes)
        with (out / "labels.csv").open("w", newline="", encoding="utf-8") as table:
            csv.writer(table, lineterminator="\n").writerows([("file", "label", "patient_key"), *rows])
        (out / "truth.json").write_text(json.dumps(truth, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise InputError(f"The folder {out.name} cannot be written: {error.strerror}. Give another one.") from None


def _plan(modality: Modality, studies: int, seed: int) -> list[_Study]:
    """Return the patient and the label of each study: the shares are exact, the order is random."""
    rng = np.random.default_rng([seed, len(modality)])
    normal = round(studies * _NORMAL_SHARE)
    findings = FINDINGS[modality]
    labels = [NORMAL] * normal + [findings[number % len(findings)] for number in range(studies - normal)]
    plan: list[_Study] = []
    patient, again = 0, False
    for number, place in enumerate(rng.permutation(studies)):
        again = not again and number > 0 and bool(rng.random() < _SECOND_STUDY_SHARE)
        patient += not again
        side = "LR"[int(rng.integers(2))]
        if again:
            side = "R" if plan[-1].laterality == "L" else "L"
        name = f"octray phantom {modality} {seed}"
        plan.append(_Study(name, f"{modality}-{patient:04d}", number + 1, labels[place], side))
    return plan


def _write_chest(out: Path, rng: np.random.Generator, study: _Study) -> tuple[str, list[list[LesionBox]]]:
    pixels, boxes = draw_chest(rng, study.label)
    if rng.random() < _PNG_SHARE:
        file = study.path(".png")
        wide = rng.random() < 0.5
        stored = np.round(pixels * (65535 if wide else 255)).astype(np.uint16 if wide else np.uint8)
        Image.fromarray(stored).save(_target(out, file), compress_level=1)
    else:
        file = study.path("/image-1.dcm")
        _radiograph(rng, pixels, study).save_as(_target(out, file), enforce_file_format=True)
    return file, [boxes]


def _write_volume(out: Path, rng: np.random.Generator, study: _Study) -> tuple[str, list[list[LesionBox]]]:
    drawings = draw_volume(rng, study.label)
    file = study.path("/volume-1.dcm")
    _tomogram(rng, [pixels for pixels, _ in drawings], study).save_as(_target(out, file), enforce_file_format=True)
    return file, [boxes for _, boxes in drawings]


def _target(out: Path, file: str) -> Path:
    target = out / file
    target.parent.mkdir(parents=True, exist_ok=True)
    return target


def _truth(label: str, boxes: Sequence[Sequence[LesionBox]]) -> dict[str, object]:
    frames = [{"frame_number": number, "boxes": [asdict(box) for box in frame]} for number, frame in enumerate(boxes, start=1)]
    return {"label": label, "frames": frames}


# DICOM data sets


def _radiograph(rng: np.random.Generator, pixels: FloatArray, study: _Study) -> Dataset:
    """Return a CR or DX dataset of 12 bits stored in 16.

    Photometric Interpretation (0028,0004), window (0028,1050) and (0028,1051), rescale (0028,1052) and (0028,1053) and View
    Position (0018,5101) vary, as PS3.3 C.8.11.3, C.11.1 and C.11.2 allow; the displayed picture is the same.
    """
    digital, inverted = bool(rng.random() < 0.5), bool(rng.random() < 0.3)
    uid = DigitalXRayImageStorageForPresentation if digital else ComputedRadiographyImageStorage
    dataset = _dataset(study, uid, "DX" if digital else "CR")
    dataset.ViewPosition, dataset.BodyPartExamined, dataset.PatientOrientation = (
        str(rng.choice(["PA", "AP"])),
        "CHEST",
        ["L", "F"],
    )
    stored = np.round((1 - pixels if inverted else pixels) * 4095).astype(np.uint16)
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


def _tomogram(rng: np.random.Generator, frames: Sequence[FloatArray], study: _Study) -> Dataset:
    """Return a multi-frame Ophthalmic Tomography dataset of 8 bits (PS3.3 A.52.4), one frame a B-scan.

    Pixel measures, frame anatomy and plane orientation are shared; frame content and plane position belong to each frame.
    """
    stored = np.round(np.stack(frames) * 255).astype(np.uint8)
    count, rows, columns = stored.shape
    dataset = _dataset(study, OphthalmicTomographyImageStorage, "OPT")
    dataset.ImageType, dataset.ImageLaterality = ["ORIGINAL", "PRIMARY"], study.laterality
    dataset.BurnedInAnnotation, dataset.LossyImageCompression, dataset.PresentationLUTShape = "NO", "00", "IDENTITY"
    dataset.FrameOfReferenceUID = study.uid("frame of reference")
    dataset.NumberOfFrames = count
    _add_pixels(dataset, stored, 8, "MONOCHROME2")
    width, depth = float(rng.uniform(5.5, 6.5)), 1.9
    dataset.SharedFunctionalGroupsSequence = [_shared_groups(study.laterality, (depth / rows, width / columns), width / count)]
    dataset.PerFrameFunctionalGroupsSequence = [_frame_groups(number, number * width / count) for number in range(count)]
    return dataset


def _dataset(study: _Study, sop_class_uid: UID, modality: str) -> Dataset:
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = sop_class_uid
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = study.uid("instance")
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = study.uid("study"), study.uid("series")
    dataset.PatientID, dataset.PatientName = study.patient_id, f"Phantom^{study.patient_id}"
    dataset.PatientBirthDate, dataset.PatientSex = "", "O"
    dataset.StudyDate = dataset.ContentDate = "20200101"
    dataset.StudyTime = dataset.ContentTime = "120000"
    dataset.AccessionNumber, dataset.ReferringPhysicianName, dataset.StudyID = "", "", str(study.number)
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
