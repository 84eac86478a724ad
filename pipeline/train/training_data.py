"""The training data: the rows of an index that a configuration can use, with their targets, checked before any work."""

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.config import Config, DataSection
from pipeline.errors import ConfigError, InputError
from pipeline.frames import ImageRecord, Split
from pipeline.imaging.dicom.terms import is_expected_modality, is_expected_view
from pipeline.ingest.index import Index
from pipeline.ingest.spelling import examples
from pipeline.predictions import Activation
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
    """

    labels: tuple[str, ...]
    records: tuple[ImageRecord, ...]
    targets: NDArray[np.float64]
    sources: tuple[Path, ...]

    def rows(self, split: Split) -> NDArray[np.int64]:
        """Return the positions of a split's frames."""
        return np.array([row for row, record in enumerate(self.records) if record.split is split], np.int64)

    def patients(self, rows: NDArray[np.int64]) -> tuple[str, ...]:
        """Return the patient of each of these frames."""
        return tuple(self.records[row].patient_key for row in rows)

    def counts(self, split: Split) -> dict[str, Any]:
        """Return the frames and patients of a split, and its frames with each label, for `metrics.json`."""
        rows = self.rows(split)
        found = (self.targets[rows] == 1).sum(axis=0)
        labels = {label: int(number) for label, number in zip(self.labels, found, strict=True)}
        return {"frames": len(rows), "patients": len(set(self.patients(rows))), "labels": labels}

    def frames_without_patient(self) -> int:
        """Return how many frames name no patient, so that each of their studies counts as a patient of its own."""
        return sum(record.patient_key == record.key.study_instance_uid for record in self.records)


def select_training_data(config: Config, index: Index) -> TrainingData:
    """Return the frames and targets of an index that a configuration can learn from.

    Raises
    ------
    ConfigError
        If the configuration names labels that the index does not have.
    InputError
        If a frame has no label or, with softmax, several; if a fitted split has no frame with a label, or none without it; or
        if frames are of another modality or view than the model is meant for.
    """
    labels = _labels(config.data, index)
    targets = index.targets(index.records, labels)
    data = TrainingData(labels, index.records, targets, index.sources)
    _check_targets(data, config.model.activation)
    _check_intended_use(data, config.data)
    for split in FITTED_SPLITS:
        _check_split(data, split)
    return data


def _labels(data: DataSection, index: Index) -> tuple[str, ...]:
    labels = data.labels or index.labels
    known = ", ".join(index.labels)
    faults = [f"data.labels: the index has no label {label}; it has {known}." for label in labels if label not in index.labels]
    if len(labels) < 2:
        faults.append(
            f"data.labels: training needs two labels or more; the index has {known or 'none'}. "
            "Ingest again with --labels or --label-from, and studies of each label."
        )
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
    if len(set(data.urgency)) < len(data.urgency):
        faults.append("data.urgency names a finding twice. Leave one out.")
    return faults


def _check_targets(data: TrainingData, activation: Activation) -> None:
    if activation is Activation.SOFTMAX:
        wrong = np.flatnonzero(np.nansum(data.targets, axis=1) != 1)
        if wrong.size:
            raise InputError(
                f"{wrong.size} frames do not have exactly one of the labels {', '.join(data.labels)}: "
                f"{examples(data.records[row].source for row in wrong)}. "
                "Set model.activation=sigmoid if labels can occur together, or leave these frames out."
            )
    elif empty := int(np.isnan(data.targets).all(axis=1).sum()):
        raise InputError(f"{empty} frames have no known label. Leave them out of the folder, or label them.")


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
