"""What a network is worth away from home: corruptions by their closed forms, and sites, shortcuts and probes that are known."""

import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from sklearn.metrics import roc_auc_score

from pipeline.cli.main import main
from pipeline.config import Config
from pipeline.frames import ImageRecord, Split
from pipeline.model.bundle import METRICS, MODEL_CARD, load_bundle
from pipeline.train.fit import Probe
from pipeline.train.robustness import CORRUPTIONS, acquisition, corrupted, flat_robustness, measure_robustness
from pipeline.train.training_data import TrainingData
from tests.builders import make_key, make_pixels
from tests.conftest import Trained

SIDE = 32
CONFIG = Config.model_validate({"name": "tiny", "evaluate": {"robustness": True}})


def frames_of(count: int, seed: int = 0) -> NDArray[np.float32]:
    rng = np.random.default_rng(seed)
    pictures = np.stack([make_pixels(SIDE, SIDE, number)[None] for number in range(count)])
    return np.clip(0.2 + 0.6 * pictures + rng.normal(0, 0.01, pictures.shape), 0, 1).astype(np.float32)


def data_of(present: NDArray[np.bool_], tune: int) -> TrainingData:
    """One frame a patient; the first `tune` of them are the tune split, the last two the test split."""
    names = [f"{number:03}" for number in range(len(present))]
    splits = [Split.TUNE] * tune + [Split.TRAIN] * (len(present) - tune - 2) + [Split.TEST] * 2
    records = tuple(
        ImageRecord(
            make_key(number=number), 0, f"{name}.png", name, f"{number:064x}", {"A": not held, "B": bool(held)}, split, 64, 64
        )
        for number, (name, held, split) in enumerate(zip(names, present, splits, strict=True))
    )
    return TrainingData(("A", "B"), records, np.stack([~present, present], axis=1).astype(float), ())


def logits_of(score: NDArray[np.float64]) -> NDArray[np.float32]:
    return np.stack([np.zeros_like(score), score], axis=1).astype(np.float32)


@pytest.mark.parametrize("name", list(CORRUPTIONS))
def test_each_grade_goes_further_and_stays_a_frame(name: str) -> None:
    frames = frames_of(6)
    moved = [corrupted(frames, name, grade) for grade in range(3)]
    assert all(one.shape == frames.shape and one.dtype == np.float32 and one.min() >= 0 and one.max() <= 1 for one in moved)
    apart = [float(np.abs(one - frames).mean()) for one in moved]
    assert 0 < apart[0] < apart[1] < apart[2]
    np.testing.assert_array_equal(corrupted(frames, name, 1), moved[1])


def test_contrast_gamma_and_compression_are_what_they_say() -> None:
    frames = frames_of(2)
    np.testing.assert_allclose(corrupted(frames, "contrast", 0), 0.5 + 0.7 * (frames - 0.5), atol=1e-6)
    np.testing.assert_allclose(corrupted(frames, "gamma", 2), frames**2.2, atol=1e-6)
    buffer = io.BytesIO()
    Image.fromarray(np.round(255 * frames[1, 0]).astype("u1")).save(buffer, "JPEG", quality=10)
    np.testing.assert_allclose(corrupted(frames, "compression", 2)[1, 0], np.asarray(Image.open(buffer)) / 255, atol=1e-6)


def test_the_way_a_frame_was_acquired_shows() -> None:
    rng = np.random.default_rng(0)
    frame = np.clip(0.5 + rng.normal(0, 0.1, (1, 1, 64, 64)), 0, 1).astype(np.float32)
    known = acquisition(frame[0, 0], 64, 64)
    assert acquisition(corrupted(frame, "compression", 2)[0, 0], 64, 64)[9] > known[9] + 0.3
    assert acquisition(corrupted(frame, "blur", 2)[0, 0], 64, 64)[7] < known[7] - 1
    assert acquisition(frame[0, 0], 128, 64)[:2] == pytest.approx([np.log(128 * 64), np.log(0.5)])
    framed = np.pad(frame[0, 0], 4)
    assert (known[8], acquisition(framed, 72, 72)[8]) == (0, 1)


def test_the_figures_are_areas_of_scikit_learn_on_corrupted_frames_of_the_tune_split() -> None:
    present = np.arange(60) % 2 == 1
    data, frames = data_of(present, 40), frames_of(60)

    def run(pixels: NDArray[np.float32]) -> NDArray[np.float32]:
        return logits_of(pixels.mean(axis=(1, 2, 3)).astype(float))

    found = measure_robustness(CONFIG, data, frames, run, None)
    truth = present[:40]
    assert found["home"] == pytest.approx(roc_auc_score(truth, run(frames[:40])[:, 1]), abs=2e-3)
    changed = corrupted(frames[:40], "gamma", 1)
    assert found["corruptions"]["gamma"][1] == pytest.approx(roc_auc_score(truth, run(changed)[:, 1]), abs=2e-3)
    every = [value for values in found["corruptions"].values() for value in values]
    assert found["mean_corruption"] == pytest.approx(np.mean(every))
    assert found["drop"]["value"] == pytest.approx(found["home"] - np.mean(every))
    assert found["worst_corruption"]["auroc"] == min(every)
    assert (found["sites"], found["shortcut"], found["probe"], found["remark"]) == ([], None, None, "")
    assert flat_robustness(found)["robustness_gamma_2"] == found["corruptions"]["gamma"][1]


def probe_of(features: NDArray[np.float64], run: object = None, is_final: bool = True) -> Probe:
    return Probe(np.arange(len(features)), features, 0.1, run, is_final)  # type: ignore[arg-type]


def test_a_group_in_which_the_features_mean_the_opposite_is_found() -> None:
    """Bright frames come from a device on which the sign of the first feature is turned: a probe of the others fails there."""
    rng = np.random.default_rng(1)
    present = rng.random(202) < 0.5
    bright = np.arange(202) % 4 == 0
    frames = frames_of(202)
    frames[bright] = np.clip(0.7 + 0.3 * frames[bright], 0, 1)
    told = np.where(present, 1.0, -1.0) * np.where(bright, -1, 1)
    features = np.stack([told + rng.normal(0, 0.5, 202), rng.normal(size=202)], axis=1)[:200]
    data = data_of(present, 60)
    found = measure_robustness(CONFIG, data, frames, lambda pixels: logits_of(pixels.mean(axis=(1, 2, 3))), probe_of(features))
    assert found["worst_site"]["away"] < 0.2
    assert found["shortcut"]["acquisition"] < 0.65


def test_a_label_that_the_device_gives_away_is_found() -> None:
    rng = np.random.default_rng(2)
    present = rng.random(102) < 0.5
    frames = frames_of(102)
    frames[present] = corrupted(frames[present], "contrast", 2)
    features = rng.normal(size=(100, 2))
    data = data_of(present, 40)
    found = measure_robustness(CONFIG, data, frames, lambda pixels: logits_of(pixels.mean(axis=(1, 2, 3))), probe_of(features))
    assert found["shortcut"]["acquisition"] > 0.95
    assert found["shortcut"]["network"] < 0.7


def test_labels_of_the_test_split_have_no_part_in_it() -> None:
    present = np.random.default_rng(3).random(102) < 0.5
    data, frames = data_of(present, 40), frames_of(102)
    features = np.random.default_rng(4).normal(size=(100, 3))
    turned = data.targets.copy()
    turned[-2:] = 1 - turned[-2:]

    def run(pixels: NDArray[np.float32]) -> NDArray[np.float32]:
        return logits_of(pixels.std(axis=(1, 2, 3)))

    one, other = (
        measure_robustness(CONFIG, each, frames, run, probe_of(features)) for each in (data, replace(data, targets=turned))
    )
    assert one == other


@pytest.mark.parametrize("fine_tuned_is_worse", [True, False])
def test_a_network_that_is_worse_than_its_probe_is_said_so(fine_tuned_is_worse: bool) -> None:
    present = np.arange(82) % 2 == 1
    data, frames = data_of(present, 80), frames_of(82)
    data = replace(data, records=tuple(replace(one, split=Split.TUNE) for one in data.records))
    clean = np.ascontiguousarray(frames)
    rng = np.random.default_rng(5)

    def firm(pixels: NDArray[np.float32]) -> NDArray[np.float32]:
        return logits_of(present * 2.0 + np.random.default_rng(6).normal(size=82))

    def weak(pixels: NDArray[np.float32]) -> NDArray[np.float32]:
        return firm(pixels) if np.array_equal(pixels, clean) else logits_of(rng.normal(size=82))

    runs = (weak, firm) if fine_tuned_is_worse else (firm, weak)
    probe = probe_of(np.random.default_rng(7).normal(size=(82, 2)), runs[1], is_final=False)
    found = measure_robustness(CONFIG, data, frames, runs[0], probe)
    assert found["probe"]["is_better_away"] == fine_tuned_is_worse
    assert found["remark"].startswith("Fine-tuning made the network worse away from home") == fine_tuned_is_worse
    assert found["probe"]["home"] == pytest.approx(found["home"])


def test_a_run_that_asks_for_it_says_it(trained: Trained, tmp_path: Path) -> None:
    words = ["--index", str(trained.index), "--out", str(tmp_path / "bundle"), "tracking.enabled=false"]
    settings = ["evaluate.robustness=true", "train.finetune.epochs=1"]
    assert main(["train", str(trained.config), *words, *settings]) == 0
    bundle = load_bundle(tmp_path / "bundle")
    found = json.loads(bundle.read(METRICS))["robustness"]
    assert set(found["corruptions"]) == set(CORRUPTIONS)
    assert found["probe"]["mean_corruption"] is not None
    card = bundle.read(MODEL_CARD).decode()
    assert "## Away from home" in card
    assert "| rotation |" in card
    assert json.loads(load_bundle(trained.bundle).read(METRICS))["robustness"] is None
