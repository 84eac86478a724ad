"""Results of studies, eyes and patients against the truth: which pooling is best, how it is calibrated, and how good it is."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.evaluate.calibration import Float64, fit_scale, fit_steps, ratio, stored
from pipeline.evaluate.decisions import choose_operating_points, conformal_bands, with_figures
from pipeline.evaluate.metrics import Sample
from pipeline.frames import ImageRecord, LabelLevel
from pipeline.levels import LEAST, Attention, LabelSet, Level, LevelRule, Pooling, pool
from pipeline.predictions import Calibration, Task

EYES = ("R", "L")
_ORDER = tuple(LabelLevel)
_FOR = {None: LabelLevel.FRAME, Level.EYE: LabelLevel.EYE, Level.STUDY: LabelLevel.STUDY, Level.PATIENT: LabelLevel.PATIENT}
"""The largest thing for which labels may have been given that are known at a level."""


class Units:
    """The studies, eyes or patients that some frames of an index make up.

    A frame that was refused says nothing of its unit, but its labels are part of the truth, as far as they are
    `known_targets`. A unit has a finding if any of its frames has it, and lacks it if all do; it has the label that means no
    finding if all frames do, and lacks it if any does; anything else is not known. Of grades, it has the worst of its frames.

    Parameters
    ----------
    level
        What makes a unit. Frames that state neither R nor L belong to no eye.
    records
        The frames.
    targets
        Their labels, of shape (n, labels): 1, 0 or nan.
    labels
        Say what is pooled.
    odds
        Log odds of their calibrated probabilities, as from `frame_odds`, of shape (n, pooled).
    features
        Their pooled features, of shape (n, channels); None if no attention is asked for.
    is_refused
        Shape (n,): which frames are too unlike the training to be scored; None: none is.

    Attributes
    ----------
    names
        The units of which at least one frame was scored.
    patients
        The patient of each of these.
    targets
        What is true of them, of shape (units, labels): 1, 0 or nan.
    pooled_targets
        The same of what is pooled, of shape (units, pooled).
    sizes
        How many scored frames each has.
    without_frames
        How many more units have no scored frame.
    odds, features
        As given.
    """

    def __init__(
        self,
        level: Level,
        records: Sequence[ImageRecord],
        targets: Float64,
        labels: LabelSet,
        odds: Float64,
        features: NDArray[np.floating[Any]] | None = None,
        is_refused: NDArray[np.bool_] | None = None,
    ) -> None:
        refused = np.zeros(len(records), bool) if is_refused is None else is_refused
        members: dict[str, list[int]] = {}
        for row, record in enumerate(records):
            if name := unit_of(level, record):
                members.setdefault(name, []).append(row)
        known = _known(records, targets, labels, level)
        scored = {name: [row for row in rows if not refused[row]] for name, rows in members.items()}
        self.names = tuple(name for name in sorted(members) if scored[name])
        self.without_frames = len(members) - len(self.names)
        self.patients = tuple(records[members[name][0]].patient_key for name in self.names)
        self.sizes = tuple(len(scored[name]) for name in self.names)
        mirrored = labels.is_mirrored
        found = [truth(known[members[name]], mirrored) for name in self.names]
        self.pooled_targets = np.array(found).reshape(-1, len(mirrored))
        self.targets = labels.label_targets(self.pooled_targets)
        self._rows = [np.array(scored[name], np.int64) for name in self.names]
        self.labels, self.odds, self.features = labels, odds, features

    def pooled(self, pooling: Pooling, attention: Attention | None = None) -> Float64:
        """Return the pooled log odds of shape (units, pooled)."""
        scores: Float64 | None = None
        if attention is not None and self.features is not None:
            scores = stored(np.stack([attention.scores(one) for one in self.features]))
        mirrored = self.labels.is_mirrored
        found = [pool(self.odds[rows], pooling, mirrored, None if scores is None else scores[rows])[0] for rows in self._rows]
        return np.array(found).reshape(-1, len(mirrored))

    def frames(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the rows of all scored frames, and for each the position of its unit."""
        rows = np.concatenate(self._rows) if self._rows else np.empty(0, np.int64)
        return rows, np.repeat(np.arange(len(self._rows)), self.sizes)

    def scaled(self, pooled: Float64) -> tuple[Float64, Float64]:
        """Return the scales and offsets that suit pooled log odds best, each of shape (pooled,); see `LevelRule`."""
        if self.labels.are_grades:
            return fit_steps(pooled, self.pooled_targets)
        found = [fit_scale(column, target) for column, target in zip(pooled.T, self.pooled_targets.T, strict=True)]
        scales, offsets = np.array(found).reshape(-1, 2).T
        return scales, offsets

    def lacking(self) -> str:
        """Say of which label there is no unit with it, or none without it; empty if there is one of both for each."""
        for label, column in zip(self.labels.labels, self.targets.T, strict=True):
            for value, kind in ((1, "with"), (0, "without")):
                if not (column == value).any():
                    return f"{kind} {label}"
        return ""

    def counts(self) -> dict[str, Any]:
        """Return how many there are, of how many patients, and with each label, for `metrics.json`."""
        found = {label: int((column == 1).sum()) for label, column in zip(self.labels.labels, self.targets.T, strict=True)}
        return {
            "units": len(self.names),
            "patients": len(set(self.patients)),
            "without_frames": self.without_frames,
            "labels": found,
        }


def known_targets(records: Sequence[ImageRecord], targets: Float64, labels: LabelSet, level: Level | None = None) -> Float64:
    """Return what is true of frames as parts of a unit, of shape (n, labels), if labels may be those of something larger.

    A finding of a volume need not be in each of its frames, nor one of a patient in each study. So a finding that was given for
    something larger than `level` is not known, and neither is that there is one (the label that means no finding is absent).
    That there is none holds for every part. Of a grade, a part may have a milder one, but none that is worse.

    Parameters
    ----------
    records
        The frames, which say for what their labels were given.
    targets
        Their labels, of shape (n, labels): 1, 0 or nan.
    labels
        Say whether they are grades, and which one means no finding.
    level
        What is to be known; None: single frames.
    """
    return labels.label_targets(_known(records, targets, labels, level))


def _known(records: Sequence[ImageRecord], targets: Float64, labels: LabelSet, level: Level | None) -> Float64:
    """Return what is true of what is pooled, of shape (n, pooled); see `known_targets`."""
    smallest, pooled = _FOR[level], labels.pooled_targets(targets)
    given = np.array([_ORDER.index(record.label_level or smallest) for record in records], np.int64)
    is_found = pooled == np.where(labels.is_mirrored, 0, 1)
    return np.where(is_found & (given > _ORDER.index(smallest))[:, None], np.nan, pooled)


def unit_of(level: Level, record: ImageRecord) -> str:
    """Return a name of the unit to which a frame belongs; empty if it belongs to none."""
    if level is Level.STUDY:
        return record.key.study_instance_uid
    if level is Level.PATIENT:
        return record.patient_key
    return f"{record.patient_key} {record.laterality}" if record.laterality in EYES else ""


def truth(targets: Float64, is_mirrored: NDArray[np.bool_]) -> Float64:
    """Return what is true of a unit, of shape (pooled,), from what is true of its frames, of shape (n, pooled)."""
    mirrored = np.where(is_mirrored, 1 - targets, targets)
    found = np.where((mirrored == 1).any(axis=0), 1.0, np.where(np.isnan(mirrored).any(axis=0), np.nan, 0.0))
    return np.where(is_mirrored, 1 - found, found)


def tune_losses(units: Units, pooled: Float64) -> Float64:
    """Return how badly pooled log odds tell the truth of each unit, of shape (units,): the mean log loss of what is known.

    The scales and offsets are those that suit each way of pooling best, so that ways differ by what they tell and not by how
    they are calibrated. It is nan if nothing is known of a unit.
    """
    scales, offsets = units.scaled(pooled)
    moved, targets = pooled * scales + offsets, units.pooled_targets
    losses = np.where(np.isnan(targets), np.nan, np.logaddexp(0, np.where(targets == 1, -moved, moved)))
    return ratio(np.nansum(losses, axis=1), (~np.isnan(losses)).sum(axis=1))


def simplest_of_the_best(losses: Mapping[Pooling, Float64], patients: Sequence[str]) -> Pooling:
    """Return the first pooling whose mean loss lies within one standard error of the lowest.

    The rule of one standard error (Breiman et al., "Classification and Regression Trees", 1984, section 3.4.3), of the
    difference to the best one, over patients: poolings see the same units, and the units of one patient resemble each other.

    Parameters
    ----------
    losses
        Of each pooling in the same units, the simplest pooling first; nan if nothing is known of a unit.
    patients
        The patient of each unit.
    """
    best = min(losses, key=lambda pooling: float(np.nanmean(losses[pooling])))
    _, members = np.unique(np.asarray(patients, str), return_inverse=True)
    for pooling, some in losses.items():
        worse = np.nan_to_num(some - losses[best])
        sums = np.bincount(members, worse)
        if sums.sum() <= np.sqrt(len(sums)) * sums.std(ddof=1 if len(sums) > 1 else 0):
            return pooling
    return best


def fit_level_rule(
    level: Level,
    pooling: Pooling,
    units: Units,
    attention: Attention | None = None,
    *,
    criterion: str,
    alpha: float,
    resamples: int,
    seed: int,
) -> LevelRule:
    """Fit scale, offset, operating point and band of each label on units of the calibration split.

    Parameters
    ----------
    level, pooling, attention
        What is pooled, and how.
    units
        Of the calibration split; each label must have one with it, and one without it.
    criterion, alpha, resamples, seed
        As in `choose_operating_points` and `conformal_bands`.
    """
    pooled = units.pooled(pooling, attention)
    scales, offsets = units.scaled(pooled)
    chances = units.labels.probabilities(pooled * scales + offsets)
    points = choose_operating_points(chances, units.targets, units.labels.labels, criterion)
    bands = conformal_bands(chances, units.targets, units.patients, points, alpha, resamples, seed)
    rule = LevelRule(level, pooling, tuple(scales.tolist()), tuple(offsets.tolist()), points, bands)
    return replace(rule, operating_points=with_figures(points, level_sample(rule, units, attention)))


def level_sample(rule: LevelRule, units: Units, attention: Attention | None = None) -> Sample:
    """Return the results of units beside the truth, to be evaluated as frames are.

    Labels are independent of each other, unless they are grades, whose logits are the logarithms of their probabilities.
    """
    labels, calibrated = units.labels, rule.calibrated(units.pooled(rule.pooling, attention))
    return Sample(
        logits=np.log(np.maximum(labels.probabilities(calibrated), LEAST)) if labels.are_grades else calibrated,
        targets=units.targets,
        groups=units.patients,
        labels=rule.labels,
        task=labels.task if labels.are_grades else Task.MULTILABEL,
        calibration=Calibration.of(1.0, len(rule.labels)),
        operating_points=rule.operating_points,
        bands=rule.bands,
        normal_label=labels.normal_label,
        unit=rule.level.value,
    )
