"""Small data for tests: every builder makes something valid, and takes what a test wants to be different."""

import io
import json
import struct
import zipfile
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, closing
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from pydicom.config import IGNORE
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ComputedRadiographyImageStorage, ExplicitVRLittleEndian, MediaStorageDirectoryStorage, generate_uid

from pipeline.evaluate.drift import Home
from pipeline.evaluate.metrics import Sample
from pipeline.evaluate.outliers import Reference, fit_reference, pooled
from pipeline.frames import Frame, FrameFacts, InstanceKey, Quarantined
from pipeline.imaging.preprocess import prepare
from pipeline.imaging.sources import discover
from pipeline.levels import Attention, Level, LevelRule, Pooling
from pipeline.model.bundle import ATTENTION, CONFIG, GRAPH, HOME, METRICS, MODEL_CARD, REFERENCE, WEIGHTS, Bundle, write_bundle
from pipeline.model.engine import Engine
from pipeline.predictions import Calibration, FramePrediction, OperatingPoint, Prediction, State, StudyRecord, Task
from pipeline.score.predictor import Predictor
from pipeline.score.study import score_study
from pipeline.settings import LENIENT, Check, Gate, IntendedUse, Limits, Policy, Preprocessing


def make_pixels(rows: int = 48, columns: int = 40, seed: int = 0) -> NDArray[np.float32]:
    """A smooth random picture in [0, 1]."""
    rng = np.random.default_rng(seed)
    coarse = rng.random((4, 4), dtype=np.float32)
    return np.kron(coarse, np.ones((rows // 4 + 1, columns // 4 + 1), np.float32))[:rows, :columns].copy()


def make_key(frame_number: int = 1, number: int = 1) -> InstanceKey:
    return InstanceKey(f"1.2.3.{number}", f"1.2.3.{number}.1", f"1.2.3.{number}.1.1", frame_number)


def make_frame(**overrides: Any) -> Frame:
    values: dict[str, Any] = {
        "pixels": make_pixels(),
        "key": make_key(),
        "source": "study/image.dcm",
        "pixel_sha256": "0" * 64,
        "modality": "CR",
    }
    return Frame(**(values | overrides))


def make_dataset(pixels: NDArray[Any] | None = None, **overrides: Any) -> Dataset:
    """A computed radiograph; `pixels` of shape (rows, columns), (frames, rows, columns) or (rows, columns, 3)."""
    array = np.arange(48 * 40, dtype=np.uint16).reshape(48, 40) if pixels is None else pixels
    colour = array.ndim == 3 and array.shape[-1] == 3
    rows, columns = array.shape[-3:-1] if colour else array.shape[-2:]
    bits = array.dtype.itemsize * 8
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = ComputedRadiographyImageStorage
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = generate_uid()
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = generate_uid(), generate_uid()
    dataset.PatientID, dataset.PatientName, dataset.Modality = "P1", "Doe^Jane", "CR"
    dataset.Rows, dataset.Columns = rows, columns
    dataset.SamplesPerPixel = 3 if colour else 1
    if colour:
        dataset.PlanarConfiguration = 0
    dataset.PhotometricInterpretation = "RGB" if colour else "MONOCHROME2"
    dataset.BitsAllocated = dataset.BitsStored = bits
    dataset.HighBit = bits - 1
    dataset.PixelRepresentation = int(array.dtype.kind == "i")
    if array.ndim == 3 and not colour:
        dataset.NumberOfFrames = array.shape[0]
    dataset.PixelData = array.astype(array.dtype.newbyteorder("<")).tobytes()
    dataset["PixelData"].VR = "OW" if bits > 8 else "OB"
    for keyword, value in overrides.items():
        if value is None:
            delattr(dataset, keyword)
        else:
            setattr(dataset, keyword, value)
    return dataset


def make_dicom(pixels: NDArray[Any] | None = None, **overrides: Any) -> bytes:
    """The bytes of a DICOM file; an override of None removes that element."""
    buffer = io.BytesIO()
    make_dataset(pixels, **overrides).save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def make_graph(labels: int = 2, size: int = 32, channels: int = 4, seed: int = 0) -> bytes:
    """A tiny network as every bundle carries it: pixels (batch, 1, size, size) -> logits, features."""
    rng = np.random.default_rng(seed)
    tensors = {
        "kernel": rng.normal(size=(channels, 1, 8, 8)).astype(np.float32),
        "weight": rng.normal(size=(labels, channels)).astype(np.float32),
        "bias": np.zeros(labels, np.float32),
    }
    nodes = [
        helper.make_node("Conv", ["pixels", "kernel"], ["convolved"], strides=[8, 8]),
        helper.make_node("Relu", ["convolved"], ["features"]),
        helper.make_node("GlobalAveragePool", ["features"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("Gemm", ["flat", "weight", "bias"], ["logits"], transB=1),
    ]
    cells = size // 8
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("pixels", TensorProto.FLOAT, ["batch", 1, size, size])],
        [
            helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", labels]),
            helper.make_tensor_value_info("features", TensorProto.FLOAT, ["batch", channels, cells, cells]),
        ],
        [numpy_helper.from_array(value, name) for name, value in tensors.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model)
    return model.SerializeToString()


def make_support(failed: str = "", **overrides: Any) -> dict[str, Any]:
    """What a bundle's manifest says of its heatmaps; `failed` is the name of a check that they did not pass."""
    checks = [{"name": failed, "frames": 8, "value": 0.9, "reference": 0.5, "passed": False}] if failed else []
    fields = {"exact": True, "computed": "closed_form", "full_scale": 2.0, "true_positives": 12, "checks": checks}
    return fields | overrides


def make_member(architecture: str = "tiny", **maps: Any) -> dict[str, Any]:
    """What a manifest says of one network; `maps` are fields of `MapSupport`."""
    fields = {"layer": "features", "classifier": "classifier.weight", "exact": True, "max_difference": 0.0}
    files = {"graph": GRAPH, "weights": WEIGHTS, "normalisation": {"mean": (0.0,), "std": (1.0,)}}
    return {
        "architecture": architecture,
        "size": 32,
        "started_from": {"name": "none"},
        "maps": fields | {"computed": "closed_form"} | maps,
    } | files


def make_bundle(
    path: Path,
    labels: tuple[str, ...] = ("NORMAL", "PNEUMONIA"),
    size: int = 32,
    metrics: Mapping[str, Any] | None = None,
    temperature: float = 1.5,
    **overrides: Any,
) -> Bundle:
    """A whole bundle around `make_graph`, which is uncertain of nothing and refuses nothing: every distance is 0.5, or 0.

    The classifier's weights are `weight` and `bias` in the safetensors file.
    """
    from safetensors.numpy import save

    graph, channels = make_graph(len(labels), size), 4
    initial = {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load_from_string(graph).graph.initializer}
    contents = {
        GRAPH: graph,
        WEIGHTS: save({"classifier.weight": initial["weight"].copy(), "classifier.bias": initial["bias"].copy()}),
        METRICS: json.dumps(metrics or {}).encode(),
        MODEL_CARD: b"# Tiny model\n",
        CONFIG: b"name: tiny\n",
        REFERENCE: Reference(np.zeros(channels), np.eye(channels), 2.0).to_bytes(),
        HOME: Home(
            "0" * 64, np.array([], np.uint64), np.zeros((len(labels), 1), np.float32), np.full(1, 0.5, np.float32)
        ).to_bytes(),
    }
    fields: dict[str, Any] = {
        "members": (make_member(),),
        "labels": labels,
        "normal_label": "NORMAL" if "NORMAL" in labels else None,
        "task": "multiclass",
        "preprocessing": Preprocessing(size=size, exact_decoding=True),
        "calibration": Calibration.of(temperature, len(labels)),
        "operating_points": tuple(OperatingPoint(label, 0.5, "youden", 0.9, 0.8) for label in labels),
        "heatmap": make_support(),
        "intended_use": {"modalities": ("CR", "DX"), "view_positions": ()},
        "quality": make_quality(),
        "limits": Limits(),
        "conformal": {"alpha": 0.1, "bands": ()},
        "outliers": {"threshold": 2.0, "calibration_frames": 30},
        "provenance": {
            "created": "2026-01-01T00:00:00+00:00",
            "git_commit": "",
            "mlflow_run_id": "",
            "dataset_name": "tiny",
            "dataset_sha256": "0" * 64,
            "config_name": "tiny",
            "seed": 0,
            "versions": {},
        },
    }
    return write_bundle(path, contents, **(fields | overrides))


def make_known_pixels(seed: int) -> NDArray[np.float32]:
    """Always the same picture, but for a little noise."""
    noise = np.random.default_rng(seed).normal(0, 0.02, (48, 40))
    return np.clip(make_pixels() + noise, 0, 1).astype(np.float32)


def make_wary_bundle(path: Path, **overrides: Any) -> Bundle:
    """The bundle of `make_bundle` that has only ever seen `make_known_pixels`, and refuses what is unlike them."""
    plain = make_bundle(path, **overrides)
    grid = np.stack([prepare(make_known_pixels(seed), plain.manifest.preprocessing) for seed in range(60)])
    seen = [pooled(one) for one in Engine(plain.read(GRAPH)).run(grid)[1]]
    reference = fit_reference(seen[:30], seen[30:], list(map(str, range(30))))
    contents = {name: plain.read(name) for name in plain.manifest.files} | {REFERENCE: reference.to_bytes()}
    outliers = {"threshold": reference.threshold, "calibration_frames": 30}
    fields = {name: value for name, value in plain.manifest if name not in ("schema_version", "bundle_id", "files")}
    return write_bundle(path, contents, **(fields | {"outliers": outliers}))


def make_prediction(label: str = "PNEUMONIA", probability: float = 0.9, positive: bool = True, **overrides: Any) -> Prediction:
    state = State.POSITIVE if positive else State.NEGATIVE
    values: dict[str, Any] = {"logit": 1.5, "state": state, "operating_point": 0.5}
    return Prediction(label=label, probability=probability, **(values | overrides))


def make_result(
    *predictions: Prediction, source: str = "a/b.dcm", key: InstanceKey | None = None, **facts: Any
) -> FramePrediction:
    """What a bundle said of one frame."""
    return FramePrediction(FrameFacts(key or make_key(), source, **facts), "b", predictions, (), 0.5)


def make_sample(
    n: int = 120, labels: tuple[str, ...] = ("A", "B", "C"), seed: int = 0, temperature: float = 1.2, **overrides: Any
) -> Sample:
    """Frames of n / 2 patients with logits that know something of the truth; one label each unless told otherwise."""
    rng = np.random.default_rng(seed)
    targets = np.eye(len(labels))[np.arange(n) % len(labels)]
    values: dict[str, Any] = {
        "logits": (rng.normal(size=targets.shape) + 2 * targets).astype(np.float32),
        "targets": targets,
        "groups": tuple(f"patient{number // 2}" for number in range(n)),
        "labels": labels,
        "task": Task.MULTICLASS,
        "calibration": Calibration.of(temperature, len(labels)),
        "operating_points": tuple(OperatingPoint(label, 0.4, "youden", 0.9, 0.8) for label in labels),
    }
    return Sample(**(values | overrides))


def make_zip(members: Mapping[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    """The bytes of a zip archive; a name is written as it is, whatever it says."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, content in members.items():
            info = zipfile.ZipInfo("x")
            info.filename, info.compress_type = name, compression
            archive.writestr(info, content)
    return buffer.getvalue()


def make_dicomdir(*file_ids: Sequence[str] | None) -> bytes:
    """The bytes of a DICOMDIR with one IMAGE record for each File ID; None makes a record that names no file."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = MediaStorageDirectoryStorage
    dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    dataset.FileSetID = "TEST"
    records = []
    for file_id in file_ids:
        record = Dataset()
        record.RecordInUseFlag, record.DirectoryRecordType = 0xFFFF, "IMAGE"
        if file_id is not None:
            record.add(DataElement(0x00041500, "CS", list(file_id), validation_mode=IGNORE))
        records.append(record)
    dataset.DirectoryRecordSequence = records
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def make_encapsulated(
    pixels: NDArray[Any], syntax: str, frames: list[list[bytes]], table: str = "none", **overrides: Any
) -> bytes:
    """A DICOM file of encoded frames, each a list of fragments; `table` is "none", "basic" or "extended"."""
    even = [[fragment + b"\0" * (len(fragment) % 2) for fragment in frame] for frame in frames]
    items = [item for frame in even for item in frame]
    lengths = [sum(len(fragment) + 8 for fragment in frame) for frame in even]
    offsets = [sum(lengths[:number]) for number in range(len(frames))]
    basic = struct.pack(f"<{len(offsets)}L", *offsets) if table == "basic" else b""
    data = b"".join(b"\xfe\xff\x00\xe0" + struct.pack("<L", len(item)) + item for item in (basic, *items))
    if table == "extended":
        overrides["ExtendedOffsetTable"] = struct.pack(f"<{len(offsets)}Q", *offsets)
        overrides["ExtendedOffsetTableLengths"] = struct.pack(f"<{len(offsets)}Q", *(length - 8 for length in lengths))
    dataset = make_dataset(pixels, **({"PixelData": data} | overrides))
    dataset["PixelData"].VR, dataset["PixelData"].is_undefined_length = "OB", True
    dataset.file_meta.TransferSyntaxUID = syntax
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def make_quality(policies: Mapping[Check, Policy] | None = None, smallest_side: int = 16) -> dict[str, Any]:
    """What a bundle's manifest says of the quality gate: it refuses what the bundle was not made for, unless told otherwise."""
    refused = {Check.WRONG_MODALITY: Policy.REJECT, Check.NOT_FRONTAL: Policy.REJECT}
    values = asdict(make_gate(refused | dict(policies or {}), smallest_side).quality)
    return {name: str(value) if isinstance(value, Policy) else value for name, value in values.items()}


def make_gate(policies: Mapping[Check, Policy] | None = None, smallest_side: int = 64, **intended_use: Any) -> Gate:
    """A quality gate that marks what it finds, and rejects wrong modalities alone, unless told otherwise."""
    told = {check.value: policy for check, policy in (policies or {}).items()}
    return Gate(replace(LENIENT.quality, **told, smallest_side=smallest_side), IntendedUse(**intended_use))


def fill(table: AbstractContextManager[Callable[[Any], None]], items: Iterable[Any]) -> None:
    """Add items to a table of results, one after the other."""
    with table as add:
        for item in items:
            add(item)


def score_folder(root: Path, predictor: Predictor, cores: int = 1) -> Generator[FramePrediction | Quarantined, None, None]:
    """All that comes of the files of a folder, taken as one study."""
    with closing(score_study(discover(root), predictor, heatmaps={"values"}, cores=cores)) as items:
        for item in items:
            if not isinstance(item, StudyRecord):
                yield item


def make_level(
    level: Level = Level.STUDY,
    pooling: Pooling = Pooling.MAX,
    labels: tuple[str, ...] = ("NORMAL", "PNEUMONIA"),
    **overrides: Any,
) -> LevelRule:
    """A level of a bundle whose probabilities are those that were pooled, and which is uncertain of nothing."""
    points = tuple(OperatingPoint(label, 0.5, "youden", 0.95, 0.85) for label in labels)
    count = len(labels)
    fields: dict[str, Any] = {"scales": (1.0,) * count, "offsets": (0.0,) * count, "operating_points": points}
    return LevelRule(level, pooling, **(fields | overrides))


def make_attention(labels: int = 2, channels: int = 4, hidden: int = 3, seed: int = 0) -> Attention:
    """The attention of a level, with weights drawn at random."""
    rng = np.random.default_rng(seed)
    shapes = ((hidden, channels), (hidden,), (hidden, channels), (hidden,), (labels, hidden))
    return Attention(*(rng.normal(size=shape).astype(np.float32) for shape in shapes))


def with_levels(bundle: Bundle, *levels: LevelRule, attention: Attention | None = None) -> Bundle:
    """The same bundle with results of studies, eyes or patients; the levels that pool by attention share one."""
    from safetensors.numpy import save

    contents = {name: bundle.read(name) for name in bundle.manifest.files}
    if attention is not None:
        contents[ATTENTION] = save({name: value for rule in levels for name, value in attention.tensors(rule.level).items()})
    fields = {name: value for name, value in bundle.manifest if name not in ("schema_version", "bundle_id", "files")}
    return write_bundle(bundle.path, contents, **(fields | {"levels": levels}))
