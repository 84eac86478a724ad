"""What a configuration can learn from an index, and every way in which the two do not go together."""

from pathlib import Path

import numpy as np
import pytest

from pipeline.config import Config
from pipeline.errors import ConfigError, InputError
from pipeline.frames import TRAINING_SPLITS, ImageRecord, InstanceKey, Split
from pipeline.ingest.index import Index
from pipeline.train.training_data import order_of_urgency, select_training_data

Labels = dict[str, bool | None]
LABELS = ("CALM", "SICK", "WORN")


def make_index(*rows: tuple[Split, Labels], modality: str = "CR", view_position: str = "") -> Index:
    records = tuple(
        ImageRecord(
            key=InstanceKey(f"1.{number}", f"1.{number}.1", f"1.{number}.1.1", 1),
            root=0,
            source=f"{number}.png",
            patient_key=f"patient{number // 2}",
            pixel_sha256=f"{number:064}",
            labels=labels,
            split=split,
            rows=8,
            columns=8,
            modality=modality,
            view_position=view_position,
        )
        for number, (split, labels) in enumerate(rows)
    )
    return Index(records, (), (Path(),), LABELS)


def one(label: str) -> Labels:
    return {name: name == label for name in LABELS}


PARTLY_KNOWN: Labels = {"CALM": True, "SICK": None, "WORN": None}
NOTHING: Labels = dict.fromkeys(LABELS)


def everything(*splits: Split) -> list[tuple[Split, Labels]]:
    return [(split, one(label)) for split in splits for label in LABELS]


def config(task: str = "multiclass", **data: object) -> Config:
    return Config.model_validate({"name": "tiny", "task": task, "data": data})


def test_targets_follow_the_order_of_the_configuration() -> None:
    data = select_training_data(config(labels=("SICK", "CALM", "WORN")), make_index(*everything(*TRAINING_SPLITS)))
    assert data.labels == ("SICK", "CALM", "WORN")
    np.testing.assert_array_equal(data.targets[:3], [[0, 1, 0], [1, 0, 0], [0, 0, 1]])
    assert data.rows(Split.TUNE).tolist() == [3, 4, 5]
    assert data.patients(data.rows(Split.TUNE)) == ("patient1", "patient2", "patient2")


def test_the_split_for_promotion_is_not_read() -> None:
    data = select_training_data(config(), make_index(*everything(*TRAINING_SPLITS), (Split.PROMOTION, NOTHING)))
    assert (len(data.records), data.frames_without_label) == (12, 0)
    assert not [record for record in data.records if record.split is Split.PROMOTION]


def test_without_a_choice_the_labels_are_those_of_the_index() -> None:
    assert select_training_data(config(), make_index(*everything(*TRAINING_SPLITS))).labels == LABELS


def test_what_is_not_known_stays_so_in_a_multilabel_task() -> None:
    rows = [*everything(*TRAINING_SPLITS), (Split.TRAIN, PARTLY_KNOWN), (Split.TRAIN, NOTHING)]
    data = select_training_data(config("multilabel"), make_index(*rows))
    np.testing.assert_array_equal(data.targets[-1], [1, np.nan, np.nan])
    assert (len(data.records), data.frames_without_label) == (len(rows) - 1, 1)
    assert data.counts(Split.TRAIN)["labels"] == {"CALM": 2, "SICK": 1, "WORN": 1}
    assert data.counts(Split.TRAIN)["unknown"] == {"CALM": 0, "SICK": 1, "WORN": 1}


def test_a_known_label_settles_the_others_if_exactly_one_holds() -> None:
    absent: Labels = {"CALM": False, "SICK": None, "WORN": None}
    rows = [*everything(*TRAINING_SPLITS), (Split.TRAIN, PARTLY_KNOWN), (Split.TRAIN, absent), (Split.TRAIN, NOTHING)]
    data = select_training_data(config(), make_index(*rows))
    np.testing.assert_array_equal(data.targets[-1], [1, 0, 0])
    assert (len(data.records), data.frames_without_label) == (len(rows) - 2, 2), "what is not known is not absent"
    assert data.records[-1].labels == PARTLY_KNOWN


def test_a_single_label_that_may_be_absent_can_be_learned() -> None:
    data = select_training_data(config("multilabel", labels=("SICK",)), make_index(*everything(*TRAINING_SPLITS)))
    np.testing.assert_array_equal(data.targets[:3], [[0], [1], [0]])


def test_grades_have_the_order_of_the_configuration() -> None:
    settings = config("ordinal", labels=("CALM", "WORN", "SICK"), normal_label="CALM")
    assert select_training_data(settings, make_index(*everything(*TRAINING_SPLITS))).labels == ("CALM", "WORN", "SICK")


@pytest.mark.parametrize(
    ("task", "data", "expected"),
    [
        ("ordinal", {"normal_label": "CALM"}, ("SICK", "WORN")),
        ("ordinal", {"normal_label": "SICK"}, ("CALM", "WORN")),
        ("ordinal", {"normal_label": "CALM", "urgency": ("WORN", "FRACTURE")}, ("WORN",)),
        ("ordinal", {}, ()),
        ("multiclass", {"normal_label": "CALM"}, ()),
    ],
)
def test_grades_further_from_no_finding_are_more_urgent(task: str, data: dict[str, object], expected: tuple[str, ...]) -> None:
    assert order_of_urgency(config(task, **data), ("CALM", "WORN", "SICK")) == expected


@pytest.mark.parametrize(
    ("task", "data", "fault"),
    [
        (
            "binary",
            {},
            "task: binary needs exactly two labels; there are 3: CALM, SICK, WORN. Name two in data.labels, or set "
            "task=multiclass.",
        ),
        (
            "ordinal",
            {},
            "data.labels: task=ordinal needs the grades in their order, and an index has none. Give it, for example "
            "data.labels=[CALM, SICK, WORN].",
        ),
        ("ordinal", {"labels": ("CALM", "SICK")}, "task: ordinal needs three grades or more. Set task=binary for two labels."),
        (
            "ordinal",
            {"labels": ("SICK", "CALM", "WORN"), "normal_label": "CALM"},
            "data.normal_label: CALM lies between other grades in data.labels. Put the grades in their order; the one that "
            "means no finding comes first or last.",
        ),
        (
            "binary",
            {"labels": ("SICK",)},
            "data.labels: training needs two labels or more; the index has CALM, SICK, WORN. Ingest again with --labels or "
            "--label-from, and studies of each label, or set task=multilabel if its absence is a label as well.",
        ),
    ],
)
def test_labels_that_do_not_fit_the_task_are_faults(task: str, data: dict[str, object], fault: str) -> None:
    with pytest.raises(ConfigError) as caught:
        select_training_data(config(task, **data), make_index(*everything(*TRAINING_SPLITS)))
    assert caught.value.faults == (fault,)


@pytest.mark.parametrize(
    ("urgency", "fault"),
    [
        (("WORM",), "data.urgency: the data have no label WORM. Did you mean WORN?"),
        (("CALM", "SICK"), "data.urgency: CALM means no finding, and is never urgent. Leave it out."),
    ],
)
def test_an_order_of_findings_that_cannot_be_meant_is_a_fault(urgency: tuple[str, ...], fault: str) -> None:
    with pytest.raises(ConfigError) as caught:
        select_training_data(config(urgency=urgency, normal_label="CALM"), make_index(*everything(*TRAINING_SPLITS)))
    assert caught.value.faults == (fault,)


def test_an_order_may_name_findings_that_the_data_do_not_have() -> None:
    select_training_data(config(urgency=("FRACTURE", "SICK"), normal_label="CALM"), make_index(*everything(*TRAINING_SPLITS)))


def test_an_empty_test_split_is_no_fault() -> None:
    data = select_training_data(config(), make_index(*everything(Split.TRAIN, Split.TUNE, Split.CALIBRATION)))
    assert len(data.rows(Split.TEST)) == 0


def test_every_fault_of_the_labels_is_told_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        select_training_data(config(labels=("SICKK",), normal_label="CALM"), make_index(*everything(*TRAINING_SPLITS)))
    assert caught.value.faults == (
        "data.labels: the index has no label SICKK; it has CALM, SICK, WORN.",
        "data.labels: training needs two labels or more; the index has CALM, SICK, WORN. "
        "Ingest again with --labels or --label-from, and studies of each label, or set task=multilabel if its absence is a "
        "label as well.",
        "data.normal_label: CALM is not one of the labels SICKK. "
        "Say which one means no finding, for example data.normal_label=SICKK, or set data.normal_label=null.",
    )


ALL = everything(*TRAINING_SPLITS)


@pytest.mark.parametrize(
    ("task", "rows", "sentence"),
    [
        (
            "multiclass",
            [*ALL, (Split.TEST, one("CALM") | {"SICK": True, "WORN": None})],
            "1 frames have more than one of the labels CALM, SICK, WORN: 12.png. Set task=multilabel if labels can occur",
        ),
        (
            "ordinal",
            [*ALL, (Split.TEST, one("")), (Split.TEST, one(""))],
            "2 frames have none of the labels CALM, SICK, WORN: 12.png, 13.png. Name their label in data.labels, set",
        ),
        ("multilabel", [(split, NOTHING) for split in TRAINING_SPLITS], "The split train has no example of CALM."),
        ("multiclass", ALL[:2] + ALL[3:], "The split train has no example of WORN. Ingest with more patients, or with another"),
        ("multiclass", [row for row in ALL if row != ALL[4]], "The split tune has no example of SICK."),
        ("multiclass", [row for row in ALL if row != ALL[6]], "The split calibration has no example of CALM."),
        (
            "multilabel",
            [(split, labels | {"SICK": True}) for split, labels in ALL],
            "The split train has no example without SICK.",
        ),
        ("multiclass", [], "The split train has no example of CALM."),
    ],
)
def test_what_cannot_be_learned_is_said(task: str, rows: list[tuple[Split, Labels]], sentence: str) -> None:
    settings = config(task, labels=LABELS)
    with pytest.raises(InputError) as caught:
        select_training_data(settings, make_index(*rows))
    assert str(caught.value).startswith(sentence)


def test_frames_of_another_modality_are_refused_and_unknown_ones_pass() -> None:
    settings = config(modalities=("CR", "DX"))
    assert select_training_data(settings, make_index(*ALL, modality="")).records
    with pytest.raises(
        InputError, match=r"^The index holds frames of modality OPT, but data.modalities says CR, DX\. Ingest only"
    ):
        select_training_data(settings, make_index(*ALL, modality="OPT"))


def test_frames_of_another_view_are_refused_and_unknown_ones_pass() -> None:
    settings = config(view_positions=("PA", "AP"))
    assert select_training_data(settings, make_index(*ALL)).records
    with pytest.raises(
        InputError, match=r"^The index holds frames of view position LL, but data.view_positions says PA, AP\. "
    ):
        select_training_data(settings, make_index(*ALL, view_position="LL"))


def test_a_label_of_too_few_patients_is_named_with_what_fits() -> None:
    data = select_training_data(config(), make_index(*everything(Split.TRAIN, Split.TRAIN, *TRAINING_SPLITS)))
    said = data.rare_label(1)
    assert said.startswith("The label CALM occurs in only 6 patients: 3 in train, 1 in tune, 1 in calibration, 1 in test.")
    assert "Measure by cross-validation (train.folds=3)" in said
    assert "The figures of 3 folds rest on 3 of them." in data.rare_label(3)
    assert select_training_data(config(), make_index(*everything(*(12 * list(TRAINING_SPLITS))))).rare_label(1) == ""
