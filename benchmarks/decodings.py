"""How far two readings of one radiograph lie apart, whole and at the resolution that the network needs, and what comes of it.

`python -m benchmarks.decodings BUNDLE PICTURES [COUNT]` varies RG1 and RG3 of pydicom-data (part, angle, contrast, noise and
window) and COUNT pictures below PICTURES, enlarged to 1,024 pixels and more. Each is written in six encodings and read in both
ways. Printed are the largest changes of logits (calibrated), of distances and of the figures of the quality gate; how many
frames get another state if nothing is read again, and if what is near a threshold is; and how many are.
"""

import io
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pydicom
from numpy.typing import NDArray
from PIL import Image
from pydicom import uid
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate

from pipeline.errors import UnreadableError
from pipeline.evaluate.outliers import pooled
from pipeline.frames import FloatArray, Frame
from pipeline.imaging.preprocess import prepare
from pipeline.imaging.quality import position
from pipeline.imaging.quality.gate import BLANK_SIDE, CLIPPED_BLACK, CLIPPED_WHITE, CheckedFrame, central, may_differ, reduced
from pipeline.imaging.quality.position import chest_correlations
from pipeline.imaging.sources import read_frames_from_bytes
from pipeline.model.bundle import load_bundle
from pipeline.predictions import FramePrediction
from pipeline.score.predictor import Predictor
from pipeline.score.reading import Admission, Admitted

VARIATIONS = 16
SIDES = (1024, 1150, 1400, 2048)
ENCODINGS = ("uncompressed", "JPEG 2000 5/3", "JPEG 2000 9/7", "HTJ2K", "JPEG", "JPEG file")
FRAMES_AT_ONCE = 8

Values = NDArray[Any]
Case = tuple[str, int]
"""The name of an image of pydicom-data, or the path of a picture, and the seed of its variation."""


@dataclass(frozen=True, eq=False)
class Reading:
    """One reading: what the gate lets pass (None if it refuses it), the network's input and the gate's figures."""

    admitted: Admitted | None
    pixels: FloatArray
    figures: dict[str, float]
    may_differ: bool


Pair = tuple[str, Reading, Reading]
"""The encoding, the whole frame and the reduced one."""


def main(bundle: Path, pictures: Path, count: int = 120) -> int:
    """Print two tables and three counts."""
    predictor = Predictor(load_bundle(bundle), threads=1)
    paths = sorted(str(path) for path in pictures.rglob("*.jp*g"))
    cases = [(name, seed) for name in ("RG1_UNCR", "RG3_UNCR") for seed in range(VARIATIONS)]
    cases += [(path, seed) for seed, path in enumerate(paths[:: max(1, len(paths) // count)][:count])]
    with ProcessPoolExecutor() as pool:
        pairs = [pair for some in pool.map(partial(_pairs, admission=predictor.admission), cases) for pair in some]
    _print_changes(pairs, predictor)
    _print_states(pairs, predictor)
    return 0


def _print_changes(pairs: list[Pair], predictor: Predictor) -> None:
    (whole, far), (less, near) = (_answers([pair[at] for pair in pairs], predictor) for at in (1, 2))
    print("largest change           logit  distance")
    for encoding in ENCODINGS:
        rows = [row for row, pair in enumerate(pairs) if pair[0] == encoding]
        print(
            f"{encoding:22} {np.abs(whole - less)[rows].max():7.3f}  {np.abs(far - near)[rows].max():8.4f}   {len(rows)} frames"
        )
    for name in pairs[0][1].figures:
        change = max(abs(one.figures[name] - other.figures[name]) for _, one, other in pairs)
        print(f"{name:22} {change:7.4f}")


def _answers(readings: list[Reading], predictor: Predictor) -> tuple[Values, Values]:
    """Return calibrated logits and distances, whatever the gate says."""
    logits, distances = [], []
    for start in range(0, len(readings), FRAMES_AT_ONCE):
        found, _, features = predictor.engine.run(np.stack([one.pixels for one in readings[start : start + FRAMES_AT_ONCE]]))
        logits.append(found / np.array(predictor.manifest.calibration.temperatures))
        reference = predictor._reference
        distances += [
            reference.distance(pooled(one)) if reference else 0.0 for one in features[predictor.manifest.outliers.member]
        ]
    return np.concatenate(logits), np.asarray(distances)


def _print_states(pairs: list[Pair], predictor: Predictor) -> None:
    naive = wrong = by_gate = by_answer = 0
    for _, whole, less in pairs:
        exact = _outcome(whole, predictor)
        naive += _outcome(less, predictor) != exact
        again = less.admitted is not None and isinstance(predictor.predict_admitted([less.admitted], False)[0], Admitted)
        by_gate += less.may_differ
        by_answer += again and not less.may_differ
        wrong += not (less.may_differ or again) and _outcome(less, predictor) != exact
    print(f"{len(pairs)} frames: another state without reading again {naive}, with it {wrong}")
    print(f"read again: {by_gate} for the quality gate, {by_answer} for their answer")


def _outcome(reading: Reading, predictor: Predictor) -> object:
    """Return the states and flags of a frame, or that it is refused."""
    if reading.admitted is None:
        return "gate"
    facts = reading.admitted.facts
    taken_whole = replace(reading.admitted, facts=replace(facts, decoded_rows=facts.rows, decoded_columns=facts.columns))
    (result,) = predictor.predict_admitted([taken_whole], heatmaps=False)
    if not isinstance(result, FramePrediction):
        return "distance"
    return tuple(one.state for one in result.predictions), tuple(flag.check for flag in result.flags)


def _pairs(case: Case, admission: Admission) -> list[Pair]:
    """Vary an image, write it in every encoding, and read it in both ways."""
    stored, window = _varied(*case)
    exact = replace(admission, reading=replace(admission.reading, side=None))
    found = []
    for encoding in ENCODINGS:
        content = _written(encoding, stored, window)
        whole, less = (_read(content, one) for one in (exact, admission))
        found.append((encoding, whole, less))
    return found


def _read(content: bytes, admission: Admission) -> Reading:
    (frame,) = read_frames_from_bytes(content, "a", admission.reading)
    try:
        admitted = replace(admission, drawn=False).admit(frame)
    except UnreadableError:
        admitted = None
    pixels = prepare(frame.pixels, admission.preprocessing, frame.whole_box, frame.whole_shape)
    differs = frame.whole_shape is not None and may_differ(frame, admission.gate)
    return Reading(admitted, pixels, _figures(frame, admission), differs)


def _figures(frame: Frame, admission: Admission) -> dict[str, float]:
    """Return what the checks of the gate compare with their thresholds."""
    small = CheckedFrame(frame, admission.gate).small
    middle, correlations = central(small), chest_correlations(small)
    half = position.half_chest_correlation(small)
    return {
        "deviation": float(reduced(small, BLANK_SIDE).std()),
        "white": float(np.mean(middle >= CLIPPED_WHITE)),
        "black": float(np.mean(middle <= CLIPPED_BLACK)),
        "correlation": float(correlations.max()),
        "lead of a position": float(correlations.max() - correlations[0]),
        "half of a chest": half,
        "lead of a half": half - float(correlations.max()),
        "negative": float(-correlations.min()),
        "empty part": position.empty_part(small, position.ONE_GREY),
    }


def _varied(name: str, seed: int) -> tuple[Values, dict[str, int]]:
    """Return stored values of 12 bits, and a window for them."""
    rng = np.random.default_rng(seed)
    image = _radiograph(name, rng) if name.startswith("RG") else _picture(Path(name), rng)
    if rng.random() < 0.5:
        image = image.rotate(rng.uniform(-8, 8), Image.Resampling.BILINEAR)
    if rng.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    grey = np.clip(np.asarray(image), 0, 1) ** rng.uniform(0.7, 1.4)
    grey = grey + rng.normal(0, rng.uniform(0, 0.02), grey.shape)
    stored = np.clip(np.rint(grey * 4095), 0, 4095).astype(np.uint16)
    low, high = np.percentile(stored, (1, 99))
    low, high = low - rng.uniform(0, 0.3) * (high - low), high + rng.uniform(0, 0.3) * (high - low)
    return stored, {"WindowCenter": round((low + high) / 2), "WindowWidth": max(600, round(high - low))}


def _radiograph(name: str, rng: np.random.Generator) -> Image.Image:
    """Return a part of an image of pydicom-data; both are MONOCHROME1."""
    with resources.as_file(resources.files("data_store") / "data" / f"{name}.dcm") as path:
        dataset = pydicom.dcmread(path)
    grey = np.float32(1) - dataset.pixel_array.astype(np.float32) / (2**dataset.BitsStored - 1)
    tall, wide = (int(side * rng.uniform(0.8, 1)) for side in grey.shape)
    top, left = rng.integers(0, grey.shape[0] - tall + 1), rng.integers(0, grey.shape[1] - wide + 1)
    return Image.fromarray(np.ascontiguousarray(grey[top : top + tall, left : left + wide]))


def _picture(path: Path, rng: np.random.Generator) -> Image.Image:
    with Image.open(path) as image:
        grey = Image.fromarray(np.asarray(image.convert("L"), np.float32) / 255)
    factor = int(rng.choice(SIDES)) / min(grey.size)
    return grey.resize((round(grey.width * factor), round(grey.height * factor)), Image.Resampling.BICUBIC)


def _written(encoding: str, stored: Values, window: dict[str, int]) -> bytes:
    """Return a file of a radiograph of the chest; HTJ2K is written with 16 bits, since its encoder knows no 12."""
    if encoding == "JPEG file":
        low = window["WindowCenter"] - window["WindowWidth"] / 2
        grey = np.clip((stored - low) / window["WindowWidth"] * 255, 0, 255).astype(np.uint8)
        return bytes(imagecodecs.jpeg8_encode(grey, level=92))
    bits = {"JPEG": 8, "HTJ2K": 16}.get(encoding, 12)
    values = (stored >> 4).astype(np.uint8) if bits == 8 else stored << np.uint16(bits - 12)
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = uid.DigitalXRayImageStorageForPresentation
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = uid.generate_uid(entropy_srcs=["benchmark"])
    dataset.StudyInstanceUID = dataset.SeriesInstanceUID = dataset.SOPInstanceUID
    dataset.Modality, dataset.BodyPartExamined, dataset.ViewPosition = "DX", "CHEST", "PA"
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation, dataset.PixelRepresentation = 1, "MONOCHROME2", 0
    dataset.Rows, dataset.Columns = values.shape
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 8 * values.itemsize, bits, bits - 1
    dataset.WindowCenter, dataset.WindowWidth = (value * 2**bits // 2**12 for value in window.values())
    dataset.file_meta.TransferSyntaxUID, codestream = _codestream(encoding, values, bits)
    dataset.PixelData = encapsulate([codestream]) if codestream else values.tobytes()
    dataset["PixelData"].VR = "OB" if codestream else "OW"
    dataset["PixelData"].is_undefined_length = bool(codestream)
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def _codestream(encoding: str, values: Values, bits: int) -> tuple[uid.UID, bytes]:
    if encoding == "uncompressed":
        return uid.ExplicitVRLittleEndian, b""
    if encoding == "JPEG":
        return uid.JPEGBaseline8Bit, imagecodecs.jpeg8_encode(values, level=92)
    if encoding == "HTJ2K":
        return uid.HTJ2KLossless, imagecodecs.htj2k_encode(values, reversible=True)
    reversible = encoding.endswith("5/3")
    made = imagecodecs.jpeg2k_encode(
        values,
        level=0 if reversible else 60,
        codecformat="j2k",
        bitspersample=bits,
        reversible=reversible,
        resolutions=6,
    )
    return uid.JPEG2000Lossless if reversible else uid.JPEG2000, made


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2]), *(int(one) for one in sys.argv[3:4])))
