"""Levels of a bundle: attention learned from data with a known truth, which levels are fitted, and why the others are not."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load
from sklearn.metrics import roc_auc_score

from pipeline.config import Config
from pipeline.errors import InputError, TrainingError
from pipeline.evaluate.units import Units
from pipeline.frames import FloatArray, ImageRecord, InstanceKey, Split
from pipeline.levels import Attention, LabelSet, Level, Pooling
from pipeline.predictions import Task
from pipeline.train import pooling
from pipeline.train.pooling import LevelFrames, attention_file, fit_attention, fit_levels
from pipeline.train.training_data import TrainingData

CHANNELS = 6


class Simulation:
    """Patients with studies of B-scans, of which only some are good enough to tell, which the first feature says."""

    def __init__(
        self, patients: int = 240, studies: int = 1, frames: int = 12, sides: str = "", poor: float = 0.75, seed: int = 0
    ) -> None:
        rng = np.random.default_rng(seed)
        records: list[ImageRecord] = []
        targets, odds, features = [], [], []
        splits = [Split.TRAIN, Split.TRAIN, Split.TUNE, Split.CALIBRATION, Split.TEST]
        for patient in range(patients):
            for study in range(studies):
                ill = float(rng.random() < 0.5)
                for frame in range(frames):
                    key = InstanceKey(f"{patient}.{study}", f"{patient}.{study}.1", f"{patient}.{study}.1.1", frame + 1)
                    side = sides[frame % len(sides)] if sides else ""
                    split = splits[patient % 5]
                    records.append(ImageRecord(key, 0, "a", f"p{patient}", "", {}, split, 8, 8, laterality=side))
                    is_poor = rng.random() < poor
                    odds.append(rng.normal(0, 3) if is_poor else rng.normal(2 if ill else -2, 1))
                    targets.append((1 - ill, ill))
                    features.append(np.append(3.0 * is_poor, rng.normal(size=CHANNELS - 1)))
        self.data = TrainingData(("NORMAL", "CNV"), tuple(records), np.array(targets), (Path(),))
        self._odds = np.stack([-np.array(odds), np.array(odds)], axis=1)
        self._features = np.array(features)
        self.labels = LabelSet(self.data.labels, Task.MULTICLASS, "NORMAL")
        self.runs: list[Split] = []

    def frames(self, refused: float = np.inf) -> LevelFrames:
        return LevelFrames(
            self.data,
            self._run,
            lambda one: bool(one[1] > refused),
            lambda logits: logits.astype(float),
            self.labels,
        )

    def _run(self, split: Split) -> tuple[FloatArray, Any]:
        self.runs.append(split)
        rows = self.data.rows(split)
        return self._odds[rows], self._features[rows]


def make_config(**levels: str) -> Config:
    return Config.model_validate(
        {"name": "x", "data": {"normal_label": "NORMAL"}, "evaluate": {"bootstrap": 100}, "levels": levels}
    )


@pytest.fixture(scope="module")
def simulation() -> Simulation:
    return Simulation()


def test_attention_is_chosen_and_right_if_only_some_frames_can_tell(simulation: Simulation) -> None:
    frames = simulation.frames()

    fitted, left_out = fit_levels(make_config(), frames)

    assert set(fitted) == {Level.STUDY}
    assert left_out[Level.EYE] == "No frame states which eye or side it shows."
    assert left_out[Level.PATIENT] == "Each patient has one study, so that its result is that of the study."
    study = fitted[Level.STUDY]
    assert study.rule.pooling is Pooling.ATTENTION
    assert min(study.losses, key=lambda way: study.losses[way]) is Pooling.ATTENTION
    test = frames.units(Level.STUDY, Split.TEST)
    areas = {way: roc_auc_score(test.targets[:, 1], test.pooled(way, study.attention)[:, 1]) for way in study.losses}
    assert areas[Pooling.ATTENTION] > 0.97
    assert areas[Pooling.ATTENTION] > max(areas[Pooling.MAX], areas[Pooling.NOISY_OR]) + 0.1
    assert study.attention is not None
    good, poor = (study.attention.scores(np.append(value, np.zeros(CHANNELS - 1))) for value in (0.0, 3.0))
    assert (good > poor + 1).all()


def test_equal_data_give_equal_attention(simulation: Simulation) -> None:
    train = simulation.frames().units(Level.STUDY, Split.TRAIN)

    first, second = (fit_attention(train, 0, 0.01) for _ in range(2))

    for name in Attention.__slots__:
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name))
    assert not np.array_equal(first.tanh_weight, fit_attention(train, 1, 0.01).tanh_weight)


def test_attention_stays_finite_if_units_are_told_apart_without_an_error() -> None:
    simulation = Simulation(20, frames=3, poor=0)
    simulation.data.targets[simulation.data.rows(Split.TRAIN)[:6], 1] = np.nan
    train = simulation.frames().units(Level.STUDY, Split.TRAIN)

    for decay in (0.1, 1e-6):
        attention = fit_attention(train, 0, decay)
        assert all(np.isfinite(getattr(attention, name)).all() for name in Attention.__slots__)


def test_a_way_that_cannot_be_fitted_is_left_out_unless_it_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(units: Units, seed: int, decay: float) -> Attention:
        raise TrainingError("not a number")

    monkeypatch.setattr(pooling, "fit_attention", broken)
    simulation = Simulation(60)

    fitted, _ = fit_levels(make_config(), simulation.frames())

    assert Pooling.ATTENTION not in fitted[Level.STUDY].losses
    with pytest.raises(TrainingError):
        fit_levels(make_config(study="attention"), simulation.frames())


def test_attention_averages_in_training_as_in_scoring(simulation: Simulation) -> None:
    torch = pytest.importorskip("torch")
    from pipeline.train.pooling import _averages

    units = simulation.frames().units(Level.STUDY, Split.TRAIN)
    attention = fit_attention(units, 0, 0.1)
    rows, place = units.frames()
    assert units.features is not None
    scores = np.stack([attention.scores(one) for one in units.features[rows]])

    averages = _averages(*(torch.from_numpy(one) for one in (scores, units.odds[rows], place)), len(units.names))

    np.testing.assert_allclose(averages.numpy(), units.pooled(Pooling.ATTENTION, attention), atol=1e-3)  # stored rounded


def test_the_file_of_a_bundle_gives_the_same_attention(simulation: Simulation) -> None:
    fitted, _ = fit_levels(make_config(study="attention"), simulation.frames())
    content = attention_file(fitted)
    assert content is not None

    again = Attention.of(load(content), Level.STUDY, 2)

    np.testing.assert_array_equal(again.output, fitted[Level.STUDY].attention.output)  # type: ignore[union-attr]
    assert attention_file(fit_levels(make_config(study="max"), simulation.frames())[0]) is None


def test_a_named_pooling_is_taken_and_costs_no_run_of_the_training_split() -> None:
    simulation = Simulation(60)

    fitted, _ = fit_levels(make_config(study="noisy_or", patient="none"), simulation.frames())

    assert fitted[Level.STUDY].rule.pooling is Pooling.NOISY_OR
    assert set(fitted[Level.STUDY].losses) == {Pooling.NOISY_OR}
    assert Split.TRAIN not in simulation.runs
    report = fitted[Level.STUDY].report()
    assert (report["pooling"], report["splits"]["train"]["units"]) == ("noisy_or", 24)


def test_eyes_and_patients_are_levels_of_their_own() -> None:
    simulation = Simulation(100, studies=2, frames=6, sides="RL", poor=0)

    fitted, left_out = fit_levels(make_config(), simulation.frames())

    assert set(fitted) == {Level.STUDY, Level.EYE, Level.PATIENT}
    assert left_out == {}
    units = {level: one.counts["test"]["units"] for level, one in fitted.items()}
    assert units == {Level.STUDY: 40, Level.EYE: 40, Level.PATIENT: 20}


def test_a_level_of_single_frames_is_that_of_the_frames() -> None:
    simulation = Simulation(60, frames=1)

    fitted, left_out = fit_levels(make_config(), simulation.frames())

    assert fitted == {}
    assert left_out[Level.STUDY] == "Each study has one frame, so that its result is that of the frame."
    assert simulation.runs == []
    with pytest.raises(InputError, match=r"levels\.study=max is not possible\. Each study has one frame.*levels\.study=none"):
        fit_levels(make_config(study="max"), simulation.frames())


def test_a_level_without_examples_is_left_out_with_the_split_and_the_label() -> None:
    simulation = Simulation(60)
    for row in simulation.data.rows(Split.TUNE):
        simulation.data.targets[row] = (1, 0)

    _, left_out = fit_levels(make_config(), simulation.frames())

    assert left_out[Level.STUDY] == "The split tune has no study without NORMAL."


def test_a_level_whose_frames_are_all_refused_is_left_out() -> None:
    simulation = Simulation(60)

    _, left_out = fit_levels(make_config(), simulation.frames(refused=-100))

    assert "that has a frame like those of the training" in left_out[Level.STUDY]


def test_training_frames_are_never_refused() -> None:
    frames = Simulation(60).frames(refused=-100)

    assert isinstance(frames.units(Level.STUDY, Split.TRAIN), Units)
    assert len(frames.units(Level.STUDY, Split.TRAIN).names) == 24
    assert frames.units(Level.STUDY, Split.TEST).without_frames == 12


class Grades(Simulation):
    """The same, if the frames of ill patients are mild, and every second of them severe."""

    def __init__(self) -> None:
        super().__init__()
        ill = self.data.targets[:, 1]
        severe = ill * np.array([int(record.patient_key[1:]) % 4 < 2 for record in self.data.records])
        targets = np.stack([1 - ill, ill - severe, severe], axis=1)
        self.data = TrainingData(("NORMAL", "MILD", "SEVERE"), self.data.records, targets, (Path(),))
        self._odds = np.stack([self._odds[:, 1], self._odds[:, 1] - 2 + 1.5 * severe], axis=1)
        self.labels = LabelSet(self.data.labels, Task.ORDINAL, "NORMAL")


def test_attention_weighs_frames_alike_for_all_grades() -> None:
    simulation = Grades()
    frames = simulation.frames()

    fitted, _ = fit_levels(make_config(study="attention"), frames)

    study = fitted[Level.STUDY]
    assert study.attention is not None
    assert study.attention.output.shape[0] == 1
    assert study.rule.fits(simulation.labels)
    pooled = frames.units(Level.STUDY, Split.TEST).pooled(Pooling.ATTENTION, study.attention)
    assert (pooled[:, 0] >= pooled[:, 1]).all()
    content = attention_file(fitted)
    assert content is not None
    assert Attention.of(load(content), Level.STUDY, simulation.labels.weightings).channels == CHANNELS
