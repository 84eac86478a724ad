"""Each network of the course, and transformers: from a configuration over a run of MLflow to a bundle and a heatmap."""

from pathlib import Path

import numpy as np
import pytest
from mlflow import MlflowClient

from pipeline.config import load_config
from pipeline.errors import ConfigError
from pipeline.frames import Split
from pipeline.imaging.sources import locate, read_frames
from pipeline.ingest.index import load_index
from pipeline.score.predictor import Predictor
from pipeline.train.run import train
from tests.conftest import Trained

SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    ("name", "size", "cells", "computed", "global_pool"),
    [
        ("lenet5", 32, 5, "gradient", False),
        ("mlp", 32, 16, "gradient", False),
        pytest.param("alexnet", 96, 2, "gradient", False, marks=SLOW),
        pytest.param("vgg16", 64, 2, "closed_form", True, marks=SLOW),  # its dense layers alone have 120 million weights
        pytest.param("googlenet", 64, 2, "closed_form", False, marks=SLOW),
        pytest.param("resnet50", 64, 2, "closed_form", False, marks=SLOW),
        pytest.param("mobilenetv1_100", 64, 2, "closed_form", False, marks=SLOW),
        pytest.param("efficientnet_b0", 64, 2, "closed_form", False, marks=SLOW),
        ("test_vit", 64, 4, "closed_form", False),
        pytest.param("vit_tiny_patch16_224", 64, 4, "closed_form", False, marks=SLOW),
        pytest.param("vit_small_patch14_dinov2", 56, 4, "closed_form", False, marks=SLOW),
        pytest.param("swin_tiny_patch4_window7_224", 64, 2, "closed_form", False, marks=SLOW),
    ],
)
def test_a_network_is_trained_tracked_scored_and_explained(
    name: str, size: int, cells: int, computed: str, global_pool: bool, trained: Trained, tmp_path: Path
) -> None:
    overrides = [
        f"model.architecture={name}",
        f"model.global_pool={global_pool}",
        f"preprocessing.size={size}",
        f"train.way={'probe' if name == 'alexnet' else 'staged'}",  # checkpoints of its dense layers would be 700 MB
        "train.finetune.epochs=1",
        "train.finetune.groups=1",
        "train.finetune.learning_rate=0.001",
        f"tracking.uri={trained.uri}",
        f"tracking.experiment=networks-{name}",
        "tracking.model_name=networks",
    ]
    index = load_index(trained.index)
    bundle = train(load_config(trained.config, overrides), index, tmp_path / "bundle")
    client = MlflowClient(trained.uri)
    run = client.get_run(bundle.manifest.provenance.mlflow_run_id)
    assert (run.info.status, run.data.params["model.architecture"]) == ("FINISHED", name)
    support = bundle.manifest.heatmap
    assert support.computed == computed
    assert {check.name for check in support.checks} >= {"randomisation", "deletion", "insertion"}
    assert bool(support.caveat) == any(not check.passed for check in support.checks)
    assert support.caveat in bundle.read("MODEL_CARD.md").decode()
    frame = next(read_frames(locate(trained.studies, index.of(Split.CALIBRATION)[0].source)))
    (found,) = Predictor(bundle).predict([frame])
    maps = np.stack([heatmap.values for heatmap in found.heatmaps])
    assert maps.shape == (2, cells, cells)
    assert np.isfinite(maps).all()
    assert maps.max() > 0
    assert sum(one.probability for one in found.predictions) == pytest.approx(1)


def test_finer_maps_are_kept_if_they_pass_the_checks(trained: Trained, tmp_path: Path) -> None:
    overrides = ["tracking.enabled=false", "train.finetune.epochs=3", "heatmap.rows=4", "heatmap.method=hirescam"]
    index = load_index(trained.index)
    bundle = train(load_config(trained.config, overrides), index, tmp_path / "bundle")
    (member,) = bundle.manifest.members
    frame = next(read_frames(locate(trained.studies, index.of(Split.CALIBRATION)[0].source)))
    (found,) = Predictor(bundle).predict([frame])
    if member.maps.passed and not member.maps.exact:
        assert (member.maps.layer, member.maps.computed, bundle.manifest.heatmap.computed) == ("layer3", "gradient", "gradient")
        assert found.heatmaps[0].values.shape == (4, 4)
    else:
        assert (member.maps.layer, member.maps.computed) == ("forward_features", "closed_form")
        assert found.heatmaps[0].values.shape == (2, 2)


@pytest.mark.parametrize(
    ("name", "size", "expected"),
    [("inception_v3", 64, "use at least 75"), ("vit_tiny_patch16_224", 100, "use 96 or 112"), ("mlp", 97, "such as 104")],
)
def test_a_size_that_does_not_fit_is_refused_before_a_frame_is_read(
    name: str, size: int, expected: str, trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline.train import run

    monkeypatch.setattr(run, "prepared_frames", None)
    overrides = [f"model.architecture={name}", f"preprocessing.size={size}", "tracking.enabled=false"]
    with pytest.raises(ConfigError, match=expected):
        train(load_config(trained.config, overrides), load_index(trained.index), tmp_path / "bundle")
