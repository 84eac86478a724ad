"""What a worker process of `octray score` needs to score files."""

from functools import partial
from pathlib import Path

from pipeline.imaging.file_workers import file_workers
from pipeline.imaging.sources import locate
from pipeline.score.pictures import Drawing
from pipeline.score.predictor import Predictor
from pipeline.score.scoring import Scoring
from pipeline.settings import Limits
from tests.builders import make_bundle, make_dicom
from tests.scoring_tasks import scored_and_imported


def test_a_worker_scores_and_draws_without_torch(tmp_path: Path) -> None:
    (tmp_path / "a.dcm").write_bytes(make_dicom())
    predictor = Predictor(make_bundle(tmp_path / "bundle"))
    assert predictor.is_light
    drawing = Drawing(maps=True, jpeg=True, png=True)
    task = partial(scored_and_imported, scoring=Scoring(predictor, predictor.admission, drawing))
    with file_workers(1, Limits(frame_seconds=60.0)) as pool:
        ((count, imported),) = pool.run(task, [locate(tmp_path, "a.dcm")])
    assert count == 1
    assert {"onnxruntime", "pydicom", "PIL"} <= imported
    assert not {"torch", "timm", "mlflow", "pytorch_grad_cam", "monai", "sklearn", "pandas", "matplotlib"} & imported
