"""A trace is enough to compute the same bits again."""

import hashlib
import io
import json
from importlib import metadata
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image
from pydicom import uid

from pipeline.cli.main import main
from pipeline.imaging.preprocess import reading_for
from pipeline.imaging.sources import locate, read_frames_from_bytes
from pipeline.model.bundle import load_bundle
from pipeline.predictions import FramePrediction, StudyRecord
from pipeline.results.trace import Tracer
from pipeline.score.predictor import Predictor
from pipeline.score.reading import Admitted, read_admitted
from pipeline.settings import Limits, Preprocessing
from pipeline.version import RESULTS_VERSION, software_versions
from tests.builders import make_bundle, make_dicom, make_encapsulated, make_support
from tests.test_imaging_vendor import jpeg_block, make_topcon, make_vol, raw_block


def test_what_it_names_gives_the_same_bits_again(tmp_path: Path) -> None:
    bundle, studies = make_bundle(tmp_path / "bundle"), tmp_path / "studies"
    studies.mkdir()
    rng = np.random.default_rng(0)
    (studies / "volume.dcm").write_bytes(make_dicom(rng.integers(0, 4000, (3, 30, 40), np.uint16), StudyInstanceUID="1.2.3"))
    (studies / "cut.dcm").write_bytes(make_dicom(StudyInstanceUID="1.2.3")[:-400])
    Image.fromarray(rng.integers(0, 255, (60, 50), np.uint8)).save(studies / "x.png")
    assert main(["score", str(studies), "--bundle", str(bundle.path), "--out", str(tmp_path / "results")]) == 1
    traces = [json.loads(path.read_text()) for path in (tmp_path / "results" / "traces").iterdir()]
    assert len(traces) == 2
    predictor, compared = Predictor(load_bundle(bundle.path)), 0
    for trace in traces:
        assert trace["bundle"]["bundle_id"] == bundle.manifest.bundle_id
        assert trace["bundle"]["files"] == dict(bundle.manifest.files)
        assert trace["times"]["begun"] <= trace["times"]["ended"]
        for frame in trace["frames"]:
            file = locate(studies, frame["source"])
            assert hashlib.sha256(file.path.read_bytes()).hexdigest() == frame["input_sha256"]
            again = list(read_admitted(file, predictor.admission))[frame["frame_number"] - 1]
            assert isinstance(again, Admitted)
            (result,) = predictor.predict_admitted([again])
            assert isinstance(result, FramePrediction)
            assert {one.label: one.logit for one in result.predictions} == frame["logits"]
            compared += 1
    assert compared == 4
    (study,) = (trace for trace in traces if trace["not_scored"])
    assert [(one["source"], one["reason"]) for one in study["not_scored"]] == [("cut.dcm", "truncated")]


GREY = (np.add.outer(np.arange(300), np.arange(200)) // 2).astype(np.uint8)
WINDOW = {"WindowCenter": 127.5, "WindowWidth": 255, "VOILUTFunction": "LINEAR_EXACT"}


def jpeg(pixels: np.ndarray) -> bytes:
    return bytes(imagecodecs.jpeg8_encode(pixels))


def picture(kind: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(GREY).save(buffer, kind)
    return buffer.getvalue()


def tiff() -> bytes:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, GREY)
    return buffer.getvalue()


FILES = {
    "pydicom": make_dicom(GREY),
    "octray, single bits": make_dicom(BitsAllocated=1, BitsStored=1, HighBit=0, Rows=16, Columns=16, PixelData=bytes(32)),
    "imagecodecs": make_encapsulated(GREY, uid.JPEGLSLossless, [[imagecodecs.jpegls_encode(GREY)]]),
    "pillow, at a reduced resolution": make_encapsulated(GREY, uid.JPEGBaseline8Bit, [[jpeg(GREY)]], **WINDOW),
    "pillow, PNG": picture("PNG"),
    "pillow, JPEG": picture("JPEG"),
    "tifffile": tiff(),
    "octray, .vol": make_vol(np.full((1, 64, 64), 0.5, np.float32)),
    "octray, .fds": make_topcon([(b"@IMG_SCAN_03", raw_block(GREY[None]))]),
    "imagecodecs, .fda": make_topcon([(b"@IMG_JPEG", jpeg_block(GREY[None], imagecodecs.jpeg8_encode))]),
}


@pytest.mark.parametrize("name", FILES)
def test_every_frame_says_what_decoded_it(name: str) -> None:
    reading = reading_for(Preprocessing(32, exact_decoding=False), Limits())
    (frame,) = read_frames_from_bytes(FILES[name], "a", reading)
    assert frame.facts().decoder == name.partition(",")[0]
    if "reduced" in name:
        assert frame.pixels.shape < frame.shape == GREY.shape


def test_it_holds_what_made_the_numbers(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle", heatmap=make_support("deletion"))
    predictor = Predictor(bundle)
    (tmp_path / "a.dcm").write_bytes(FILES["imagecodecs"])
    (admitted,) = read_admitted(locate(tmp_path, "a.dcm"), predictor.admission)
    assert isinstance(admitted, Admitted)
    (result,) = predictor.predict_admitted([admitted])
    assert isinstance(result, FramePrediction)
    tracer = Tracer(bundle.manifest, provider=predictor.engine.provider, threads=1, versions=software_versions())
    trace = json.loads(tracer.trace(StudyRecord("", (result,), begun_at="now")))
    (frame,) = trace["frames"]
    assert (frame["decoder"], frame["transfer_syntax_uid"]) == ("imagecodecs", uid.JPEGLSLossless)
    assert [frame[name] for name in ("rows", "columns", "decoded_rows", "decoded_columns")] == [300, 200, 300, 200]
    assert frame["input_sha256"] == hashlib.sha256(FILES["imagecodecs"]).hexdigest()
    assert {point["label"]: point["threshold"] for point in trace["bundle"]["operating_points"]} == {
        "NORMAL": 0.5,
        "PNEUMONIA": 0.5,
    }
    assert trace["bundle"]["calibration"] == {"temperatures": [1.5, 1.5], "offsets": [0.0, 0.0]}
    assert trace["bundle"]["heatmap_full_scale"] == bundle.manifest.heatmap.full_scale
    assert trace["bundle"]["heatmap_caveat"] == bundle.manifest.heatmap.caveat != ""
    assert trace["bundle"]["preprocessing"]["size"] == 32
    assert trace["machinery"]["provider"] == "CPUExecutionProvider"
    versions = trace["machinery"]["versions"]
    assert versions["results"] == str(RESULTS_VERSION)
    for name in ("octray", "imagecodecs", "numpy", "onnxruntime", "pillow", "pydicom", "tifffile"):
        assert versions[name] == metadata.version(name)
