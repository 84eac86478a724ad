"""Writes synthetic studies with known truth, the same ones for the same seed: for trying octray, and for its tests."""

import csv
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from pipeline.errors import InputError
from pipeline.phantoms import chest, retina
from pipeline.phantoms.dicom import Identity, radiograph, tomogram
from pipeline.phantoms.drawing import Drawing
from pipeline.progress import Progress, silent

NORMAL = "NORMAL"
FINDINGS = {"xray": (chest.FINDING,), "oct": (retina.DRUSEN, retina.DME)}
Modality = Literal["xray", "oct"]
_NORMAL_SHARE = 0.45
_SECOND_STUDY_SHARE = 0.25
_PNG_SHARE = 0.3


@dataclass(frozen=True, slots=True)
class _Study:
    identity: Identity
    label: str
    laterality: str

    def path(self, suffix: str) -> str:
        return f"studies/{self.identity.patient_id}/study-{self.identity.study:04d}{suffix}"


def write_phantom(out: Path, modality: Modality, studies: int, seed: int, progress: Progress = silent) -> None:
    """Write synthetic studies below `out/studies`, their labels and the truth about their lesions.

    Radiographs are CR or DX DICOM files or 8 and 16 bit PNG, labelled NORMAL or PNEUMONIA; OCT volumes are multi-frame
    Ophthalmic Tomography DICOM, labelled NORMAL, DRUSEN or DME. About 45 % are normal; some patients have two studies.
    `labels.csv` has the columns file, label and patient_key; `truth.json` gives for each file its label and for each frame the
    boxes (label, top, left, rows, columns) in pixels. `file` is the path below `out`.

    Parameters
    ----------
    out
        Folder to write to; files of an earlier run are replaced.
    modality
        Chest radiographs or retinal OCT.
    studies
        How many, at least 1.
    seed
        The same seed writes the same bytes.
    progress
        Shows how many studies are done.

    Raises
    ------
    InputError
        Where `studies` is less than 1, `seed` less than 0, or `out` cannot be written.
    """
    if studies < 1:
        raise InputError(f"The number of synthetic studies must be 1 or more. Got {studies} instead.")
    if seed < 0:
        raise InputError(f"The seed must be 0 or more. Got {seed} instead.")
    plan = _plan(modality, studies, seed)
    write = _write_chest if modality == "xray" else _write_volume
    truth, rows = {}, []
    try:
        for study in progress(plan, f"writing {modality} phantoms", len(plan)):
            rng = np.random.default_rng([seed, study.identity.study])
            file, drawings = write(out, rng, study)
            rows.append((file, study.label, study.identity.patient_id))
            truth[file] = _truth(study.label, drawings)
        with (out / "labels.csv").open("w", newline="", encoding="utf-8") as table:
            csv.writer(table, lineterminator="\n").writerows([("file", "label", "patient_key"), *rows])
        (out / "truth.json").write_text(json.dumps(truth, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise InputError(f"The folder {out.name} cannot be written: {error.strerror}. Give another one.") from None


def _plan(modality: Modality, studies: int, seed: int) -> list[_Study]:
    """Return which patient each study belongs to and what it shows: shares by count, order by chance."""
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
        plan.append(_Study(Identity(name, f"{modality}-{patient:04d}", number + 1), labels[place], side))
    return plan


def _write_chest(out: Path, rng: np.random.Generator, study: _Study) -> tuple[str, tuple[Drawing, ...]]:
    drawing = chest.draw_chest(rng, study.label)
    if rng.random() < _PNG_SHARE:
        file = study.path(".png")
        wide = rng.random() < 0.5
        stored = np.round(drawing.pixels * (65535 if wide else 255)).astype(np.uint16 if wide else np.uint8)
        Image.fromarray(stored).save(_target(out, file), compress_level=1)
    else:
        file = study.path("/image-1.dcm")
        radiograph(rng, drawing, study.identity).save_as(_target(out, file), enforce_file_format=True)
    return file, (drawing,)


def _write_volume(out: Path, rng: np.random.Generator, study: _Study) -> tuple[str, tuple[Drawing, ...]]:
    drawings = retina.draw_volume(rng, study.label)
    file = study.path("/volume-1.dcm")
    tomogram(rng, drawings, study.identity, study.laterality).save_as(_target(out, file), enforce_file_format=True)
    return file, drawings


def _target(out: Path, file: str) -> Path:
    target = out / file
    target.parent.mkdir(parents=True, exist_ok=True)
    return target


def _truth(label: str, drawings: Sequence[Drawing]) -> dict[str, object]:
    frames = [
        {"frame_number": number, "boxes": [asdict(box) for box in drawing.boxes]}
        for number, drawing in enumerate(drawings, start=1)
    ]
    return {"label": label, "frames": frames}
