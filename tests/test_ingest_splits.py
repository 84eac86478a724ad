"""The laws of dividing patients: none crosses, no duplicate crosses, the order does not matter, shares and labels are kept."""

import re
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import InputError
from pipeline.frames import TRAINING_SPLITS, Split
from pipeline.ingest.splits import (
    Percent,
    assign_splits,
    check_given_splits,
    check_labels,
    few_patients,
    fitting_percent,
    parse_percent,
)

SPLITS = list(TRAINING_SPLITS)
frames = st.lists(st.tuples(*(st.integers(0, last) for last in (12, 20, 30))), min_size=1, max_size=40)


def plenty(patients: int, per_label: str = "AABC") -> list[tuple[str, str, str]]:
    """Patient, label and pixels of frames: every patient has one to three frames of one label."""
    return [
        (f"p{patient}", per_label[patient % len(per_label)], f"x{patient}-{frame}")
        for patient in range(patients)
        for frame in range(1 + patient % 3)
    ]


def assign(rows: list[tuple[str, str, str]], percent: Percent = (70, 10, 10, 10), seed: int = 0) -> list[Split]:
    patients, pixels = [row[0] for row in rows], [row[2] for row in rows]
    return assign_splits(patients, [[row[1]] for row in rows], pixels, pixels, percent, seed)


@settings(deadline=None)
@given(frames)
def test_no_patient_no_pixels_and_no_study_cross_splits(rows: list[tuple[int, int, int]]) -> None:
    patients, pixels, studies = ([str(key) for key in column] for column in zip(*rows, strict=True))
    splits = assign_splits(patients, [[]] * len(rows), pixels, studies, seed=1)
    check_given_splits(splits, patients, pixels, studies)
    for keys in (patients, pixels, studies):
        assert len(set(zip(keys, splits, strict=True))) == len(set(keys))


@settings(deadline=None)
@given(st.randoms(use_true_random=False), st.integers(0, 5))
def test_the_order_of_the_frames_and_the_patients_names_do_not_matter(random: "np.random.Generator", seed: int) -> None:
    rows = plenty(40)
    expected = dict(zip([row[2] for row in rows], assign(rows, seed=seed), strict=True))
    shuffled = [(f"renamed {hash(patient) % 10**9} {patient}", label, pixels) for patient, label, pixels in rows]
    random.shuffle(shuffled)  # type: ignore[arg-type]
    assert dict(zip([row[2] for row in shuffled], assign(shuffled, seed=seed), strict=True)) == expected


def test_another_seed_divides_otherwise() -> None:
    rows = plenty(60)
    assert assign(rows, seed=0) != assign(rows, seed=1)


@settings(deadline=None)
@given(st.integers(40, 120), st.sampled_from([(70, 10, 10, 10), (50, 20, 20, 10), (80, 10, 10, 0)]), st.integers(0, 100))
def test_shares_of_patients_are_near_what_was_asked_for_in_every_label(patients: int, percent: Percent, seed: int) -> None:
    rows = plenty(patients)
    splits = assign(rows, percent, seed)
    held = Counter({(row[0], row[1], split) for row, split in zip(rows, splits, strict=True)})
    for split, share in zip(SPLITS, percent, strict=True):
        found = sum(1 for _, _, other in held if other == split)
        assert abs(found - patients * share / 100) <= 3
        for label in "ABC":
            with_label = sum(1 for _, other, _ in held if other == label)
            found = sum(1 for _, other, where in held if (other, where) == (label, split))
            assert abs(found - with_label * share / 100) <= 1.5


def test_four_patients_with_a_label_are_enough_for_four_splits() -> None:
    rows = plenty(40, "A") + [(f"rare{number}", "R", f"r{number}") for number in range(4)]
    splits = assign(rows)
    assert {split for row, split in zip(rows, splits, strict=True) if row[1] == "R"} == set(SPLITS)


def test_patients_with_the_same_pixels_stay_together_through_a_chain() -> None:
    chain = [(f"c{number}", "A", pixels) for number in range(10) for pixels in (f"link{number}", f"link{number + 1}")]
    rows = plenty(80, "AB") + chain
    assert len(set(assign(rows)[-len(chain) :])) == 1


def test_a_patient_under_two_labels_counts_for_both() -> None:
    rows = [(f"p{patient}", label, f"{patient}{label}") for patient in range(8) for label in "AB"]
    splits = assign(rows, (25, 25, 25, 25))
    assert Counter(splits) == dict.fromkeys(TRAINING_SPLITS, 4)


def test_without_labels_the_shares_still_hold() -> None:
    keys = [f"p{number}" for number in range(100)]
    assert Counter(assign_splits(keys, [[]] * 100, keys, keys)) == {
        Split.TRAIN: 70, Split.TUNE: 10, Split.CALIBRATION: 10, Split.TEST: 10,
    }  # fmt: skip


def test_a_label_without_an_example_in_a_split_is_named() -> None:
    rows = [*plenty(40, "A"), ("only", "RARE", "x")]
    with pytest.raises(
        InputError, match=r"label RARE has no example in the split tune: it occurs in 1 patient\. Each of the 4"
    ):
        assign(rows)


def rare(count: int) -> list[tuple[str, str, str]]:
    return [(f"rare{number}", "R R", f"r{number}") for number in range(count)]


def test_the_advice_for_one_patient_too_few_works() -> None:
    rows = plenty(40, "A") + rare(3)
    with pytest.raises(
        InputError, match=r"occurs in 3 patients. 4 splits need one each. Give --split (\S+), and .*train.folds=2"
    ) as caught:
        assign(rows)
    (advice,) = re.findall(r"--split ([0-9/]+)", str(caught.value))
    splits = assign(rows, parse_percent(advice))
    assert {split for row, split in zip(rows, splits, strict=True) if row[1] == "R R"} == set(SPLITS[:3])
    assert "--leave-out 'R R'" in str(caught.value)


def test_patients_that_stay_together_are_too_few_for_another_reason() -> None:
    rows = plenty(40, "A") + [(f"rare{number}", "R", "same") for number in range(9)]
    with pytest.raises(InputError, match="occurs in 9 patients. Some of them share images or studies and stay together. Add"):
        assign(rows)


def test_given_splits_without_a_label_are_to_be_changed_in_the_table() -> None:
    with pytest.raises(InputError, match=r"no example in the split test: it occurs in 1 patient\. Change the column split"):
        check_labels([Split.TRAIN, Split.TEST], [["A"], []], ["p", "q"], [Split.TRAIN, Split.TEST], are_given=True)


def remark(rows: list[tuple[str, str, str]], percent: Percent = (70, 10, 10, 10)) -> str:
    return few_patients(assign(rows, percent), [[row[1]] for row in rows], [row[0] for row in rows])


def test_a_rare_label_is_named_with_its_numbers_and_what_fits() -> None:
    assert remark(plenty(200, "A") + rare(5)) == (
        "The label R R occurs in only 5 patients: 2 in train, 1 in tune, 1 in calibration, 1 in test. Operating points and "
        "figures from so few are mostly chance. Measure by cross-validation (train.folds=2), which tests on every patient of "
        "train; --split 60/20/20/0 leaves more of them for it."
    )
    assert "Measure by cross-validation (train.folds=3), which tests on every patient of train. So is one other" in (
        remark(plenty(20, "A") + rare(5), (60, 20, 20, 0))
    )
    assert remark(plenty(200, "A") + rare(60)) == ""


@settings(deadline=None)
@given(st.integers(5, 60), st.integers(0, 5))
def test_the_proposed_split_gives_each_split_enough(count: int, seed: int) -> None:
    percent = fitting_percent(count)
    assert sum(percent) == 100
    rows = plenty(150, "A") + rare(count)
    splits = assign(rows, percent, seed)
    counts = Counter(split for row, split in zip(rows, splits, strict=True) if row[1] == "R R")
    assert counts[Split.TRAIN] >= 2
    assert all(counts[split] >= (5 if percent[3] else 1) for split in SPLITS[1 : 4 if percent[3] else 3])


def test_the_test_split_may_be_left_out() -> None:
    assert Split.TEST not in assign(plenty(40), (80, 10, 10, 0))


@pytest.mark.parametrize(
    "text", ["70/10/10", "60/10/10/10/5/5", "a/b/c/d", "70/10/10/-10", "", "70.5/9.5/10/10", "٧٠/10/10/10"]
)
def test_a_split_that_is_not_four_whole_numbers_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="four whole numbers, train/tune/calibration/test"):
        parse_percent(text)


@pytest.mark.parametrize("text", ["70/10/10/20", "0/50/40/10", "80/20/0/0", "70/10/10/10/0"])
def test_shares_must_add_up_and_only_test_may_be_empty(text: str) -> None:
    with pytest.raises(InputError, match="must add up to 100, and only that of test may be 0"):
        parse_percent(text)


def test_a_split_is_read() -> None:
    assert parse_percent("80/10/10/0") == (80, 10, 10, 0)
    assert parse_percent("50/10/10/0/30") == (50, 10, 10, 0, 30)


def test_a_split_for_promotion_gets_its_share_of_the_patients() -> None:
    rows = plenty(200)
    splits = assign(rows, (40, 20, 10, 10, 20))
    patients = {split: {row[0] for row, other in zip(rows, splits, strict=True) if other is split} for split in Split}
    assert {split.value: len(found) for split, found in patients.items()} == pytest.approx(
        {"train": 80, "tune": 40, "calibration": 20, "test": 20, "promotion": 40}, abs=2
    )
    assert sum(map(len, patients.values())) == 200


def test_given_splits_that_a_patient_a_duplicate_or_a_study_crosses_are_refused() -> None:
    splits = [Split.TRAIN, Split.TEST]
    with pytest.raises(InputError, match="1 patients occur in more than one"):
        check_given_splits(splits, ["p", "p"], ["x", "y"], ["s", "t"])
    with pytest.raises(InputError, match="1 images occur with the same pixels in more than one"):
        check_given_splits(splits, ["p", "q"], ["x", "x"], ["s", "t"])
    with pytest.raises(InputError, match="1 studies occur in more than one"):
        check_given_splits(splits, ["p", "q"], ["x", "y"], ["s", "s"])
    check_given_splits(splits, ["p", "q"], ["x", "y"], ["s", "t"])
