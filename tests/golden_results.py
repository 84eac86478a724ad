"""What octray makes of a few built files, so that no change of results goes unnoticed: see `pipeline.version`.

    python -m tests.golden_results

writes the golden results again, once `RESULTS_VERSION` is raised. What is exact on every machine is kept as a hash. What
machines and libraries round differently (sigmoids, lossy encodings, resized pixels, the network and all that is drawn of it) is
kept as a sample of values, which are compared with a tolerance.
"""

import csv
import hashlib
import io
import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import imagecodecs
import numpy as np
import pyarrow.parquet as pq
import pydicom
from PIL import Image
from pydicom import uid

from pipeline.cli.main import main
from pipeline.imaging.preprocess import prepare, reading_for
from pipeline.imaging.sources import read_frames_from_bytes
from pipeline.settings import Fit, Limits, Preprocessing
from pipeline.version import RESULTS_VERSION
from tests.builders import make_bundle, make_dicom, make_encapsulated, make_known_pixels, make_pixels, make_wary_bundle
from tests.identified import make_identified, write_key
from tests.test_imaging_encodings import LOSSLESS, RAMP, VOLUME

GOLDEN = Path(__file__).with_name("golden_results.json")
COMMAND = "python -m tests.golden_results"
TOLERANCE = 1e-3
Results = dict[str, str | list[float]]
"""A hash or a sample of values by name."""
_SIGNED = (RAMP.astype(np.int16) - 2000).astype(np.int16)
_TAGS_WITH_VERSIONS = ("SoftwareVersions", "ImplementationVersionName", "ImplementationClassUID")


def results() -> Results:
    """Make everything that is compared."""
    found: Results = {}
    for name, content in _pictures().items():
        for number, frame in enumerate(read_frames_from_bytes(content, "a"), 1):
            is_rounded = name.startswith(("lossy", "sigmoid"))
            found[f"pixels of {name}, frame {number}"] = _sample(frame.pixels) if is_rounded else _hash(frame.pixels)
    for fit in Fit:
        settings = Preprocessing(24, fit)
        for name in ("8 bits", "16 bits", uid.JPEG2000Lossless, "png"):
            (frame, *_) = read_frames_from_bytes(_pictures()[name], "a", reading_for(settings, Limits()))
            tensor = prepare(frame.pixels, settings, frame.whole_box, frame.whole_shape)
            found[f"tensor of {name}, {fit}"] = _sample(tensor)
    with tempfile.TemporaryDirectory() as scratch:
        found.update(_results_of_commands(Path(scratch)))
    return found


def differences(golden: Results, now: Results) -> list[str]:
    """Return the names of what is not the same."""
    return [name for name in sorted(golden.keys() | now.keys()) if not _is_same(golden.get(name), now.get(name))]


def _is_same(one: str | Sequence[float] | None, other: str | Sequence[float] | None) -> bool:
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and bool(np.allclose(one, other, rtol=0, atol=TOLERANCE))
    return one == other


def _pictures() -> dict[str, bytes]:
    grey = (RAMP // 16).astype(np.uint8)
    made = {
        "8 bits": make_dicom(grey),
        "16 bits": make_dicom(RAMP),
        "signed": make_dicom(_SIGNED, BitsStored=13, HighBit=12),
        "frames": make_dicom(VOLUME),
        "inverted": make_dicom(RAMP, PhotometricInterpretation="MONOCHROME1"),
        "window": make_dicom(RAMP, WindowCenter=1500, WindowWidth=900),
        "exact window": make_dicom(RAMP, WindowCenter=1500, WindowWidth=900, VOILUTFunction="LINEAR_EXACT"),
        "sigmoid": make_dicom(RAMP, WindowCenter=1500, WindowWidth=900, VOILUTFunction="SIGMOID"),
        "rescaled": make_dicom(RAMP, RescaleSlope=2, RescaleIntercept=-1000, WindowCenter=1500, WindowWidth=3000),
        "padded": make_dicom(RAMP, PixelPaddingValue=0, WindowCenter=1500, WindowWidth=3000),
        "grey in colours": make_dicom(np.stack([grey] * 3, -1)),
        "png": _picture(RAMP, "PNG"),
        "tiff": _picture(RAMP, "TIFF"),
        "lossy jpeg": _picture(grey, "JPEG"),
        "lossy transfer syntax": make_encapsulated(grey, uid.JPEGBaseline8Bit, [[imagecodecs.jpeg8_encode(grey, level=80)]]),
    }
    return made | {syntax: make_encapsulated(RAMP, syntax, [[encode(RAMP)]]) for syntax, encode in LOSSLESS.items()}


def _picture(pixels: np.ndarray, kind: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def _results_of_commands(scratch: Path) -> Iterator[tuple[str, str | list[float]]]:
    """Yield what `octray ingest`, `score` and `deidentify` make of a small folder."""
    studies, identified = scratch / "studies", scratch / "identified"
    studies.mkdir()
    identified.mkdir()
    for number in range(3):
        uids = dict.fromkeys(("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"), f"1.2.3.{number}")
        pixels = (make_pixels(60, 50 + number, number) * 4000).astype(np.uint16)
        (studies / f"{number}.dcm").write_bytes(make_dicom(pixels, ViewPosition="PA", PatientAge="034Y", **uids))
    (studies / "broken.dcm").write_bytes((studies / "0.dcm").read_bytes()[:2000])
    (identified / "a.dcm").write_bytes(make_identified())
    rows = [f"{number}.dcm,{'AB'[number % 2]},p{number},train" for number in range(3)]
    (scratch / "labels.csv").write_text("\n".join(["file,label,patient_key,split", *rows, "broken.dcm,A,p9,train", ""]))
    _octray("ingest", studies, "--labels", scratch / "labels.csv", "--out", scratch / "index")
    for row in pq.read_table(scratch / "index" / "frames.parquet").to_pylist():
        del row["file_sha256"]  # the bytes of a built file are those of pydicom
        yield f"index row of {row['source']}", hashlib.sha256(json.dumps(row, sort_keys=True).encode()).hexdigest()
    _octray("score", studies, "--bundle", make_bundle(scratch / "bundle").path, "--out", scratch / "out")
    for seed in (101, 103):
        (studies / f"known{seed}.dcm").write_bytes(make_dicom((make_known_pixels(seed) * 4000).astype(np.uint16)))
    _octray("score", studies, "--bundle", make_wary_bundle(scratch / "wary").path, "--out", scratch / "wary-out")
    for folder in ("out", "wary-out"):
        for row in _rows(scratch / folder / "predictions.csv"):
            place = f"{row['source']}, {row['label']}"
            yield f"state of {place}", f"{row['state']} {row['positive']} {row['conformal_set']}"
            yield f"probability of {place}", [float(row["probability"]), float(row["logit"])]
            if folder == "wary-out" and row["distance"]:
                yield f"distance of {place}", [float(row["distance"])]
        for row in _rows(scratch / folder / "failures.csv"):
            yield f"refusal of {row['source']} in {folder}", f"{row['frame_number']} {row['state']} {row['reason']}"
    for path in sorted((scratch / "out" / "heatmaps").iterdir()):
        with Image.open(path) as picture:
            yield f"heatmap picture {path.name[:-21]}", _sample(np.asarray(picture) * (TOLERANCE / 5))  # up to five levels
    write_key(scratch / "key")
    _octray("deidentify", identified, "--out", scratch / "deidentified", "--key", scratch / "key")
    (made,) = (scratch / "deidentified").rglob("*.dcm")
    dataset = pydicom.dcmread(made)
    for level in (dataset, dataset.file_meta):
        for keyword in _TAGS_WITH_VERSIONS:
            if keyword in level:
                delattr(level, keyword)
    content = json.dumps([dataset.file_meta.to_json_dict(), dataset.to_json_dict()], sort_keys=True)
    yield "de-identified file", hashlib.sha256(f"{made.name}{content}".encode()).hexdigest()


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as table:
        return list(csv.DictReader(table))


def _octray(*words: object) -> None:
    said = io.StringIO()
    with redirect_stdout(said), redirect_stderr(said):
        code = main([*map(str, words)])
    if code not in (0, 1):
        raise RuntimeError(f"octray {words[0]} ended with {code}: {said.getvalue()}")


def _hash(pixels: np.ndarray) -> str:
    return hashlib.sha256(f"{pixels.dtype} {pixels.shape}".encode() + np.ascontiguousarray(pixels).tobytes()).hexdigest()


def _sample(array: np.ndarray) -> list[float]:
    """Return the shape, mean, deviation and some values of an array."""
    flat = array.astype(np.float64).ravel()
    chosen = flat[np.linspace(0, flat.size - 1, 24).astype(int)]
    return [*map(float, array.shape), *np.round([flat.mean(), flat.std(), *chosen], 5).tolist()]


def golden() -> tuple[int, Results]:
    """Return the number for which the golden results were written, and these."""
    content = json.loads(GOLDEN.read_text())
    return content["results_version"], content["results"]


def rewrite() -> str:
    """Write the golden results again, unless that would hide a change; return what is to be said."""
    now = results()
    version, before = golden() if GOLDEN.is_file() else (0, {})
    changed = [name for name in differences(before, now) if name in before]
    if changed and version == RESULTS_VERSION:
        return f"Nothing was written: {', '.join(changed)} changed. Raise RESULTS_VERSION in pipeline/version.py first."
    lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(now[name])}" for name in sorted(now))
    GOLDEN.write_text(f'{{"results_version": {RESULTS_VERSION}, "results": {{\n{lines}\n}}}}\n')
    return f"Wrote {len(now)} results of version {RESULTS_VERSION}."


if __name__ == "__main__":
    sys.stdout.write(rewrite() + "\n")
