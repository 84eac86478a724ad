"""Records what octray makes of files, and compares the records of two versions of the code: `python -m benchmarks.equality`.

    python -m benchmarks.equality record RECORD --studies FOLDER --labels CSV [--bundle BUNDLE] [--train CONFIG [SETTING ...]]
    python -m benchmarks.equality compare BEFORE AFTER

A record is one JSON file: pixels, tensors, index rows, weights of a seeded training, probabilities, states, heatmap pictures,
DICOM objects, what the report shows, and de-identified files, as values or as hashes. Record with the code of one commit, then
with that of another on the same machine, and compare: nothing may differ that is not said to.
"""

import argparse
import csv
import hashlib
import html
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pydicom
from safetensors.numpy import load_file

from pipeline.errors import UnreadableError
from pipeline.imaging.preprocess import prepare, reading_for
from pipeline.imaging.sources import discover, read_frames
from pipeline.settings import Fit, Limits, Preprocessing

KEY = bytes(range(32))
"""Secret of the de-identification, so that two records have the same pseudonyms."""
_TIMES = {"ContentDate", "ContentTime", "InstanceCreationDate", "InstanceCreationTime", "SeriesDate", "SeriesTime"}
_VERSIONS = {"DeviceSerialNumber", "SoftwareVersions", "ImplementationVersionName"}


def main() -> None:
    """Record or compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    recording = commands.add_parser("record")
    recording.add_argument("record", type=Path)
    recording.add_argument("--studies", type=Path, nargs="+", required=True, help="folders; each is read and scored")
    recording.add_argument("--labels", type=Path, help="table of the first folder: it is ingested")
    recording.add_argument("--label-from", help="instead of a table")
    recording.add_argument("--bundle", type=Path, help="scores; the bundle that --train writes if none is given")
    recording.add_argument("--train", nargs="+", help="configuration and settings of a training on the index")
    recording.add_argument("--deidentify", type=Path, nargs="*", default=[], help="folders of DICOM files")
    comparing = commands.add_parser("compare")
    comparing.add_argument("before", type=Path)
    comparing.add_argument("after", type=Path)
    comparing.add_argument("--but", action="append", default=[], help="parts of the record that may differ")
    arguments = parser.parse_args()
    if arguments.command == "compare":
        sys.exit(_compare(arguments.before, arguments.after, arguments.but))
    with tempfile.TemporaryDirectory() as scratch:
        record = _record(arguments, Path(scratch))
    arguments.record.write_text(json.dumps(record, indent=1, sort_keys=True))


def _record(arguments: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    record: dict[str, Any] = {}
    index, bundle = scratch / "index", arguments.bundle
    for folder in arguments.studies:
        record[f"pixels and tensors of {folder.name}"] = dict(_pixels(folder))
    if arguments.labels or arguments.label_from:
        labels = ["--labels", arguments.labels] if arguments.labels else ["--label-from", arguments.label_from]
        _octray("ingest", arguments.studies[0], *labels, "--out", index)
        record["index"] = pq.read_table(index / "frames.parquet").to_pylist()
        record["quarantine"] = _reasons(index / "quarantine.csv")
    if arguments.train:
        name, *settings = arguments.train
        _octray("train", name, "--index", index, "--out", scratch / "bundle", *settings)
        record["weights"] = {name: _hash(value) for name, value in load_file(scratch / "bundle/weights.safetensors").items()}
        record["metrics"] = json.loads((scratch / "bundle/metrics.json").read_text())
        manifest = json.loads((scratch / "bundle/manifest.json").read_text())
        record["decisions"] = {
            name: manifest[name] for name in ("calibration", "operating_points", "conformal", "outliers", "heatmap")
        }
        bundle = bundle or scratch / "bundle"
    if bundle:
        for folder in arguments.studies:
            _octray(
                "score",
                folder,
                "--bundle",
                bundle,
                "--out",
                scratch / f"scored-{folder.name}",
                "--dicom",
                "sr,pm,sc",
                codes=(0, 1, 2),  # 2: nothing in the folder could be scored; there are tables all the same
            )
            record[f"results of {folder.name}"] = _results(
                scratch / f"scored-{folder.name}", json.loads((bundle / "manifest.json").read_text())
            )
    key = scratch / "secret.key"
    key.write_text(f"{KEY.hex()}\n")
    key.chmod(0o600)
    for number, folder in enumerate(arguments.deidentify):
        out = scratch / f"deidentified-{number}"
        _octray("deidentify", folder, "--out", out, "--key", key, codes=(0, 1))
        names = sorted(path for path in out.rglob("*") if path.is_file() and path.suffix not in {".json", ".csv"})
        record[f"deidentified {folder.name}"] = {
            path.relative_to(out).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in names
        }
    return record


def _octray(*arguments: object, codes: tuple[int, ...] = (0,)) -> None:
    command = [sys.executable, "-m", "pipeline.cli.main", *map(str, arguments)]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    if run.returncode not in codes:
        raise SystemExit(f"octray {' '.join(map(str, arguments))} ended with {run.returncode}:\n{run.stdout}{run.stderr}")


def _hash(values: np.ndarray) -> str:
    return hashlib.sha256(f"{values.dtype} {values.shape}".encode() + np.ascontiguousarray(values).tobytes()).hexdigest()


def _pixels(folder: Path) -> Iterator[tuple[str, Any]]:
    """Yield hashes of the pixels of each frame and of the network's input in two ways, or why it cannot be read."""
    for file in discover(folder):
        name = file.source
        for exact in (True, False):
            settings = Preprocessing(224, Fit.PAD if exact else Fit.CROP, exact_decoding=exact)
            try:
                for frame in read_frames(file, reading_for(settings, Limits())):
                    tensor = prepare(frame.pixels, settings, frame.whole_box, frame.whole_shape)
                    place = f"{name} / {frame.key.frame_number} / {settings.fit}"
                    yield place, [_hash(frame.pixels), _hash(tensor), frame.laterality, frame.view_position, frame.decoder]
            except UnreadableError as error:
                yield f"{name} / {settings.fit}", str(error.reason)


def _reasons(path: Path) -> list[list[str]]:
    """Return which files and frames were left out and why; the sentence for people may be worded better."""
    with path.open(newline="", encoding="utf-8") as lines:
        return [[row["source"], row["frame_number"], row["reason"]] for row in csv.DictReader(lines)]


def _results(folder: Path, manifest: dict[str, Any]) -> dict[str, Any]:
    bundle_id = manifest["bundle_id"]
    with (folder / "predictions.csv").open(newline="", encoding="utf-8") as lines:
        rows = [{**row, "bundle_id": "", "flags": len(row["flags"])} for row in csv.DictReader(lines)]
    report = (folder / "report.html").read_text(encoding="utf-8")
    text = html.unescape(re.sub(r"<(style|script).*?</\1>|<[^>]*>", " ", report, flags=re.DOTALL))
    return {
        "predictions": rows,
        "failures": _reasons(folder / "failures.csv"),
        "pictures": {
            _name(path, folder / "heatmaps"): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted((folder / "heatmaps").rglob("*"))
            if path.is_file()
        },
        "objects": {
            _name(path, folder / "dicom"): _object(path, bundle_id) for path in sorted((folder / "dicom").rglob("*.dcm"))
        },
        "numbers of the report": sorted(re.findall(r"[<>]?\d+(?:\.\d+)? ?%|1\.2\.[\d.]{20,}", text)),
        "pictures of the report": sorted(
            re.sub(r"_[0-9a-f]{16}", "", one) for one in re.findall(r'src="(?!data:)([^"]+)"', report)
        ),
    }


def _name(path: Path, folder: Path) -> str:
    return re.sub(r"_[0-9a-f]{16}(?=\.)", "", path.relative_to(folder).as_posix())


def _object(path: Path, bundle_id: str) -> str:
    """Return the hash of a DICOM object without the times, versions and UIDs that octray made for it."""
    dataset = pydicom.dcmread(path)
    uids: dict[str, str] = {}

    def mapped(values: Any) -> Any:
        if isinstance(values, dict):
            return {name: mapped(value) for name, value in values.items()}
        if isinstance(values, list):
            return [mapped(value) for value in values]
        if isinstance(values, str) and values.startswith("2.25."):
            return uids.setdefault(values, f"uid {len(uids)}")
        return values.replace(bundle_id, "BUNDLE") if isinstance(values, str) else values

    def strip(level: pydicom.Dataset) -> None:
        for element in list(level):
            if element.keyword in _TIMES | _VERSIONS:
                del level[element.tag]
            elif element.VR == "SQ":
                for item in element.value:
                    strip(item)

    strip(dataset)
    return hashlib.sha256(json.dumps(mapped(dataset.to_json_dict())).encode()).hexdigest()


def _compare(before: Path, after: Path, but: list[str]) -> int:
    """Print what differs, part by part, and return 1 if anything does."""
    old, new = json.loads(before.read_text()), json.loads(after.read_text())
    status = 0
    for part in sorted(old.keys() | new.keys()):
        if part in but:
            continue
        differences = list(_differences(old.get(part), new.get(part), part))
        print(f"{part}: {'equal' if not differences else f'{len(differences)} differences'} ({_leaves(old.get(part))} values)")
        for line in differences[:10]:
            print(f"  {line}"[:300])
        status |= bool(differences)
    return status


def _differences(old: Any, new: Any, where: str) -> Iterator[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        for name in sorted(old.keys() | new.keys()):
            if name not in old or name not in new:
                yield f"{where} / {name}: only {'before' if name in old else 'after'}"
            else:
                yield from _differences(old[name], new[name], f"{where} / {name}")
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for number, (one, other) in enumerate(zip(old, new, strict=True)):
            yield from _differences(one, other, f"{where} / {number}")
    elif old != new:
        yield f"{where}: {old!r} became {new!r}"


def _leaves(values: Any) -> int:
    if isinstance(values, dict | list):
        return sum(map(_leaves, values.values() if isinstance(values, dict) else values))
    return 1


if __name__ == "__main__":
    main()
