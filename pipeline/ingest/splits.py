"""Divides patients into train, tune, calibration, test and, if asked for, promotion: grouped, stratified and seeded."""

import hashlib
import shlex
from collections import Counter
from collections.abc import Collection, Hashable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import InputError
from pipeline.frames import TRAINING_SPLITS, Split

Part = TypeVar("Part", Split, int)
Percent = tuple[int, ...]
DEFAULT_PERCENT: Percent = (70, 10, 10, 10)
_FEW = 5
"""With fewer patients of a label in a split, its figures are mostly chance: of 5 patients, 5 found means 57 to 100 % "
"(Wilson)."""
_FOLDS = 5


@dataclass(frozen=True, slots=True)
class _Group:
    """Patients that must stay together, the labels that occur in them, and a number that depends on seed and pixels only."""

    members: tuple[int, ...]
    patients: int
    labels: frozenset[str]
    lot: str


def parse_percent(text: str) -> Percent:
    """Read the shares of the splits, for example 70/10/10/10, or 60/10/10/10/10 with a split for promotion.

    Raises
    ------
    InputError
        If they are not four or five whole numbers that add up to 100, or one other than that of test is 0.
    """
    parts = text.split("/")
    if len(parts) not in (len(TRAINING_SPLITS), len(Split)) or not all(part.isascii() and part.isdigit() for part in parts):
        raise InputError(
            f"The split must be four whole numbers, {'/'.join(TRAINING_SPLITS)}, such as 70/10/10/10, or five, "
            f"the last of them for {Split.PROMOTION}. Got {text} instead."
        )
    percent = tuple(map(int, parts))
    if sum(percent) != 100 or 0 in (*percent[:3], *percent[4:]):
        raise InputError(f"The shares of the split must add up to 100, and only that of test may be 0. Got {text} instead.")
    return percent


def assign_splits(
    patient_keys: Sequence[str],
    strata: Sequence[Collection[str]],
    duplicate_groups: Sequence[str],
    studies: Sequence[str],
    percent: Percent = DEFAULT_PERCENT,
    seed: int = 0,
) -> list[Split]:
    """Assign every frame to a split; the result does not depend on the order of the frames, nor on the patients' names.

    Iterative stratification: the rarest label first, each group of patients goes to the split that needs that label most
    (Sechidis, Tsoumakas, Vlahavas, "On the stratification of multi-label data", ECML PKDD 2011), the splits that have none
    of it yet before all others once the groups run short.

    Parameters
    ----------
    patient_keys
        The patient of each frame; a patient never crosses splits.
    strata
        The labels that are present in each frame; empty if none is known.
    duplicate_groups
        Hash of each frame's pixels; patients that share one stay together.
    studies
        Study of each frame; patients that share one stay together, for example if only some of its files name the patient.
    percent
        Share of the patients in train, tune, calibration, test and, if there is a fifth number, promotion.
    seed
        Decides between what is otherwise equal.

    Raises
    ------
    InputError
        If a label has no example in a split whose share is not 0.
    """
    groups = _join(patient_keys, strata, duplicate_groups, studies, seed)
    wanted = {split: share / 100 for split, share in zip(Split, percent, strict=False) if share}
    assigned = _stratify(groups, wanted)
    splits = [Split.TRAIN] * len(patient_keys)
    for group, split in assigned.items():
        for member in group.members:
            splits[member] = split
    check_labels(splits, strata, patient_keys, tuple(wanted))
    return splits


def assign_folds(
    patient_keys: Sequence[str],
    strata: Sequence[Collection[str]],
    duplicate_groups: Sequence[str],
    studies: Sequence[str],
    folds: int,
    seed: int = 0,
) -> list[int]:
    """Assign every frame to one of `folds` folds of about the same number of patients, as `assign_splits` does to splits.

    Parameters
    ----------
    patient_keys, strata, duplicate_groups, studies, seed
        As in `assign_splits`.
    folds
        How many; each gets a number from 0.

    Raises
    ------
    InputError
        If there are fewer patients than folds, or a fold holds all there is of a label.
    """
    groups = _join(patient_keys, strata, duplicate_groups, studies, seed)
    if len(groups) < folds:
        raise InputError(f"{folds} folds need {folds} patients or more, and there are {len(groups)}. Choose fewer folds.")
    assigned = _stratify(groups, dict.fromkeys(range(folds), 1 / folds))
    for label in sorted({label for group in groups for label in group.labels}):
        if len({fold for group, fold in assigned.items() if label in group.labels}) < 2:
            raise InputError(
                f"The label {label} occurs in too few patients: one fold holds all there is of it. Add patients with it, or "
                "leave the label out."
            )
    numbers = [0] * len(patient_keys)
    for group, fold in assigned.items():
        for member in group.members:
            numbers[member] = fold
    return numbers


def divide_validation(
    splits: Sequence[Split],
    patient_keys: Sequence[str],
    strata: Sequence[Collection[str]],
    duplicate_groups: Sequence[str],
    studies: Sequence[str],
    seed: int = 0,
) -> list[Split]:
    """Return given splits in which half of the patients of tune, stratified as in `assign_splits`, are those of calibration.

    Parameters
    ----------
    splits
        Of each frame, as given: tune stands for a validation split, of which public tables have one.
    patient_keys, strata, duplicate_groups, studies, seed
        As in `assign_splits`.
    """
    rows = [row for row, split in enumerate(splits) if split is Split.TUNE]
    keys, pixels, of_study = ([column[row] for row in rows] for column in (patient_keys, duplicate_groups, studies))
    groups = _join(keys, [strata[row] for row in rows], pixels, of_study, seed)
    assigned = _stratify(groups, {Split.TUNE: 0.5, Split.CALIBRATION: 0.5})
    divided = list(splits)
    for group, split in assigned.items():
        for member in group.members:
            divided[rows[member]] = split
    return divided


def check_given_splits(
    splits: Sequence[Split], patient_keys: Sequence[str], duplicate_groups: Sequence[str], studies: Sequence[str]
) -> None:
    """Check splits that were given: no patient, no pixels and no study in two of them.

    Raises
    ------
    InputError
        With the number of patients, of duplicates, or of studies that cross.
    """
    if crossing := _crossing(splits, patient_keys):
        raise InputError(f"In the given splits {crossing} patients occur in more than one. Keep each patient in one split.")
    if crossing := _crossing(splits, duplicate_groups):
        raise InputError(
            f"In the given splits {crossing} images occur with the same pixels in more than one. Leave the duplicates out, or "
            "keep them in one split."
        )
    if crossing := _crossing(splits, studies):
        raise InputError(f"In the given splits {crossing} studies occur in more than one. Keep each study in one split.")


def check_labels(
    splits: Sequence[Split],
    strata: Sequence[Collection[str]],
    patient_keys: Sequence[str],
    wanted: Sequence[Split],
    are_given: bool = False,
) -> None:
    """Check that every label that occurs has an example in every wanted split.

    Raises
    ------
    InputError
        With the first label and split without one, in how many patients the label occurs, and what can be done.
    """
    for label, counts in _patients_of(splits, strata, patient_keys).items():
        for split in wanted:
            if not counts[split]:
                patients = len({key for key, labels in zip(patient_keys, strata, strict=True) if label in labels})
                raise InputError(
                    f"The label {label} has no example in the split {split}: it occurs in {patients} "
                    f"{'patient' if patients == 1 else 'patients'}. {_advice(label, patients, wanted, are_given)}"
                )


def _advice(label: str, patients: int, wanted: Sequence[Split], are_given: bool) -> str:
    """Return what to do about a label that some split has no example of."""
    leave_out = f"Add patients with it, or leave it out with --leave-out {shlex.quote(label)}."
    if are_given:
        return f"Change the column split of the table, or leave the label out with --leave-out {shlex.quote(label)}."
    if patients >= len(wanted):
        return f"Some of them share images or studies and stay together. {leave_out}"
    if Split.TEST in wanted and patients == len(wanted) - 1:
        return (
            f"{len(wanted)} splits need one each. Give --split 60/20/20/0, and measure by cross-validation (train.folds=2). "
            f"Otherwise: {leave_out}"
        )
    return f"Each of the {len(wanted)} splits needs one. {leave_out}"


def strata_of(targets: NDArray[np.float64], labels: Sequence[str]) -> list[list[str]]:
    """Return for each frame what every split should have an example of: its labels, and the absence of those partly unknown.

    If it is always known whether a label is present, frames without it are never short.

    Parameters
    ----------
    targets
        Of shape (frames, labels): 1 if the label is present, 0 if it is absent, nan if that is unknown.
    labels
        Their names.
    """
    partly = np.flatnonzero(np.isnan(targets).any(axis=0)).tolist()
    return [
        [label for label, target in zip(labels, row, strict=True) if target == 1]
        + [f"{labels[place]} (known to be absent)" for place in partly if row[place] == 0]
        for row in targets
    ]


def few_patients(
    splits: Sequence[Split], strata: Sequence[Collection[str]], patient_keys: Sequence[str], folds: int = 1
) -> str:
    """Return a sentence on a label of which a split has too few patients, and on splits and folds that fit; empty if none has.

    Parameters
    ----------
    splits, strata, patient_keys
        Of each frame, as in `assign_splits`.
    folds
        How many folds measure on the train split already.
    """
    wanted = [split for split in Split if split in splits]
    table = _patients_of(splits, strata, patient_keys)
    few = {
        label: sum(counts.values())
        for label, counts in table.items()
        if min(counts[split] for split in wanted[1:] or wanted) < _FEW
    }
    if not few:
        return ""
    rarest = min(few, key=lambda label: (few[label], label))
    others = (
        f" {len(few) - 1} other labels are rare, too." if len(few) > 2 else " So is one other label." if len(few) == 2 else ""
    )
    counts = ", ".join(f"{table[rarest][split]} in {split}" for split in wanted)
    percent = fitting_percent(few[rarest])
    proposed = min(_FOLDS, table[rarest][Split.TRAIN])
    proposal = f"--split {'/'.join(map(str, percent))}"
    validation = f"cross-validation (train.folds={proposed}), which tests on every patient of train"
    if folds > 1:
        proposal = f"The figures of {folds} folds rest on {table[rarest][Split.TRAIN]} of them."
    elif percent[3]:
        proposal = f"{proposal} gives each split at least {_FEW}; or measure by {validation}."
    elif proposed > 1:
        proposal = f"Measure by {validation}" + (f"; {proposal} leaves more of them for it." if Split.TEST in wanted else ".")
    else:
        proposal = "Add patients with it."
    return (
        f"The label {rarest} occurs in only {few[rarest]} patients: {counts}. Operating points and figures from so few are "
        f"mostly chance. {proposal}{others}"
    )


def fitting_percent(patients: int) -> Percent:
    """Return shares with which tune, calibration and test have at least five patients of a label, train 40 % or more.

    If that is impossible, test has none, and tune and calibration get a fifth each: the figures then come from
    cross-validation.
    """
    share = next((share for share in (10, 15, 20) if share * patients >= 100 * _FEW), 0)
    return (100 - 3 * share, share, share, share) if share else (60, 20, 20, 0)


def _patients_of(
    splits: Sequence[Split], strata: Sequence[Collection[str]], patient_keys: Sequence[str]
) -> dict[str, Counter[Split]]:
    """Return for each label how many patients it occurs in, by split; in the order of their names."""
    found = {(label, key, split) for split, key, labels in zip(splits, patient_keys, strata, strict=True) for label in labels}
    table: dict[str, Counter[Split]] = {label: Counter() for label in sorted({label for label, _, _ in found})}
    for label, _, split in found:
        table[label][split] += 1
    return table


def _crossing(splits: Sequence[Split], keys: Sequence[str]) -> int:
    pairs = set(zip(keys, splits, strict=True))
    return sum(count > 1 for count in Counter(key for key, _ in pairs).values())


def _join(
    patient_keys: Sequence[str],
    strata: Sequence[Collection[str]],
    duplicate_groups: Sequence[str],
    studies: Sequence[str],
    seed: int,
) -> list[_Group]:
    """Join patients that share pixels or a study (union-find); largest groups first, ties in random order."""
    parents: dict[Hashable, Hashable] = {}

    def find(node: Hashable) -> Hashable:
        while (parent := parents.setdefault(node, node)) != node:
            parents[node] = node = parents[parent]
        return node

    for patient, pixels, study in zip(patient_keys, duplicate_groups, studies, strict=True):
        parents[find(("patient", patient))] = find(("pixels", pixels))
        parents[find(("patient", patient))] = find(("study", study))
    members: dict[Hashable, list[int]] = {}
    for number, patient in enumerate(patient_keys):
        members.setdefault(find(("patient", patient)), []).append(number)
    groups = [
        _Group(
            tuple(numbers),
            len({patient_keys[number] for number in numbers}),
            frozenset(label for number in numbers for label in strata[number]),
            _lot(min(duplicate_groups[number] for number in numbers), seed),
        )
        for numbers in members.values()
    ]
    return sorted(groups, key=lambda group: (-group.patients, group.lot))


def _lot(pixels: str, seed: int) -> str:
    return hashlib.sha256(f"{seed} {pixels}".encode()).hexdigest()


def _stratify(groups: Sequence[_Group], wanted: dict[Part, float]) -> dict[_Group, Part]:
    room = {split: share * sum(group.patients for group in groups) for split, share in wanted.items()}
    totals = Counter(label for group in groups for label in group.labels for _ in range(group.patients))
    needs = {(label, split): share * totals[label] for label in totals for split, share in wanted.items()}
    filled: set[tuple[str, Part]] = set()
    assigned: dict[_Group, Part] = {}
    left = list(groups)
    while left:
        counts = Counter(label for group in left for label in group.labels)
        rarest = min(counts, key=lambda label: (counts[label], label), default="")
        batch = [group for group in left if rarest in group.labels] if counts else left
        for position, group in enumerate(batch):
            empty = [split for split in wanted if (rarest, split) not in filled]
            choice = empty if counts and len(batch) - position <= len(empty) else list(wanted)
            split = max(choice, key=lambda split: (needs.get((rarest, split), 0.0), room[split], wanted[split]))
            assigned[group] = split
            room[split] -= group.patients
            for label in group.labels:
                needs[label, split] -= group.patients
                filled.add((label, split))
        left = [group for group in left if group not in assigned]
    return assigned
