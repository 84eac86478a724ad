"""Fits calibration, operating points and outlier threshold on one split, and measures them on another."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

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
from pipeline.model.bundle import CONFIG, GRAPH, Bundle, LabelCoverage, MeasuredRefusals, MeasuredStates
from pipeline.model.engine import Engine
from pipeline.predictions import ConformalBand, Interval, OperatingPoint
from pipeline.progress import Progress, silent, working
from pipeline.train.training_data import TrainingData


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
    evaluation: Evaluation | None = None
    states: MeasuredStates | None = None
    refusals: MeasuredRefusals | None = None
    plots: dict[str, bytes] = field(default_factory=dict)


def assess_network(config: Config, data: TrainingData, graph: bytes, pixels: FloatArray) -> Assessment:
    """Fit on the calibration split how logits become results, and measure the results on the test split.

    Parameters
    ----------
    config
        Activation, criterion, error rate of the conformal sets and number of resamples.
    data
        Targets, patients and splits.
    graph
        The exported network.
    pixels
        All frames on the network's grid, float32 of shape (n, 1, size, size) in [0, 1].

    Raises
    ------
    InputError
        If the calibration split lacks positives or negatives of a label.
    """
    resamples, seed = config.evaluate.bootstrap, config.train.seed
    engine, activation = Engine(graph, config.train.threads), config.model.activation
    rows = {split: data.rows(split) for split in Split}
    truth, patients = data.targets[rows[Split.CALIBRATION]], data.patients(rows[Split.CALIBRATION])
    _, seen = _run(engine, pixels, reference_rows(rows[Split.TRAIN]))
    logits, known = _run(engine, pixels, rows[Split.CALIBRATION])
    temperature = fit_temperature(logits, truth, activation)
    chances = probabilities(logits, activation, temperature)
    points = choose_operating_points(chances, truth, data.labels, config.evaluate.criterion)
    bands = conformal_bands(chances, truth, patients, points, config.evaluate.conformal_alpha, resamples, seed)
    calibration = Sample(
        logits=logits,
        targets=truth,
        groups=patients,
        labels=data.labels,
        activation=activation,
        temperature=temperature,
        operating_points=points,
        bands=bands,
        normal_label=config.data.normal_label,
    )
    points = _with_figures(points, calibration)
    assessment = Assessment(temperature, points, bands, fit_reference(seen, known, patients))
    if not len(rows[Split.TEST]):
        return assessment
    logits, features = _run(engine, pixels, rows[Split.TEST])
    patients = data.patients(rows[Split.TEST])
    sample = replace(
        calibration, logits=logits, targets=data.targets[rows[Split.TEST]], groups=patients, operating_points=points
    )
    evaluation = evaluate(sample, resamples, seed)
    return replace(
        assessment,
        evaluation=evaluation,
        states=measure_states(sample, evaluation),
        refusals=measure_refusals(assessment.reference, features, patients),
        plots=plots(sample),
    )


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
    engine = Engine(bundle.read(GRAPH))
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


def _run(engine: Engine, pixels: FloatArray, rows: NDArray[np.int64]) -> tuple[FloatArray, Float64]:
    """Return logits of shape (n, labels) and pooled features of shape (n, channels) of some frames."""
    batches = [engine.run(pixels[rows[part]]) for part in engine.parts(len(rows))]
    logits = np.concatenate([logits for logits, _ in batches])
    return logits, np.stack([pooled(one) for _, features in batches for one in features])


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
