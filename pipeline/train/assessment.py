"""Judges what `pipeline.train.fit` made: fits calibration, operating points, outlier threshold and the scale of heatmaps on the
calibration split, and measures all of it on the test split."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from pipeline.config import Config
from pipeline.errors import InputError
from pipeline.evaluate.calibration import Float64, fit_temperatures, frame_odds, probabilities
from pipeline.evaluate.comparison import Comparison, Subgroup, check_comparable, compare, subgroups
from pipeline.evaluate.decisions import choose_operating_points, conformal_bands, coverage, open_labels, with_figures
from pipeline.evaluate.drift import Home
from pipeline.evaluate.figures import plots
from pipeline.evaluate.intervals import FEWEST_RESAMPLES, Estimate, binomial_limits
from pipeline.evaluate.metrics import Evaluation, Sample, evaluate
from pipeline.evaluate.outliers import Reference, fit_reference, load_reference, pooled, reference_rows
from pipeline.evaluate.units import Units, known_targets, level_sample
from pipeline.frames import FloatArray, ImageRecord, Split
from pipeline.ingest.index import Index, column_values
from pipeline.ingest.network_input import prepared_frames
from pipeline.ingest.table_reader import table_values
from pipeline.levels import LabelSet, LevelRule
from pipeline.model.bundle import (
    CONFIG,
    REFERENCE,
    Bundle,
    ExplanationCheck,
    HeatmapSupport,
    LabelCoverage,
    Manifest,
    MapSupport,
    MeasuredRefusals,
    MeasuredStates,
)
from pipeline.model.engine import Engine
from pipeline.model.ensemble import Ensemble, averaged_logits
from pipeline.model.export import finer_map_support, map_support
from pipeline.predictions import Average, Calibration, ConformalBand, DecisionRule, Interval, OperatingPoint, State
from pipeline.progress import Progress, silent, working
from pipeline.train.explanation import LESION_FRAMES, Examined, check_explanations, full_scale, lesion_masks
from pipeline.train.fit import Fitted
from pipeline.train.pooling import LevelFrames, attention_file, fit_levels
from pipeline.train.robustness import measure_robustness
from pipeline.train.training_data import TrainingData, known_frames
from pipeline.train.workspace import PreparedFrames

_COMPARED_FRAMES = 4


@dataclass(frozen=True, slots=True, eq=False)
class Assessment:
    """What was fitted on the calibration split and measured on the test split.

    Parameters
    ----------
    calibration
        Of the probabilities.
    points
        One operating point for each label.
    bands
        One for each label.
    reference
        What tells frames that are unlike those of the training.
    home
        What the bundle keeps of its data.
    robustness
        As from `measure_robustness`; None if the configuration does not ask for it.
    maps
        How the maps of each network are made, and the checks that they were put to.
    heatmap
        What the heatmaps of the bundle show, and on which scale.
    evaluation
        None if there is no test split.
    states, refusals
        How often the bundle is uncertain, and how often it refuses frames, on the same split.
    out_of_fold
        Of the frames of the train split, each scored by the networks that were trained without it; None if there are no folds.
    plots
        File names and PNG images.
    levels
        How frames become results of studies, eyes and patients, if the data can tell.
    level_reports
        What `metrics.json` holds of each level: how it was fitted, and how often it is uncertain, or why there is none.
    attention
        Content of `ATTENTION`; None if no level has any.
    """

    calibration: Calibration
    points: tuple[OperatingPoint, ...]
    bands: tuple[ConformalBand, ...]
    reference: Reference
    home: Home
    maps: tuple[MapSupport, ...]
    heatmap: HeatmapSupport
    evaluation: Evaluation | None = None
    states: MeasuredStates | None = None
    refusals: MeasuredRefusals | None = None
    out_of_fold: Evaluation | None = None
    robustness: dict[str, Any] | None = None
    plots: dict[str, bytes] = field(default_factory=dict)
    levels: tuple[LevelRule, ...] = ()
    level_reports: dict[str, Any] = field(default_factory=dict)
    attention: bytes | None = None


def judge(
    config: Config,
    data: TrainingData,
    fitted: Sequence[Fitted],
    pixels: PreparedFrames,
    index: Index,
    progress: Progress = silent,
) -> Assessment:
    """Fit on the calibration split how logits become results, and measure the results on the test split.

    Parameters
    ----------
    config
        Activation, criterion, error rate of the conformal sets, number of resamples and method of the heatmaps.
    data
        Targets, patients and splits.
    fitted
        The trained networks, which answer together.
    pixels
        All frames on the network's grid, float32 of shape (n, 1, size, size) in [0, 1].
    index
        Whose frames the bundle will know again.
    progress
        Shows what is being measured.

    Raises
    ------
    InputError
        If the calibration split lacks positives or negatives of a label.
    """
    return _Judge(config, data, fitted, pixels, index, progress).assessment()


class _Judge:
    """What the steps of `judge` share."""

    def __init__(
        self,
        config: Config,
        data: TrainingData,
        fitted: Sequence[Fitted],
        pixels: PreparedFrames,
        index: Index,
        progress: Progress,
    ) -> None:
        self._index = index
        self._config, self._data, self._fitted, self._pixels, self._progress = config, data, fitted, pixels, progress
        self._engines = [Engine(one.graph, config.train.threads) for one in fitted]
        self._ensemble = self._of(self._engines)
        self._rows = {split: data.rows(split) for split in Split}
        self._labels = LabelSet(data.labels, config.task, config.data.normal_label)
        self._known: dict[Split, tuple[FloatArray, Float64]] = {}

    def assessment(self) -> Assessment:
        """Return what `judge` returns."""
        calibration, known = working(self._progress, "calibrating", self._calibrated)
        _, seen = self._run(reference_rows(self._rows[Split.TRAIN]))
        reference = fit_reference(seen, known, calibration.groups)
        tested = working(self._progress, "measuring the test split", lambda: self._tested(calibration, reference))
        tested |= working(self._progress, "pooling frames of studies", lambda: self._levels(calibration, reference, **tested))
        out_of_fold = working(self._progress, "measuring the folds", lambda: self._out_of_fold(calibration))
        robustness = working(self._progress, "measuring robustness", self._robustness)
        maps, heatmap = working(self._progress, "checking the heatmaps", lambda: self._heatmaps(calibration))
        return Assessment(
            calibration=calibration.calibration,
            points=calibration.operating_points,
            bands=calibration.bands,
            reference=reference,
            home=self._home(calibration, known, reference),
            maps=maps,
            heatmap=heatmap,
            out_of_fold=out_of_fold,
            robustness=robustness,
            **tested,
        )

    def _calibrated(self) -> tuple[Sample, Float64]:
        """Return the calibration split with all that is fitted on it, and the pooled features of its frames."""
        config, rows = self._config, self._rows[Split.CALIBRATION]
        truth, patients, activation = self._data.targets[rows], self._data.patients(rows), config.task.activation
        logits, known = self._answers(Split.CALIBRATION)
        scaled = fit_temperatures(logits, truth, activation)
        chances = probabilities(logits, activation, scaled.temperatures, scaled.offsets)
        points = choose_operating_points(chances, truth, self._data.labels, config.evaluate.criterion)
        alpha, resamples, seed = config.evaluate.conformal_alpha, config.evaluate.bootstrap, config.train.seed
        sample = Sample(
            logits=logits,
            targets=truth,
            groups=patients,
            labels=self._data.labels,
            task=config.task,
            calibration=scaled,
            operating_points=points,
            bands=conformal_bands(chances, truth, patients, points, alpha, resamples, seed),
            normal_label=config.data.normal_label,
        )
        return replace(sample, operating_points=with_figures(points, sample)), known

    def _home(self, calibration: Sample, features: Float64, reference: Reference) -> Home:
        names = [self._data.records[row].pixel_sha256 for row in self._rows[Split.CALIBRATION]]
        return Home.of(
            self._index.sha256,
            (record.pixel_sha256 for record in self._index.records),
            calibration.logits,
            [reference.distance(one) for one in features],
            self._config.task.activation,
            patients=calibration.groups,
            names=names,
        )

    def _tested(self, calibration: Sample, reference: Reference) -> dict[str, Any]:
        """Return what is measured on the test split, by the fields of `Assessment`; nothing if there is none."""
        rows = self._rows[Split.TEST]
        if not len(rows):
            return {}
        logits, features = self._answers(Split.TEST)
        patients = self._data.patients(rows)
        sample = replace(calibration, logits=logits, targets=self._known_of_frames(rows), groups=patients)
        evaluation = evaluate(sample, self._config.evaluate.bootstrap, self._config.train.seed)
        return {
            "evaluation": evaluation,
            "states": measure_states(sample, evaluation),
            "refusals": measure_refusals(reference, features, patients),
            "plots": plots(sample),
        }

    def _levels(self, calibration: Sample, reference: Reference, **tested: Any) -> dict[str, Any]:
        """Return how frames become results of studies, eyes and patients, with their figures, by the fields of `Assessment`."""
        config = self._config
        frames = LevelFrames(
            self._data,
            run=self._answers,
            is_refused=reference.refuses,
            odds=partial(frame_odds, labels=self._labels, calibration=calibration.calibration),
            labels=self._labels,
        )
        levels, left_out = fit_levels(config, frames)
        reports: dict[str, dict[str, Any]] = {level.value: {"not_fitted": why} for level, why in left_out.items()}
        evaluations = {}
        for level, fitted in levels.items():
            reports[level.value] = fitted.report()
            units = frames.units(level, Split.TEST)
            if units.names:
                sample = level_sample(fitted.rule, units, fitted.attention)
                evaluations[level.value] = found = evaluate(sample, config.evaluate.bootstrap, config.train.seed)
                reports[level.value]["states"] = measure_states(sample, found).model_dump(mode="json")
        made = {"levels": tuple(one.rule for one in levels.values()), "attention": attention_file(levels)}
        if "evaluation" in tested:
            made["evaluation"] = replace(tested["evaluation"], levels=evaluations)
        return made | {"level_reports": reports}

    def _known_of_frames(self, rows: NDArray[np.int64]) -> Float64:
        """Return what is true of single frames, of shape (n, labels): figures of frames are about nothing else."""
        records = [self._data.records[row] for row in rows]
        return known_targets(records, self._data.targets[rows], self._labels)

    def _answers(self, split: Split) -> tuple[FloatArray, Float64]:
        """Return what `_run` does for a split; all but the train split, which is the largest, are remembered."""
        if split in self._known:
            return self._known[split]
        found = self._run(self._rows[split])
        if split is not Split.TRAIN:
            self._known[split] = found
        return found

    def _out_of_fold(self, calibration: Sample) -> Evaluation | None:
        """Measure the networks on the frames that each was trained without, at the calibration of all of them together.

        All frames of the folds together have intervals over their patients; each fold is measured by itself, too.
        """
        parts, fold_of = dict[int, list[FloatArray]](), dict[int, int | None]()
        for engine, fitted in zip(self._engines, self._fitted, strict=True):
            if len(fitted.held_out):
                batches = [self._pixels[fitted.held_out[part]] for part in engine.parts(len(fitted.held_out))]
                found = np.concatenate([engine.run(batch)[0] for batch in batches])
                for row, logits in zip(fitted.held_out.tolist(), found, strict=True):
                    parts.setdefault(row, []).append(logits)
                    fold_of[row] = fitted.fold
        if not parts:
            return None
        rows = np.array(sorted(parts), np.int64)
        members = np.stack([parts[row] for row in rows.tolist()], axis=1)
        logits = averaged_logits(members, self._config.ensemble.average, self._config.task.activation)
        patients, targets, seed = self._data.patients(rows), self._known_of_frames(rows), self._config.train.seed
        folds = np.array([fold_of[row] for row in rows.tolist()])

        def sample(places: NDArray[np.int64]) -> Sample:
            groups = tuple(patients[place] for place in places.tolist())
            return replace(calibration, logits=logits[places], targets=targets[places], groups=groups)

        whole = evaluate(sample(np.arange(len(rows))), self._config.evaluate.bootstrap, seed)
        return replace(
            whole, folds=tuple(evaluate(sample(np.flatnonzero(folds == fold)), 0, seed) for fold in np.unique(folds))
        )

    def _robustness(self) -> dict[str, Any] | None:
        """Measure the networks together away from home, beside the probe of the first one."""
        if not self._config.evaluate.robustness:
            return None

        def run(frames: FloatArray) -> FloatArray:
            return _outputs(self._ensemble, frames, member=0)[0]

        probe = self._fitted[0].probe if len(self._fitted) == 1 else None
        return measure_robustness(self._config, self._data, self._pixels, run, probe)

    def _run(self, rows: NDArray[np.int64]) -> tuple[FloatArray, Float64]:
        """Return logits of shape (n, labels) and pooled features of shape (n, channels) of some frames.

        Features are those of the first network: distances are measured in them.
        """
        parts = (self._pixels[rows[part]] for part in self._ensemble.parts(len(rows)))
        return _outputs(self._ensemble, chain.from_iterable(parts), member=0)

    def _of(self, engines: Sequence[Engine]) -> Ensemble:
        return Ensemble(engines, self._config.ensemble.average, self._config.task.activation)

    def _heatmaps(self, calibration: Sample) -> tuple[tuple[MapSupport, ...], HeatmapSupport]:
        """Choose how heatmaps are made and on which scale, and check them, all on frames of the calibration split.

        An ensemble shows the maps of the networks whose maps pass the checks, or, if none does, of all of them; what is shown
        is then checked as well.
        """
        config, rows = self._config, self._rows[Split.CALIBRATION]
        known, method, preprocessing = rows[:LESION_FRAMES], config.heatmap.method, config.network_preprocessing()
        frames, networks = np.ascontiguousarray(self._pixels[known]), [one.network for one in self._fitted]
        maps = [map_support(network, frames[:_COMPARED_FRAMES], method) for network in networks]

        def examined(places: Sequence[int], engine: Ensemble) -> Examined:
            chosen = tuple(networks[place] for place in places), tuple(maps[place] for place in places)
            return Examined(*chosen, engine, method, frames, config.train.seed)

        def checked(one: Examined) -> tuple[ExplanationCheck, ...]:
            return check_explanations(one, lambda cells: lesion_masks(self._data, known, preprocessing, cells))

        for place, engine in enumerate(self._engines):
            last, alone = maps[place], self._of([engine])
            finer = finer_map_support(networks[place], frames[:1], config.heatmap.rows) if config.heatmap.rows else None
            for made in (one for one in (finer, last) if one is not None):
                maps[place] = made
                maps[place] = made.model_copy(update={"checks": checked(examined([place], alone))})
                if maps[place].passed:
                    break
        everything = tuple(range(len(networks)))
        shown = tuple(place for place in everything if maps[place].passed) or everything
        final = examined(shown, self._ensemble)
        has = (calibration.targets == 1) & ~self._labels.is_normal
        found = has & self._are_positive(calibration)
        are_exact = all(maps[place].exact for place in shown)
        adds_up = len(networks) == 1 or (shown == everything and config.ensemble.average is Average.LOGIT)
        support = HeatmapSupport(
            method=method,
            members=shown,
            exact=are_exact and adds_up,
            computed="closed_form" if all(maps[place].computed == "closed_form" for place in shown) else "gradient",
            full_scale=full_scale(final, self._pixels, rows, found if found.any() else has),
            true_positives=int(found.sum()),
            checks=maps[0].checks if len(networks) == 1 else checked(final),
        )
        return tuple(maps), support

    def _are_positive(self, sample: Sample) -> NDArray[np.bool_]:
        """Return what the bundle would call positive, of shape (n, labels)."""
        labels, points, bands = sample.labels, sample.operating_points, sample.bands
        rule = DecisionRule.of(labels, points, bands, sample.task.activation, sample.normal_label)
        return np.asarray(rule.states(sample.probabilities) == State.POSITIVE, bool)


def evaluate_bundle(
    bundle: Bundle,
    index: Index,
    *,
    split: Split | str = Split.TEST,
    prevalence: Mapping[str, float] | None = None,
    progress: Progress = silent,
) -> Evaluation:
    """Measure a bundle on one split of an index: read the frames, run the graph on them, and compare with the labels.

    Figures are only fair for frames that training did not use: those of the test split, or of an index with other patients.

    Parameters
    ----------
    bundle, index, split, progress
        As in `bundle_sample`.
    prevalence
        How common labels are where the predictive values are to hold, in (0, 1), by label.

    Raises
    ------
    InputError
        As `bundle_sample` does, or if a prevalence is none, or of no label of the bundle.
    """
    sample, records, features = _scored(bundle, index, split, progress)
    config = Config.model_validate(yaml.safe_load(bundle.read(CONFIG)))

    def measured() -> Evaluation:
        _, targets = known_frames(index.targets(records, sample.labels), sample.task)
        levels = level_figures(bundle, config, records, targets, sample.logits, features)
        return replace(evaluate(sample, config.evaluate.bootstrap, config.train.seed, prevalence), levels=levels)

    return working(progress, "resampling patients", measured)


def compare_bundles(
    first: Bundle,
    second: Bundle,
    index: Index,
    *,
    split: Split | str = Split.TEST,
    resamples: int = 2000,
    seed: int = 0,
    progress: Progress = silent,
) -> Comparison:
    """Compare two bundles on the same frames of one split of an index, by paired bootstrap over patients.

    Parameters
    ----------
    first, second
        Bundles with the same task and labels; differences are the second minus the first.
    index, split, progress
        As in `bundle_sample`.
    resamples, seed
        Of the bootstrap; at least 100 resamples.

    Raises
    ------
    InputError
        If the bundles answer different questions, resamples are too few for an interval, or as `bundle_sample` does.
    """
    if resamples < FEWEST_RESAMPLES:
        raise InputError(
            f"The interval of a difference needs at least {FEWEST_RESAMPLES} resamples of patients. Got {resamples} instead."
        )
    check_comparable(*((bundle.manifest.task, bundle.manifest.labels) for bundle in (first, second)))
    one, other = (bundle_sample(bundle, index, split=split, progress=progress) for bundle in (first, second))
    return working(progress, "resampling patients", lambda: compare(one, other, resamples, seed))


def bundle_subgroups(
    bundle: Bundle,
    index: Index,
    by: str,
    *,
    table: Path | None = None,
    split: Split | str = Split.TEST,
    progress: Progress = silent,
) -> tuple[Subgroup, ...]:
    """Measure a bundle in groups of the frames of one split, and test how far each differs from all others.

    Parameters
    ----------
    bundle, index, split, progress
        As in `bundle_sample`.
    by
        A column of the index, such as `view_position` or `laterality`, or of the table.
    table
        A CSV file with the column and one named `patient_key` or `file`, whose cells are those of the index.

    Raises
    ------
    InputError
        If there is no such column, it has too few or too many values, or as `bundle_sample` does.
    """
    sample, records, _ = _scored(bundle, index, split, progress)
    values = column_values(records, by) if table is None else table_values(table, by, records)
    config = Config.model_validate(yaml.safe_load(bundle.read(CONFIG)))
    return working(progress, "resampling patients", lambda: subgroups(sample, values, 2000, config.train.seed))


def bundle_sample(bundle: Bundle, index: Index, *, split: Split | str = Split.TEST, progress: Progress = silent) -> Sample:
    """Score the frames of one split of an index with a bundle, and return them beside the truth, in the order of the index.

    Parameters
    ----------
    bundle, index
        As `load_bundle` and `load_index` give them.
    split
        train, tune, calibration, test or promotion.
    progress
        Shows the number of frames scored.

    Raises
    ------
    InputError
        If the index lacks a label of the bundle, has no frame with a known label in the split, or its files have changed.
    """
    return _scored(bundle, index, split, progress)[0]


def _scored(
    bundle: Bundle, index: Index, split: Split | str, progress: Progress
) -> tuple[Sample, tuple[ImageRecord, ...], Float64]:
    """Return the scored frames of a split beside the truth, what the index says of them, and their pooled features."""
    records = index.of(Split(split))
    if not records:
        raise InputError(f"The index has no frame in the split {split}. Choose another --split.")
    records, targets, logits, features = labelled_outputs(bundle, index, records, progress)
    return frames_sample(bundle.manifest, records, targets, logits), records, features


def frames_sample(
    manifest: Manifest, records: Sequence[ImageRecord], targets: Float64, logits: NDArray[np.floating[Any]]
) -> Sample:
    """Return frames to be evaluated at the decisions of a bundle; what is not known of single frames is left out.

    Parameters
    ----------
    manifest
        Of the bundle.
    records, targets, logits
        As `labelled_outputs` gives them.
    """
    return Sample(
        logits=logits,
        targets=known_targets(records, targets, manifest.label_set),
        groups=tuple(record.patient_key for record in records),
        labels=manifest.labels,
        task=manifest.task,
        calibration=manifest.calibration,
        operating_points=manifest.operating_points,
        bands=manifest.conformal.bands,
        normal_label=manifest.normal_label,
    )


def labelled_outputs(
    bundle: Bundle, index: Index, records: Sequence[ImageRecord], progress: Progress
) -> tuple[tuple[ImageRecord, ...], Float64, FloatArray, Float64]:
    """Score those of some frames of an index of which a label is known.

    Returns
    -------
    tuple
        The n frames that are left, what the index says of their labels, (n, labels), their logits, (n, labels), and the pooled
        features, (n, channels), of the network that measures distances.

    Raises
    ------
    InputError
        If the index lacks a label of the bundle, no label is known, or files have changed.
    """
    manifest = bundle.manifest
    if missing := [label for label in manifest.labels if label not in index.labels]:
        raise InputError(f"The index has no label {', '.join(missing)}. Ingest it with the bundle's labels.")
    rows, targets = known_frames(index.targets(records, manifest.labels), manifest.task)
    if not len(rows):
        raise InputError(f"No frame of these splits has a known label among {', '.join(manifest.labels)}. Label some.")
    known = tuple(records[row] for row in rows)
    frames = prepared_frames(known, index.sources, manifest.preprocessing, manifest.limits)
    engine = Ensemble.of(bundle)
    logits, features = _outputs(engine, progress(frames, "scoring frames", len(known)), manifest.outliers.member)
    return known, targets, logits, features


def level_figures(
    bundle: Bundle,
    config: Config,
    records: Sequence[ImageRecord],
    targets: Float64,
    logits: NDArray[np.floating[Any]],
    features: Float64,
) -> dict[str, Evaluation]:
    """Evaluate the results of studies, eyes and patients, by the names of the levels; without a scored frame there is none.

    Parameters
    ----------
    bundle, config
        The bundle, and the configuration that it was trained with.
    records, targets, logits, features
        As `labelled_outputs` gives them.
    """
    manifest, attention, found = bundle.manifest, bundle.attention(), {}
    if not manifest.levels:
        return {}
    reference, labels = load_reference(bundle.read(REFERENCE), manifest.outliers.threshold), manifest.label_set
    odds, refused = frame_odds(logits, labels, manifest.calibration), np.array([reference.refuses(one) for one in features])
    for rule in manifest.levels:
        units = Units(rule.level, records, targets, labels, odds, features, refused)
        if units.names:
            sample = level_sample(rule, units, attention.get(rule.level))
            found[rule.level.value] = evaluate(sample, config.evaluate.bootstrap, config.train.seed)
    return found


def _outputs(engine: Ensemble, frames: Iterable[FloatArray], member: int) -> tuple[FloatArray, Float64]:
    """Return averaged logits (n, labels), and the pooled features (n, channels) of one network, of frames (1, size, size)."""
    rest, logits, features = iter(frames), list[FloatArray](), list[Float64]()
    while batch := list(islice(rest, engine.frames_at_once)):
        answer = engine.run(np.stack(batch))
        logits.append(answer.logits)
        features += [pooled(one) for one in answer.features[member]]
    return np.concatenate(logits), np.stack(features)


def measure_states(sample: Sample, evaluation: Evaluation) -> MeasuredStates:
    """Return how often states hold the truth and how often they are uncertain, on a sample that nothing was fitted on."""
    found = coverage(sample)
    return MeasuredStates(
        frames=evaluation.frames,
        patients=evaluation.patients,
        uncertain=_interval(evaluation.uncertain),
        open_labels=_interval(open_labels(sample, evaluation.resamples, evaluation.seed)),
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
    refused = [reference.refuses(one) for one in features]
    concerned = {patient for patient, is_refused in zip(patients, refused, strict=True) if is_refused}
    low, high = binomial_limits(len(concerned), len(set(patients)))
    return MeasuredRefusals(
        frames=len(refused),
        refused_frames=sum(refused),
        patients=len(set(patients)),
        refused_patients=len(concerned),
        low=low,
        high=high,
    )


def _interval(estimate: Estimate) -> Interval:
    return Interval(estimate.value, estimate.low, estimate.high)
