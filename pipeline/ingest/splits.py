"""Divides patients into train, tune, calibration and test: grouped, stratified and seeded."""

import hashlib
from collections import Counter
from collections.abc import Collection, Hashable, Sequence
from dataclasses import dataclass

from pipeline.errors import InputError
from pipeline.frames import Split

Percent = tuple[int, int, int, int]
DEFAULT_PERCENT: Percent = (70, 10, 10, 10)


@dataclass(frozen=True, slots=True)
class _Group:
    """Patients that must stay together, the labels that occur in them, and a number that depends on seed and pixels only."""

    members: tuple[int, ...]
    patients: int
    labels: frozenset[str]
    lot: str


def parse_percent(text: str) -> Percent:
    """Read the shares of the four splits, for example 70/10/10/10.

    Raises
    ------
    InputError
        If they are not four whole numbers that add up to 100, or one other than the last is 0.
    """
    parts = text.split("/")
    if len(parts) != len(Split) or not all(part.isascii() and part.isdigit() for part in parts):
        raise InputError(f"The split must be four whole numbers, {'/'.join(Split)}, such as 70/10/10/10. Got {text} instead.")
    train, tune, calibration, test = map(int, parts)
    percent = train, tune, calibration, test
    if sum(percent) != 100 or 0 in percent[:3]:
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
        Share of the patients in train, tune, calibration and test.
    seed
        Decides between what is otherwise equal.

    Raises
    ------
    InputError
        If a label has no example in a split whose share is not 0.
    """
    groups = _join(patient_keys, strata, duplicate_groups, studies, seed)
    wanted = {split: share / 100 for split, share in zip(Split, percent, strict=True) if share}
    assigned = _stratify(groups, wanted)
    splits = [Split.TRAIN] * len(patient_keys)
    for group, split in assigned.items():
        for member in group.members:
            splits[member] = split
    check_labels(splits, strata, tuple(wanted))
    return splits


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


def check_labels(splits: Sequence[Split], strata: Sequence[Collection[str]], wanted: Sequence[Split]) -> None:
    """Check that every label that occurs has an example in every wanted split.

    Raises
    ------
    InputError
        With the first label and split without one.
    """
    present = {(label, split) for split, labels in zip(splits, strata, strict=True) for label in labels}
    for label in sorted({label for label, _ in present}):
        for split in wanted:
            if (label, split) not in present:
                raise InputError(
                    f"The label {label} has no example in the split {split}: it occurs in too few patients. Add patients "
                    "with it, change --split, or leave the label out."
                )


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


def _stratify(groups: Sequence[_Group], wanted: dict[Split, float]) -> dict[_Group, Split]:
    room = {split: share * sum(group.patients for group in groups) for split, share in wanted.items()}
    totals = Counter(label for group in groups for label in group.labels for _ in range(group.patients))
    needs = {(label, split): share * totals[label] for label in totals for split, share in wanted.items()}
    filled: set[tuple[str, Split]] = set()
    assigned: dict[_Group, Split] = {}
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
