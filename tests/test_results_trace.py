"""A trace is enough to compute the same bits again."""

import hashlib
import json
from pathlib import Path

import numpy as np
from PIL import Image

from pipeline.cli.main import main
from pipeline.imaging.sources import locate
from pipeline.model.bundle import load_bundle
from pipeline.records import FramePrediction
from pipeline.score.admission import Admitted, read_admitted
from pipeline.score.predictor import Predictor
from tests.builders import make_bundle, make_dicom


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
