"""Synthetic studies: readable by pydicom and Pillow, the same for the same seed, and true to their own truth."""

import csv
import hashlib
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydicom import dcmread
from pydicom.uid import OphthalmicTomographyImageStorage

from pipeline.errors import InputError
from pipeline.phantoms.drawing import DME, DRUSEN, PNEUMONIA, draw_chest
from pipeline.phantoms.studies import Modality, write_phantom


def read_labels(out: Path) -> list[dict[str, str]]:
    with (out / "labels.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def read_truth(out: Path) -> dict[str, Any]:
    truth: dict[str, Any] = json.loads((out / "truth.json").read_text())
    return truth


def hashes(out: Path) -> dict[str, str]:
    files = [path for path in sorted(out.rglob("*")) if path.is_file()]
    return {path.relative_to(out).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def chests(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("xray")
    write_phantom(out, "xray", 20, seed=3)
    return out


@pytest.fixture(scope="module")
def volumes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("oct")
    write_phantom(out, "oct", 9, seed=3)
    return out


@pytest.mark.parametrize("modality", ["xray", "oct"])
def test_the_same_seed_writes_the_same_bytes_and_another_seed_does_not(tmp_path: Path, modality: Modality) -> None:
    for folder, seed in (("first", 5), ("again", 5), ("other", 6)):
        write_phantom(tmp_path / folder, modality, 2, seed)
    assert hashes(tmp_path / "first") == hashes(tmp_path / "again")
    assert set(hashes(tmp_path / "first").values()).isdisjoint(hashes(tmp_path / "other").values())


def test_every_study_has_a_label_and_a_truth(chests: Path) -> None:
    rows = read_labels(chests)
    assert [row["file"] for row in rows] == list(read_truth(chests))
    assert Counter(row["label"] for row in rows) == {"NORMAL": 9, PNEUMONIA: 11}
    assert max(Counter(row["patient_key"] for row in rows).values()) == 2
    assert {row["file"] for row in rows} == {name for name in hashes(chests) if name.startswith("studies/")}


def test_radiographs_come_in_the_kinds_that_hospitals_send(chests: Path) -> None:
    datasets = [dcmread(path) for path in sorted(chests.rglob("*.dcm"))]
    assert {dataset.Modality for dataset in datasets} == {"CR", "DX"}
    assert {dataset.PhotometricInterpretation for dataset in datasets} == {"MONOCHROME1", "MONOCHROME2"}
    assert {"WindowCenter" in dataset for dataset in datasets} == {True, False}
    assert {"RescaleSlope" in dataset for dataset in datasets} == {True, False}
    assert {dataset.BitsStored for dataset in datasets} == {12}
    assert all(int(dataset.pixel_array.max()) < 4096 for dataset in datasets)
    assert {np.asarray(Image.open(path)).dtype.itemsize for path in chests.rglob("*.png")} == {1, 2}


def test_lung_is_darker_than_the_abdomen_in_every_radiograph_once_inverted(chests: Path) -> None:
    for path in chests.rglob("*.dcm"):
        dataset = dcmread(path)
        grey = dataset.pixel_array / 4095
        grey = 1 - grey if dataset.PhotometricInterpretation == "MONOCHROME1" else grey
        rows, columns = grey.shape
        lung = np.median(grey[rows // 4 : rows // 2, columns // 5 : columns // 3])
        assert lung < np.median(grey[-rows // 12 :, columns // 3 : 2 * columns // 3])


@pytest.mark.parametrize("folder", ["chests", "volumes"])
def test_boxes_lie_inside_the_frame_and_only_where_the_label_says_so(folder: str, request: pytest.FixtureRequest) -> None:
    out: Path = request.getfixturevalue(folder)
    for file, truth in read_truth(out).items():
        pixels = np.asarray(Image.open(out / file)) if file.endswith("png") else dcmread(out / file).pixel_array
        frames = pixels if pixels.ndim == 3 else pixels[None]
        assert [frame["frame_number"] for frame in truth["frames"]] == list(range(1, len(frames) + 1))
        for frame in truth["frames"]:
            assert bool(frame["boxes"]) == (truth["label"] != "NORMAL")
            for box in frame["boxes"]:
                assert box["label"] == truth["label"]
                assert 0 <= box["top"] < box["top"] + box["rows"] <= frames.shape[1]
                assert 0 <= box["left"] < box["left"] + box["columns"] <= frames.shape[2]


def test_an_opacity_is_brighter_than_the_same_place_in_the_other_lung() -> None:
    brighter = []
    for seed in range(12):
        pixels, boxes = draw_chest(np.random.default_rng(seed), PNEUMONIA)
        if len(boxes) == 1:
            box, mirrored = boxes[0], pixels[:, ::-1]
            place = slice(box.top, box.top + box.rows), slice(box.left, box.left + box.columns)
            brighter.append(pixels[place].mean() - mirrored[place].mean())
    assert len(brighter) >= 3
    assert np.mean(brighter) > 0.05


def test_volumes_are_multi_frame_tomography_with_functional_groups(volumes: Path) -> None:
    for path in volumes.rglob("*.dcm"):
        dataset = dcmread(path)
        frames = dataset.NumberOfFrames
        assert dataset.SOPClassUID == OphthalmicTomographyImageStorage
        assert dataset.Modality == "OPT"
        assert 3 <= frames <= 5
        assert dataset.pixel_array.shape in {(frames, 256, 256), (frames, 496, 512)}
        shared = dataset.SharedFunctionalGroupsSequence[0]
        assert shared.FrameAnatomySequence[0].FrameLaterality == dataset.ImageLaterality
        assert len(shared.PixelMeasuresSequence[0].PixelSpacing) == 2
        positions = [
            group.PlanePositionSequence[0].ImagePositionPatient[1] for group in dataset.PerFrameFunctionalGroupsSequence
        ]
        assert positions == sorted(set(positions))
        assert len(positions) == frames
    assert {dcmread(path).ImageLaterality for path in volumes.rglob("*.dcm")} == {"L", "R"}
    assert {row["label"] for row in read_labels(volumes)} == {"NORMAL", DRUSEN, DME}


def test_cysts_are_dark_and_drusen_reach_above_the_epithelium(volumes: Path) -> None:
    inside, around = [], []
    for file, truth in read_truth(volumes).items():
        if truth["label"] == DME:
            for pixels, frame in zip(dcmread(volumes / file).pixel_array, truth["frames"], strict=True):
                for box in frame["boxes"]:
                    row, column = box["top"] + box["rows"] // 2, box["left"] + box["columns"] // 2
                    inside.append(pixels[row - 1 : row + 2, column - 1 : column + 2].mean())
                    around.append(pixels[box["top"] - 6 : box["top"] - 3, column - 1 : column + 2].mean())
    assert len(inside) > 10
    assert np.mean(inside) < 0.5 * np.mean(around)


def test_uids_are_unique_and_patients_keep_their_identifier(volumes: Path) -> None:
    datasets = [dcmread(path, stop_before_pixels=True) for path in volumes.rglob("*.dcm")]
    assert len({dataset.SOPInstanceUID for dataset in datasets}) == len({dataset.StudyInstanceUID for dataset in datasets}) == 9
    keys = {row["file"]: row["patient_key"] for row in read_labels(volumes)}
    assert all(dcmread(volumes / file, stop_before_pixels=True).PatientID == key for file, key in keys.items())


@pytest.mark.parametrize(
    ("studies", "seed", "message"),
    [(0, 1, "number of synthetic studies must be 1 or more. Got 0"), (1, -1, "seed must be 0 or more. Got -1")],
)
def test_senseless_numbers_are_refused(tmp_path: Path, studies: int, seed: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        write_phantom(tmp_path, "xray", studies, seed)


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file, not a folder")
    with pytest.raises(InputError, match="The folder out cannot be written"):
        write_phantom(tmp_path / "out", "xray", 1, 0)
