"""Compares two bundles on the same frames, and groups of patients with all others: differences with intervals by patient."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import InputError
from pipeline.evaluate.calibration import Float64, brier_score, log_losses, ratio
from pipeline.evaluate.intervals import FEWEST, LEAST_SPREAD, Estimate, binomial_limits, bootstrap, estimate, resampled
from pipeline.evaluate.metrics import LabelColumn, Sample, auroc, curve
from pipeline.predictions import FEW_PATIENTS, Interval, State, Task

Value = TypeVar("Value")
Test = TypeVar("Test", bound=Hashable)

COMPARED = ("auroc", "log_loss", "brier", "sensitivity", "specificity")
"""Of each label; of `log_loss` and `brier` less is better."""


@dataclass(frozen=True, slots=True)
class Difference(Interval):
    """The second figure minus the first, with its 95 % interval; None instead of limits if no interval is honest.

    Parameters
    ----------
    first, second
        The figures themselves; None if one is not defined.
    """

    first: float | None
    second: float | None


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two bundles on the same frames.

    Parameters
    ----------
    labels
        The differences of each label, by the names in `COMPARED`.
    macro
        Those of the means over the labels; `log_loss` is that of whole frames, and `accuracy` that of the most probable label,
        unless the task is multilabel.
    frames, patients
        How many were compared.
    resamples, seed
        Of the bootstrap.
    """

    labels: Mapping[str, Mapping[str, Difference]]
    macro: Mapping[str, Difference]
    frames: int
    patients: int
    resamples: int
    seed: int

    def to_json(self) -> dict[str, Any]:
        """Return everything as JSON has it."""
        return asdict(self)


def compare(first: Sample, second: Sample, resamples: int = 2000, seed: int = 0) -> Comparison:
    """Compare two bundles by a paired bootstrap over patients: each resample draws the same patients for both.

    The intervals are those of `bootstrap`. If AUROC, sensitivity or specificity is the same in every resample, as it is if
    both bundles make no mistake, the limits are those of a proportion of which no case was seen among so many patients: as
    often as that they might still differ, either way. The difference is exactly 0 if all logits and decisions are equal, and
    that of AUROC if the bundles rank all frames alike, as one does that was only calibrated again.

    Parameters
    ----------
    first, second
        The same frames in the same order, with the logits and decisions of either bundle.
    resamples, seed
        Of the bootstrap.

    Raises
    ------
    InputError
        If truth, patients or labels are not the same.
    """
    check_comparable((first.task, first.labels), (second.task, second.labels))
    if tuple(first.groups) != tuple(second.groups) or not np.array_equal(first.targets, second.targets, equal_nan=True):
        raise InputError(
            "The two samples are not of the same frames. Score the same frames in the same order with both bundles."
        )
    samples = (first, second)
    columns = [sample.columns for sample in samples]
    losses = [log_losses(one.logits, one.targets, one.task.activation, one.calibration) for one in samples]
    known = ~np.isnan(losses[0])
    fewest = {column.label: min(column.patients) for column in columns[0]}

    def figures(which: int, weights: Float64) -> dict[tuple[str, str], Float64]:
        labels = {column.label: _figures(column, weights) for column in columns[which]}
        found = {(label, name): figure for label, one in labels.items() for name, figure in one.items()}
        found |= {("", name): np.mean([one[name] for one in labels.values()], axis=0) for name in COMPARED}
        found["", "log_loss"] = ratio(weights[:, known] @ losses[which][known], weights[:, known].sum(axis=1))
        if choice := samples[which].choice:
            found["", "accuracy"] = choice.measure(weights)["accuracy"]
        return found

    def differences(weights: Float64) -> dict[tuple[str, str], Float64]:
        one, other = (figures(which, weights) for which in (0, 1))
        return {key: other[key] - one[key] for key in one}

    whole = np.ones((1, len(first.groups)))
    values = [figures(which, whole) for which in (0, 1)]
    rests = {(label, name): fewest.get(label, min(fewest.values())) for label, name in values[0] if name in _BOTH_KINDS}
    found = bootstrap(differences, first.groups, resamples, seed, rests)
    equal = np.array_equal(first.logits, second.logits) and np.array_equal(first.states, second.states)
    alike = {one.label: _rank_alike(one, other) for one, other in zip(*columns, strict=True)}

    def difference(key: tuple[str, str]) -> Difference:
        (one, other), low, high = (float(value[key][0]) for value in values), found[key].low, found[key].high
        if found[key].value == 0 and low is None:
            label, name = key
            is_same = equal or (name == "auroc" and (alike[label] if label else all(alike.values())))
            reach = 0.0 if is_same else _unseen(key, columns[0])
            low, high = (None, None) if reach is None else (0.0 - reach, reach)
        return Difference(found[key].value, low, high, _defined(one), _defined(other))

    return Comparison(
        labels={label: {name: difference((label, name)) for name in COMPARED} for label in first.labels},
        macro={name: difference((label, name)) for label, name in values[0] if not label},
        frames=len(first.groups),
        patients=len(set(first.groups)),
        resamples=resamples,
        seed=seed,
    )


def check_comparable(first: tuple[Task, Sequence[str]], second: tuple[Task, Sequence[str]]) -> None:
    """Raise if two bundles, given by their tasks and labels, answer different questions.

    Raises
    ------
    InputError
        If tasks, labels or their order differ.
    """
    if first[0] is not second[0] or tuple(first[1]) != tuple(second[1]):
        one, other = (f"{task} of {', '.join(labels)}" for task, labels in (first, second))
        raise InputError(
            f"The bundles answer different questions: {one}, and {other}. Compare bundles with the same task and the same "
            "labels in the same order."
        )


_BOTH_KINDS = {"auroc", "sensitivity", "specificity"}


def _figures(column: LabelColumn, weights: Float64) -> dict[str, Float64]:
    """Return the figures of `COMPARED`, each of shape (r,)."""
    known, present = weights[:, column.rows], column.targets == 1
    chances = np.clip(np.where(present, column.probabilities, 1 - column.probabilities), np.finfo(np.float64).tiny, 1)
    return {
        "auroc": auroc(curve(column.probabilities, column.targets, known)),
        "log_loss": ratio(known @ -np.log(chances), known.sum(axis=1)),
        "brier": brier_score(column.probabilities, column.targets, known),
        "sensitivity": _part(known, present, column.states == State.POSITIVE),
        "specificity": _part(known, ~present, column.states == State.NEGATIVE),
    }


def _part(weights: Float64, among: NDArray[np.bool_], hits: NDArray[np.bool_]) -> Float64:
    return ratio(weights[:, among] @ hits[among].astype(np.float64), weights[:, among].sum(axis=1))


def _rank_alike(first: LabelColumn, second: LabelColumn) -> bool:
    """Return whether one label has the same order of frames in both, with the same ties."""
    one, other = (np.unique(column.probabilities, return_inverse=True)[1] for column in (first, second))
    return np.array_equal(one, other)


def _unseen(key: tuple[str, str], columns: Sequence[LabelColumn]) -> float | None:
    """Return how large a difference of proportions, or of AUROC, may be of which none was seen; None for other figures."""
    label, name = key
    kinds: Mapping[str, tuple[int, ...]] = {"sensitivity": (0,), "specificity": (1,), "auroc": (0, 1)}
    counts = [column.patients[kind] for column in columns if label in ("", column.label) for kind in kinds.get(name, ())]
    return binomial_limits(0, min(counts))[1] if counts and min(counts) >= FEWEST else None


def _defined(value: float) -> float | None:
    return None if np.isnan(value) else value


@dataclass(frozen=True, slots=True)
class Subgroup:
    """The patients with one value of a column, beside all others.

    Parameters
    ----------
    value
        Of the column.
    frames, patients
        How many have it.
    labels
        By label, then `auroc`, `sensitivity` and `specificity`: the figure in the group with its interval.
    differences
        The same, as the figure in the group minus that in all others.
    p_values
        Of these differences: how often a difference so large would come about by chance, corrected for the number of tests
        (Holm 1979); None if a difference is not defined, or is the same in all resamples.
    few
        The labels with fewer than `FEW_PATIENTS` patients in the group who have them, or who do not.
    """

    value: str
    frames: int
    patients: int
    labels: Mapping[str, Mapping[str, Estimate]]
    differences: Mapping[str, Mapping[str, Difference]]
    p_values: Mapping[str, Mapping[str, float | None]]
    few: tuple[str, ...]


SUBGROUP_FIGURES = ("auroc", "sensitivity", "specificity")
MOST_SUBGROUPS = 20


def subgroups(sample: Sample, values: Sequence[str], resamples: int = 2000, seed: int = 0) -> tuple[Subgroup, ...]:
    """Compare the figures of each group of frames with those of all others, by resampled patients.

    Figures of a group have the intervals of `evaluate`. Differences are resampled, so a patient may have frames in several
    groups. They are tested by their resamples, moved to 0 (Efron and Tibshirani 1993, chapter 16), and p-values are
    corrected over all groups, labels and figures (Holm 1979).

    Parameters
    ----------
    sample
        The frames.
    values
        The value of each frame; frames without one have an empty text, a group like any other.
    resamples, seed
        Of the bootstrap.

    Raises
    ------
    InputError
        If there are fewer than two groups, or more than `MOST_SUBGROUPS`.
    """
    names = sorted(set(values))
    if not 2 <= len(names) <= MOST_SUBGROUPS:
        raise InputError(
            f"The column has {len(names)} different value{'s' * (len(names) != 1)} in these frames; a subgroup table needs "
            f"2 to {MOST_SUBGROUPS}. Put numbers such as ages into ranges in a table of your own, and give it by --table."
        )
    columns, all_values = sample.columns, np.asarray(values, dtype=str)
    parts = {name: sample.rows(np.flatnonzero(all_values == name)).columns for name in names}
    others = {name: sample.rows(np.flatnonzero(all_values != name)).columns for name in names}

    def figures(weights: Float64) -> dict[tuple[str, str, str], Float64]:
        found: dict[tuple[str, str, str], Float64] = {}
        for name in names:
            for column in columns:
                own, rest = (_figures(column, weights * part) for part in (all_values == name, all_values != name))
                found |= {(name, column.label, figure): own[figure] - rest[figure] for figure in SUBGROUP_FIGURES}
        return found

    rests = {
        (name, own.label, figure): min(*own.patients, *rest.patients)
        for name in names
        for own, rest in zip(parts[name], others[name], strict=True)
        for figure in SUBGROUP_FIGURES
    }
    found, drawn = resampled(figures, sample.groups, resamples, seed)
    chances = _corrected({key: _chance(found[key], drawn[key], rests[key]) for key in found})
    own_figures = {name: {column.label: column.closed_forms() for column in parts[name]} for name in names}
    rest_figures = {name: {column.label: column.closed_forms() for column in others[name]} for name in names}

    def difference(key: tuple[str, str, str]) -> Difference:
        name, label, figure = key
        one = estimate(found[key], drawn[key], rests[key])
        first, second = (side[name][label][figure].value for side in (rest_figures, own_figures))
        return Difference(one.value, one.low, one.high, first, second)

    def each(make: Callable[[tuple[str, str, str]], Value], name: str) -> dict[str, dict[str, Value]]:
        return {label: {figure: make((name, label, figure)) for figure in SUBGROUP_FIGURES} for label in sample.labels}

    return tuple(
        Subgroup(
            value=name,
            frames=int((all_values == name).sum()),
            patients=len(set(np.asarray(sample.groups, dtype=str)[all_values == name])),
            labels=each(lambda key: own_figures[key[0]][key[1]][key[2]], name),
            differences=each(difference, name),
            p_values=each(lambda key: chances[key], name),
            few=tuple(column.label for column in parts[name] if min(column.patients) < FEW_PATIENTS),
        )
        for name in names
    )


def _chance(value: float, drawn: Float64, patients: int) -> float | None:
    """Return how often resamples, moved to 0, lie as far from it as the value; None if that is not defined.

    Resamples that are all alike show nothing of how a difference would vary, so one that is not 0 has no p-value then.
    """
    defined = drawn[~np.isnan(drawn)]
    if np.isnan(value) or patients < FEWEST or not len(defined):
        return None
    if np.ptp(defined) <= LEAST_SPREAD and value != 0:
        return None
    return float((1 + (np.abs(defined - value) >= abs(value)).sum()) / (1 + len(defined)))


def _corrected(chances: Mapping[Test, float | None]) -> dict[Test, float | None]:
    """Return p-values for all tests together (Holm, "A simple sequentially rejective multiple test procedure", 1979)."""
    ordered = sorted((chance, number, key) for number, (key, chance) in enumerate(chances.items()) if chance is not None)
    corrected: dict[Test, float | None] = dict.fromkeys(chances)
    least = 0.0
    for rank, (chance, _, key) in enumerate(ordered):
        least = max(least, min(1.0, chance * (len(ordered) - rank)))
        corrected[key] = least
    return corrected
