"""Judges what `pipeline.train.fit` made: fits calibration, operating points, outlier threshold and the scale of heatmaps on the
calibration split, and measures all of it on the test split."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from pipeline.config import Config
from pipeline.errors import InputError
from pipeline.evaluate.calibration import Float64, fit_temperature, probabilities
from pipeline.evaluate.decisions import choose_operating_points, conformal_bands, coverage
from pipeline.evaluate.figures import plots
from pipeline.evaluate.metrics import Estimate, Evaluation, Sample, confusion_counts, evaluate, sensitivity, specificity
from pipeline.evaluate.outliers import Reference, fit_reference, pooled, reference_rows
from pipeline.frames import FloatArray, Split
from pipeline.ingest.index import Index
from pipeline.ingest.network_input import prepared_frames
from pipeline.model.bundle import CONFIG, Bundle, HeatmapSupport, LabelCoverage, MapSupport, MeasuredRefusals, MeasuredStates
from pipeline.model.engine import Engine
from pipeline.model.export import map_support
from pipeline.predictions import ConformalBand, DecisionRule, Interval, OperatingPoint, State
from pipeline.progress import Progress, silent, working
from pipeline.train.explanation import LESION_FRAMES, Examined, check_explanations, full_scale, lesion_masks
from pipeline.train.fit import Fitted
from pipeline.train.training_data import TrainingData

_COMPARED_FRAMES = 4


@dataclass(frozen=True, slots=True, eq=False)
class Assessment:
    """What was fitted on the calibration split and measured on the test split.

    Parameters
    ----------
    temperature
        Of the calibrated probabilities.
    points
        One operating point for each label.
    bands
        One for each label.
    reference
        What tells frames that are unlike those of the training.
    maps
        How the network's maps are made, and the checks that they were put to.
    heatmap
        What the heatmaps of the bundle show, and on which scale.
    evaluation
        None if there is no test split.
    states, refusals
        How often the bundle is uncertain, and how often it refuses frames, on the same split.
    plots
        File names and PNG images.
    """

    temperature: float
    points: tuple[OperatingPoint, ...]
    bands: tuple[ConformalBand, ...]
    reference: Reference
    maps: MapSupport
    heatmap: HeatmapSupport
    evaluation: Evaluation | None = None
    states: MeasuredStates | None = None
    refusals: MeasuredRefusals | None = None
    plots: dict[str, bytes] = field(default_factory=dict)


def judge(config: Config, data: TrainingData, fitted: Fitted, pixels: FloatArray, progress: Progress = silent) -> Assessment:
    """Fit on the calibration split how logits become results, and measure the results on the test split.

    Parameters
    ----------
    config
        Activation, criterion, error rate of the conformal sets, number of resamples and method of the heatmaps.
    data
        Targets, patients and splits.
    fitted
        The trained network.
    pixels
        All frames on the network's grid, float32 of shape (n, 1, size, size) in [0, 1].
    progress
        Shows what is being measured.

    Raises
    ------
    InputError
        If the calibration split lacks positives or negatives of a label.
    """
    return _Judge(config, data, fitted, pixels, progress).assessment()


class _Judge:
    """What the steps of `judge` share."""

    def __init__(self, config: Config, data: TrainingData, fitted: Fitted, pixels: FloatArray, progress: Progress) -> None:
        self._config, self._data, self._fitted, self._pixels, self._progress = config, data, fitted, pixels, progress
        self._engine = Engine(fitted.graph, config.train.threads)
        self._rows = {split: data.rows(split) for split in Split}

    def assessment(self) -> Assessment:
        """Return what `judge` returns."""
        calibration, known = working(self._progress, "calibrating", self._calibrated)
        _, seen = self._run(reference_rows(self._rows[Split.TRAIN]))
        reference = fit_reference(seen, known, calibration.groups)
        tested = working(self._progress, "measuring the test split", lambda: self._tested(calibration, reference))
        maps, heatmap = working(self._progress, "checking the heatmaps", lambda: self._heatmaps(calibration))
        return Assessment(
            temperature=calibration.temperature,
            points=calibration.operating_points,
            bands=calibration.bands,
            reference=reference,
            maps=maps,
            heatmap=heatmap,
            **tested,
        )

    def _calibrated(self) -> tuple[Sample, Float64]:
        """Return the calibration split with all that is fitted on it, and the pooled features of its frames."""
        config, rows = self._config, self._rows[Split.CALIBRATION]
        truth, patients, activation = self._data.targets[rows], self._data.patients(rows), config.model.activation
        logits, known = self._run(rows)
        temperature = fit_temperature(logits, truth, activation)
        chances = probabilities(logits, activation, temperature)
        points = choose_operating_points(chances, truth, self._data.labels, config.evaluate.criterion)
        alpha, resamples, seed = config.evaluate.conformal_alpha, config.evaluate.bootstrap, config.train.seed
        sample = Sample(
            logits=logits,
            targets=truth,
            groups=patients,
            labels=self._data.labels,
            activation=activation,
            temperature=temperature,
            operating_points=points,
            bands=conformal_bands(chances, truth, patients, points, alpha, resamples, seed),
            normal_label=config.data.normal_label,
        )
        return replace(sample, operating_points=_with_figures(points, sample)), known

    def _tested(self, calibration: Sample, reference: Reference) -> dict[str, Any]:
        """Return what is measured on the test split, by the fields of `Assessment`; nothing if there is none."""
        rows = self._rows[Split.TEST]
        if not len(rows):
            return {}
        logits, features = self._run(rows)
        patients = self._data.patients(rows)
        sample = replace(calibration, logits=logits, targets=self._data.targets[rows], groups=patients)
        evaluation = evaluate(sample, self._config.evaluate.bootstrap, self._config.train.seed)
        return {
            "evaluation": evaluation,
            "states": measure_states(sample, evaluation),
            "refusals": measure_refusals(reference, features, patients),
            "plots": plots(sample),
        }

    def _run(self, rows: NDArray[np.int64]) -> tuple[FloatArray, Float64]:
        """Return logits of shape (n, labels) and pooled features of shape (n, channels) of some frames."""
        batches = [self._engine.run(self._pixels[rows[part]]) for part in self._engine.parts(len(rows))]
        logits = np.concatenate([logits for logits, _ in batches])
        return logits, np.stack([pooled(one) for _, features in batches for one in features])

    def _heatmaps(self, calibration: Sample) -> tuple[MapSupport, HeatmapSupport]:
        """Choose how heatmaps are made and on which scale, and check them, all on frames of the calibration split."""
        config, rows, network = self._config, self._rows[Split.CALIBRATION], self._fitted.network
        known, method = rows[:LESION_FRAMES], config.heatmap.method
        frames, preprocessing = np.ascontiguousarray(self._pixels[known]), config.network_preprocessing()
        maps = map_support(network, frames[:_COMPARED_FRAMES], method)
        examined = Examined(network, self._engine, maps, method, frames, config.train.seed)
        checks = check_explanations(examined, lambda cells: lesion_masks(self._data, known, preprocessing, cells))
        has = (calibration.targets == 1) & np.array([label != config.data.normal_label for label in self._data.labels])
        found = has & self._are_positive(calibration)
        full = full_scale(examined, self._pixels, rows, found if found.any() else has)
        support = HeatmapSupport(
            method=method,
            exact=maps.exact,
            computed=maps.computed,
            full_scale=full,
            true_positives=int(found.sum()),
            checks=checks,
        )
        return maps.model_copy(update={"checks": checks}), support

    def _are_positive(self, sample: Sample) -> NDArray[np.bool_]:
        """Return what the bundle would call positive, of shape (n, labels)."""
        labels, points, bands = sample.labels, sample.operating_points, sample.bands
        rule = DecisionRule.of(labels, points, bands, sample.activation, sample.normal_label)
        chances = probabilities(sample.logits, sample.activation, sample.temperature)
        return np.asarray(rule.states(chances) == State.POSITIVE, bool)


def evaluate_bundle(
    bundle: Bundle, index: Index, *, split: Split | str = Split.TEST, progress: Progress = silent
) -> Evaluation:
    """Measure a bundle on one split of an index: read the frames, run the graph on them, and compare with the labels.

    Figures are only fair for frames that training did not use: those of the test split, or of an index with other patients.

    Parameters
    ----------
    bundle, index
        As `load_bundle` and `load_index` give them.
    split
        train, tune, calibration or test.
    progress
        Shows the number of frames scored.

    Raises
    ------
    InputError
        If the index lacks a label of the bundle, or has no frame in the split, or its files have changed.
    """
    manifest, records = bundle.manifest, index.of(Split(split))
    if missing := [label for label in manifest.labels if label not in index.labels]:
        raise InputError(f"The index has no label {', '.join(missing)}. Ingest it with the bundle's labels.")
    if not records:
        raise InputError(f"The index has no frame in the split {split}. Choose another --split.")
    config = Config.model_validate(yaml.safe_load(bundle.read(CONFIG)))
    engine = Engine(bundle.read(manifest.members[0].graph))
    frames = prepared_frames(records, index.sources, manifest.preprocessing, manifest.limits)
    sample = Sample(
        logits=engine.logits(progress(frames, "scoring frames", len(records))),
        targets=index.targets(records, manifest.labels),
        groups=tuple(record.patient_key for record in records),
        labels=manifest.labels,
        activation=manifest.activation,
        temperature=manifest.temperature,
        operating_points=manifest.operating_points,
        bands=manifest.conformal.bands,
        normal_label=manifest.normal_label,
    )
    return working(progress, "resampling patients", lambda: evaluate(sample, config.evaluate.bootstrap, config.train.seed))


def _with_figures(points: tuple[OperatingPoint, ...], sample: Sample) -> tuple[OperatingPoint, ...]:
    """Return the points with the sensitivity and specificity of the states, which depend on bands and other labels as well."""
    counts = [confusion_counts(column.states, column.targets, np.ones(len(column.rows))) for column in sample.columns]
    return tuple(
        replace(point, sensitivity=float(sensitivity(one)), specificity=float(specificity(one)))
        for point, one in zip(points, counts, strict=True)
    )


def measure_states(sample: Sample, evaluation: Evaluation) -> MeasuredStates:
    """Return how often states hold the truth and how often they are uncertain, on a sample that nothing was fitted on."""
    found = coverage(sample, evaluation.resamples, evaluation.seed)
    return MeasuredStates(
        frames=evaluation.frames,
        patients=evaluation.patients,
        uncertain=_interval(evaluation.uncertain),
        labels={
            label: LabelCoverage(**{name: _interval(estimate) for name, estimate in one.items()})
            for label, one in found.items()
        },
    )


def measure_refusals(reference: Reference, features: Float64, patients: Sequence[str]) -> MeasuredRefusals:
    """Count the false alarms: test frames that are refused, and the patients who have such a frame.

    Parameters
    ----------
    reference
        That of the bundle.
    features
        Pooled features of n frames that nothing was fitted on, shape (n, channels).
    patients
        The patient of each.
    """
    refused = [reference.distance(one) > 1 for one in features]
    concerned = {patient for patient, is_refused in zip(patients, refused, strict=True) if is_refused}
    low, high = wilson(len(concerned), len(set(patients)))
    return MeasuredRefusals(
        frames=len(refused),
        refused_frames=sum(refused),
        patients=len(set(patients)),
        refused_patients=len(concerned),
        low=low,
        high=high,
    )


def wilson(count: int, total: int) -> tuple[float, float]:
    """Return the 95 % interval of a proportion (Wilson, "Probable inference", 1927)."""
    z, part = 1.959964, count / total
    middle, scale = part + z**2 / (2 * total), 1 + z**2 / total
    reach = z * (part * (1 - part) / total + z**2 / (4 * total**2)) ** 0.5
    return max(0.0, (middle - reach) / scale), min(1.0, (middle + reach) / scale)


def _interval(estimate: Estimate) -> Interval:
    return Interval(estimate.value, estimate.low, estimate.high)
