"""What a bundle keeps of its data: it knows its frames again, and tells drift from chance."""

import hashlib

import numpy as np
import pytest
from scipy import special, stats

from pipeline.evaluate.drift import ALPHA, DISTANCE, Home, load_home, one_a_patient
from pipeline.predictions import Activation

LABELS = ("NORMAL", "PNEUMONIA")


def hashes(name: str, count: int) -> list[str]:
    return [hashlib.sha256(f"{name} {number}".encode()).hexdigest() for number in range(count)]


def make_home(seed: int = 0, patients: int = 80) -> Home:
    rng = np.random.default_rng(seed)
    names = hashes("home", patients)
    logits = rng.normal(size=(patients, 2))
    return Home.of(
        "salt", names, logits, rng.random(patients), Activation.SOFTMAX, patients=[str(n) for n in range(patients)], names=names
    )


def p_values(home: Home, seed: int, patients: int = 60, frames: int = 1, shift: float = 0.0) -> dict[str, float]:
    rng = np.random.default_rng(seed)
    who = np.repeat([f"new {number}" for number in range(patients)], frames).tolist()
    logits = np.repeat(rng.normal(size=(patients, 2)), frames, axis=0) + np.array([0, shift])
    distances = np.repeat(rng.random(patients), frames)
    found = home.drift(
        LABELS, logits, distances, Activation.SOFTMAX, patients=who, names=hashes(f"site {seed}", patients * frames)
    )
    return {name: one.p_value for name, one in found.items()}


def test_it_knows_its_frames_and_no_others() -> None:
    home = load_home(make_home().to_bytes(), 2)
    assert home.knows(hashes("home", 80)).all()
    assert not home.knows(hashes("other", 1000)).any()
    more = home.with_frames(hashes("other", 3))
    assert more.knows(hashes("home", 80)).all()
    assert more.knows(hashes("other", 4)).tolist() == [True] * 3 + [False]


def test_no_hash_of_pixels_stands_in_the_file() -> None:
    content = make_home().to_bytes()
    digests = [bytes.fromhex(one) for one in hashes("home", 80)]
    assert not any(one[:8] in content or one[:8][::-1] in content for one in digests)


def test_the_test_is_scipys_on_log_odds_of_one_frame_of_each_patient() -> None:
    home, rng = make_home(), np.random.default_rng(5)
    logits = rng.normal(size=(60, 2))
    who, names = [str(number // 2) for number in range(60)], hashes("site", 60)
    found = home.drift(LABELS, logits, np.full(60, 0.5), Activation.SOFTMAX, patients=who, names=names)
    first = [min((2 * number, 2 * number + 1), key=lambda row: names[row]) for number in range(30)]
    assert one_a_patient(who, names).tolist() == first
    odds = special.logit(special.softmax(np.round(logits, 4), axis=1))[first]
    for place, label in enumerate(LABELS):
        known = stats.ks_2samp(home.odds[place], odds[:, place])
        assert (found[label].statistic, found[label].p_value) == pytest.approx((known.statistic, known.pvalue), abs=1e-6)
    assert found[DISTANCE].found == (found[DISTANCE].p_value < ALPHA / 3)


def test_there_is_no_more_drift_than_chance_however_many_frames_a_patient_has() -> None:
    """Of 100 sites without drift, about 5 or fewer are called drifted; each with 20 equal frames a patient."""
    alarms = sum(min(p_values(make_home(seed), seed + 1000, frames=20).values()) < ALPHA / 3 for seed in range(100))
    assert alarms <= 10


def test_a_shift_is_found() -> None:
    assert p_values(make_home(), 9, shift=2.0)["PNEUMONIA"] < ALPHA / 3


@pytest.mark.parametrize("content", [b"", b"nothing", make_home().to_bytes()[:40]])
def test_what_is_no_such_file_is_refused(content: bytes) -> None:
    with pytest.raises(ValueError, match="frames, odds and distances"):
        load_home(content, 2)


def test_a_file_of_other_labels_is_refused() -> None:
    with pytest.raises(ValueError, match="do not belong together"):
        load_home(make_home().to_bytes(), 3)
