"""Results about real bytes, with heatmaps that have one brightest cell, for the tests of what is written as DICOM."""

import io
import warnings
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib import resources
from pathlib import Path

import numpy as np
from PIL import Image
from pydicom import dcmread
from pydicom.datadict import dictionary_VR
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.tag import Tag

from pipeline.frames import FrameFacts, InstanceKey
from pipeline.imaging.sources import StudyFile, read_frames
from pipeline.model.bundle import Manifest
from pipeline.phantoms.studies import Modality, write_phantom
from pipeline.predictions import FramePrediction, Heatmap, Prediction, State, StudyRecord
from pipeline.results.dicom import Kind
from pipeline.results.dicom.write import write_objects
from pipeline.results.level_results import study_results
from pipeline.settings import Check, Flag
from tests.builders import make_dataset

CELLS = 4
STATES = (State.POSITIVE, State.UNCERTAIN, State.NEGATIVE)
MADE = datetime(2026, 3, 4, 22, 6, 7, tzinfo=UTC)


def scored(content: bytes, manifest: Manifest, folder: Path) -> tuple[FramePrediction, ...]:
    """What a bundle might say of every frame of a file."""
    (folder / "scored.dcm").write_bytes(content)
    frames = read_frames(StudyFile(folder / "scored.dcm", "scored.dcm"))
    return tuple(result(frame.key, manifest, frame.laterality) for frame in frames)


def result(key: InstanceKey, manifest: Manifest, laterality: str = "") -> FramePrediction:
    labels = manifest.labels
    predictions = tuple(
        Prediction(label, 1.5, 0.8123456 - 0.2 * number, STATES[min(number, 2)], 0.5) for number, label in enumerate(labels)
    )
    heatmaps = tuple(Heatmap(label, True, values=values(key.frame_number, number)) for number, label in enumerate(labels))
    flags = (Flag(Check.SATURATED, "Much of the frame is white."),)
    facts = FrameFacts(key, "scored.dcm", laterality)
    return FramePrediction(facts, manifest.bundle_id, predictions, flags, 0.41237, heatmaps)


def values(frame_number: int, label: int) -> np.ndarray:
    """A heatmap whose brightest cell is another one for each frame and label."""
    cells = np.random.default_rng([frame_number, label]).random((CELLS, CELLS), np.float32)
    cells.flat[(5 + 3 * frame_number + label) % cells.size] = 2.5
    return cells


def png(seed: int = 0) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (40, 90, 3), np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def written(
    content: bytes, results: tuple[FramePrediction, ...], manifest: Manifest, made: datetime = MADE
) -> dict[str, bytes]:
    pictures = {(results[0].key.frame_number, manifest.labels[-1]): png()}
    levels = study_results(StudyRecord(results[0].key.study_instance_uid, results), manifest)
    return dict(write_objects(content, results, manifest, tuple(Kind), made, pictures, levels))


def of_kind(objects: Mapping[str, bytes], kind: Kind) -> list[Dataset]:
    found = (content for name, content in objects.items() if f"-{kind.value}" in name)
    return [dcmread(io.BytesIO(content)) for content in found]


def phantom(folder: Path, modality: Modality) -> bytes:
    """The bytes of one synthetic study: a radiograph or a volume of B-scans."""
    write_phantom(folder, modality, 6, seed=4)
    return next(iter(sorted(folder.rglob("*.dcm")))).read_bytes()


def rg1() -> bytes:
    """RG1 of pydicom-data: a real radiograph without Frame of Reference and Imager Pixel Spacing."""
    return (resources.files("data_store") / "data" / "RG1_UNCR.dcm").read_bytes()


def raw_dicom(**texts: str) -> bytes:
    """The bytes of a file whose elements hold texts that pydicom would not write."""
    dataset = make_dataset()
    for keyword, text in texts.items():
        tag, content = Tag(keyword), text.encode() + b" " * (len(text) % 2)
        dataset[tag] = RawDataElement(tag, dictionary_VR(tag), len(content), content, 0, False, True)
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()
