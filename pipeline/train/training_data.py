"""The training data: the rows of an index that a configuration can use, with their targets, checked before any work."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.config import Config, DataSection
from pipeline.errors import ConfigError, InputError
from pipeline.frames import TRAINING_SPLITS, ImageRecord, Split
from pipeline.imaging.dicom.terms import is_expected_modality, is_expected_view
from pipeline.ingest.index import Index
from pipeline.ingest.spelling import examples
from pipeline.ingest.splits import assign_folds, few_patients, strata_of
from pipeline.predictions import Task
from pipeline.settings import IntendedUse

FITTED_SPLITS = (Split.TRAIN, Split.TUNE, Split.CALIBRATION)


@dataclass(frozen=True, slots=True, eq=False)
class TrainingData:
    """Labelled frames of all four splits.

    Parameters
    ----------
    labels
        In the order of the outputs.
    records
        Rows of the index, in its order.
    targets
        Of shape (n, labels): 1, 0 or nan.
    sources
        The index's source folders.
    frames_without_label
        How many frames of the index are left out, since nothing is known of these labels in them.
    """

    labels: tuple[str, ...]
    records: tuple[ImageRecord, ...]
    targets: NDArray[np.float64]
    sources: tuple[Path, ...]
    frames_without_label: int = 0

    def rows(self, split: Split) -> NDArray[np.int64]:
        """Return the positions of a split's frames."""
        return np.array([row for row, record in enumerate(self.records) if record.split is split], np.int64)

    def patients(self, rows: NDArray[np.int64]) -> tuple[str, ...]:
        """Return the patient of each of these frames."""
        return tuple(self.records[row].patient_key for row in rows)

    def folds(self, rows: NDArray[np.int64], folds: int, seed: int) -> NDArray[np.int64]:
        """Return the fold of each of these frames, by patient and stratified, as `assign_folds` does it.

        Raises
        ------
        InputError
            If there are fewer patients than folds, or a fold holds all there is of a label.
        """
        records = [self.records[row] for row in rows]
        assigned = assign_folds(
            [record.patient_key for record in records],
            strata_of(self.targets[rows], self.labels),
            [record.pixel_sha256 for record in records],
            [record.key.study_instance_uid for record in records],
            folds,
            seed,
        )
        return np.array(assigned, np.int64)

    def counts(self, split: Split) -> dict[str, Any]:
        """Return frames and patients of a split, and in how many each label holds or is not known, for `metrics.json`."""
        rows = self.rows(split)
        targets, patients = self.targets[rows], len(set(self.patients(rows)))
        labels, unknown = (
            {label: int(number) for label, number in zip(self.labels, chosen.sum(axis=0), strict=True)}
            for chosen in (targets == 1, np.isnan(targets))
        )
        return {"frames": len(rows), "patients": patients, "labels": labels, "unknown": unknown}

    def label_levels(self) -> dict[str, int]:
        """Return for how many frames the labels were given for a frame, an instance, an eye, a study or a patient."""
        return dict(Counter(record.label_level.value for record in self.records if record.label_level))

    def rare_label(self, folds: int) -> str:
        """Return a sentence on a label that too few patients have to measure by; empty if there is none."""
        splits = [record.split for record in self.records]
        return few_patients(splits, strata_of(self.targets, self.labels), self.patients(np.arange(len(splits))), folds)

    def frames_without_patient(self) -> int:
        """Return how many frames name no patient, so that each of their studies counts as a patient of its own."""
        return sum(record.patient_key == record.key.study_instance_uid for record in self.records)


def select_training_data(config: Config, index: Index) -> TrainingData:
    """Return the frames and targets of an index that a configuration can learn from.

    What is not known is never taken for absent. If exactly one label holds in a frame and it is known, the others follow from
    it; frames of which nothing is known are left out, and so is the split for promotion.

    Raises
    ------
    ConfigError
        If the labels of the configuration do not fit the index or the task.
    InputError
        If a frame has several labels, or none, though exactly one must hold; if a fitted split has no frame with a label, or
        none without it; or if frames are of another modality or view than the model is meant for.
    """
    labels = _labels(config, index)
    seen = [record for record in index.records if record.split in TRAINING_SPLITS]
    targets = index.targets(seen, labels)
    if config.task is not Task.MULTILABEL:
        _check_one_label(targets == 1, np.isnan(targets), labels, seen)
    rows, targets = known_frames(targets, config.task)
    records = tuple(seen[row] for row in rows)
    data = TrainingData(labels, records, targets, index.sources, len(seen) - len(rows))
    _check_intended_use(data, config.data)
    for split in FITTED_SPLITS:
        _check_split(data, split)
    return data


def order_of_urgency(config: Config, labels: Sequence[str]) -> tuple[str, ...]:
    """Return those of the labels whose urgency is known, the most urgent first.

    Without a setting, grades are the more urgent the further they are from the label that means no finding.
    """
    data, normal = config.data, config.data.normal_label
    if config.task is Task.ORDINAL and not data.urgency and normal in labels:
        return tuple(label for label in (labels[::-1] if labels[0] == normal else labels) if label != normal)
    return tuple(label for label in data.urgency if label in labels)


def known_frames(targets: NDArray[np.float64], task: Task) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return the rows of which something is known, and their targets.

    If exactly one label holds in a frame, the one that is known to hold settles the others. Without it the frame counts as
    unknown, even if some labels are known to be absent.

    Parameters
    ----------
    targets
        Of shape (n, labels): 1, 0 or nan.
    task
        Says whether labels exclude each other.
    """
    present = targets == 1
    is_known = ~np.isnan(targets).all(axis=1) if task is Task.MULTILABEL else present.any(axis=1)
    known = targets if task is Task.MULTILABEL else present.astype(np.float64)
    return np.flatnonzero(is_known), known[is_known]


def _labels(config: Config, index: Index) -> tuple[str, ...]:
    data, labels = config.data, config.data.labels or index.labels
    known = ", ".join(index.labels)
    faults = [f"data.labels: the index has no label {label}; it has {known}." for label in labels if label not in index.labels]
    if len(labels) < (1 if config.task is Task.MULTILABEL else 2):
        faults.append(
            f"data.labels: training needs two labels or more; the index has {known or 'none'}. "
            "Ingest again with --labels or --label-from, and studies of each label"
            + (", or set task=multilabel if its absence is a label as well." if labels else ".")
        )
    elif config.task is Task.BINARY and len(labels) > 2:
        faults.append(
            f"task: binary needs exactly two labels; there are {len(labels)}: {', '.join(labels)}. Name two in data.labels, or "
            "set task=multiclass."
        )
    elif config.task is Task.ORDINAL:
        faults += _faults_of_grades(data, labels)
    if labels and data.normal_label is not None and data.normal_label not in labels:
        faults.append(
            f"data.normal_label: {data.normal_label} is not one of the labels {', '.join(labels)}. "
            f"Say which one means no finding, for example data.normal_label={labels[0]}, "
            "or set data.normal_label=null."
        )
    faults += _faults_of_urgency(data, labels)
    if faults:
        raise ConfigError(faults)
    return tuple(labels)


def _faults_of_urgency(data: DataSection, labels: Sequence[str]) -> list[str]:
    """Return the faults in the order of urgency; it may name findings that this data set does not have."""
    unnamed = [label for label in labels if label not in (*data.urgency, data.normal_label)]
    faults = [
        f"data.urgency: the data have no label {label}. Did you mean {near[0]}?"
        for label in data.urgency
        if label not in labels and (near := get_close_matches(label, unnamed, n=1))
    ]
    if data.normal_label in data.urgency:
        faults.append(f"data.urgency: {data.normal_label} means no finding, and is never urgent. Leave it out.")
    return faults


def _faults_of_grades(data: DataSection, labels: Sequence[str]) -> list[str]:
    """Return what is wrong with labels that should be grades in their order."""
    if not data.labels:
        return [
            "data.labels: task=ordinal needs the grades in their order, and an index has none. "
            f"Give it, for example data.labels=[{', '.join(labels)}]."
        ]
    faults = []
    if len(labels) == 2:
        faults.append("task: ordinal needs three grades or more. Set task=binary for two labels.")
    if data.normal_label in labels[1:-1]:
        faults.append(
            f"data.normal_label: {data.normal_label} lies between other grades in data.labels. Put the grades in their order; "
            "the one that means no finding comes first or last."
        )
    return faults


def _check_one_label(
    present: NDArray[np.bool_], unknown: NDArray[np.bool_], labels: Sequence[str], records: Sequence[ImageRecord]
) -> None:
    """Refuse frames in which several labels hold, or certainly none, though exactly one must."""
    number = present.sum(axis=1)
    several, none = np.flatnonzero(number > 1), np.flatnonzero((number == 0) & ~unknown.any(axis=1))
    if several.size:
        raise InputError(
            f"{several.size} frames have more than one of the labels {', '.join(labels)}: "
            f"{examples(records[row].source for row in several.tolist())}. "
            "Set task=multilabel if labels can occur together; otherwise correct the labels."
        )
    if none.size:
        raise InputError(
            f"{none.size} frames have none of the labels {', '.join(labels)}: "
            f"{examples(records[row].source for row in none.tolist())}. "
            "Name their label in data.labels, set task=multilabel, or leave these frames out."
        )


def _check_intended_use(data: TrainingData, use: IntendedUse) -> None:
    """Refuse frames that scoring would refuse; a frame that does not state its modality or view passes."""
    for keyword, setting, intended, is_expected in (
        ("modality", "data.modalities", use.modalities, is_expected_modality),
        ("view_position", "data.view_positions", use.view_positions, is_expected_view),
    ):
        found = {value for record in data.records if (value := getattr(record, keyword))}
        if intended and (other := sorted(value for value in found if not is_expected(value, intended))):
            raise InputError(
                f"The index holds frames of {keyword.replace('_', ' ')} {', '.join(other)}, but {setting} says "
                f"{', '.join(intended)}. Ingest only the studies that the model is meant for, or change {setting}."
            )


def _check_split(data: TrainingData, split: Split) -> None:
    targets = data.targets[data.rows(split)]
    for column, label in enumerate(data.labels):
        for value, kind in ((1, "example of"), (0, "example without")):
            if not (targets[:, column] == value).any():
                raise InputError(
                    f"The split {split} has no {kind} {label}. Ingest with more patients, or with another --seed or --split."
                )
