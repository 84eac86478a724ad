"""A bundle at another site: synthetic radiographs that another device changed, on which calibration helps, or does not."""

import csv
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from scipy import special, stats
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss

from pipeline.cli.main import main
from pipeline.errors import InputError
from pipeline.evaluate.calibration import fit_calibration, probabilities
from pipeline.frames import LabelLevel, Split
from pipeline.ingest.index import Index, load_index
from pipeline.model.bundle import HOME, METRICS, MODEL_CARD, REFERENCE, Bundle, load_bundle, write_bundle
from pipeline.phantoms.drawing import draw_chest
from pipeline.predictions import Activation, Calibration
from pipeline.score.predictor import Predictor
from pipeline.train.local_calibration import LEAST_PATIENTS, _Trial, accept_bundle, calibrate_bundle
from tests.builders import make_frame

pytestmark = pytest.mark.slow

PROBE = """
name: probe
data: {normal_label: NORMAL}
preprocessing: {size: 96}
model: {architecture: tf_efficientnet_lite0}
train: {threads: 1}
evaluate: {bootstrap: 100}
tracking: {enabled: false}
"""


def write_site(
    root: Path, change: Callable[[NDArray[np.float32]], NDArray[np.float32]], patients: int, seed: int, split: str
) -> Index:
    """Radiographs of a site, one a patient, half of them with a finding, changed as its device would; ingested."""
    rng, rows = np.random.default_rng(seed), [("file", "label", "patient_key")]
    (root / "studies").mkdir(parents=True)
    for number in range(patients):
        label, file = ("NORMAL", "PNEUMONIA")[number % 2], f"studies/p{number:03}.png"
        pixels = np.clip(change(draw_chest(rng, label)[0]), 0, 1)
        Image.fromarray(np.round(255 * pixels[::2, ::2]).astype(np.uint8)).save(root / file)
        rows.append((file, label, f"p{number:03}"))
    with (root / "labels.csv").open("w", newline="") as table:
        csv.writer(table).writerows(rows)
    words = ["--labels", str(root / "labels.csv"), "--out", str(root / "index"), "--split", split]
    assert main(["ingest", str(root / "studies"), *words]) == 0
    return load_index(root / "index")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A probe of 100 radiographs and its index, and the radiographs of a site with low contrast."""
    root = tmp_path_factory.mktemp("home")
    write_site(root / "home", lambda pixels: pixels, 100, 0, "50/10/40/0")
    (root / "probe.yaml").write_text(PROBE)
    words = ["--index", str(root / "home" / "index"), "--out", str(root / "bundle")]
    assert main(["train", str(root / "probe.yaml"), *words]) == 0
    write_site(root / "pale", lambda pixels: 0.2 + 0.6 * pixels, 60, 1, "50/25/25/0")
    return root


@pytest.fixture(scope="module")
def bundle(home: Path) -> Bundle:
    return load_bundle(home / "bundle")


@pytest.fixture(scope="module")
def calibrated(home: Path) -> Bundle:
    """What the command makes of the bundle at the site with low contrast, where it is far too certain."""
    assert main(["calibrate", str(home / "bundle"), "--index", str(home / "pale" / "index"), "--out", str(home / "local")]) == 0
    return load_bundle(home / "local")


@pytest.mark.parametrize("activation", list(Activation))
def test_the_fit_is_a_logistic_regression_with_platts_targets(activation: Activation) -> None:
    rng = np.random.default_rng(0)
    truth = (rng.random(80) < 0.4).astype(float)
    logits = np.stack([np.zeros(80), 3 * rng.normal(size=80) + 2 * truth + 1], axis=1)
    targets = np.stack([1 - truth, truth], axis=1)
    found = fit_calibration(logits, targets, activation, Calibration.of(1.0, 2), np.array([True, True]))

    present, absent = truth.sum(), (1 - truth).sum()
    soft = np.where(truth == 1, (present + 1) / (present + 2), 1 / (absent + 2))
    doubled = np.concatenate([logits[:, 1], logits[:, 1]])[:, None]
    oracle = LogisticRegression(C=np.inf, tol=1e-10, max_iter=1000).fit(
        doubled, np.repeat([1, 0], 80), np.concatenate([soft, 1 - soft])
    )
    chances = probabilities(logits, activation, found.temperatures, found.offsets)[:, 1]
    np.testing.assert_allclose(chances, oracle.predict_proba(logits[:, 1:])[:, 1], atol=1e-5)


def test_several_labels_share_a_temperature_and_move_by_their_own_offsets() -> None:
    rng = np.random.default_rng(1)
    logits = rng.normal(size=(6000, 3)) * 2
    chances = special.softmax(logits / 1.7 + [0.5, -0.9, 0.4], axis=1)
    targets = np.eye(3)[[rng.choice(3, p=row) for row in chances]]
    found = fit_calibration(logits, targets, Activation.SOFTMAX, Calibration.of(1.0, 3), np.ones(3, bool))
    assert found.temperatures == pytest.approx((1.7,) * 3, rel=0.08)
    assert found.offsets == pytest.approx((0.5, -0.9, 0.4), abs=0.12)


def test_a_label_that_is_not_fitted_keeps_its_calibration() -> None:
    rng = np.random.default_rng(2)
    logits, targets = rng.normal(size=(50, 2)), (rng.random((50, 2)) < 0.5).astype(float)
    start = Calibration((1.5, 2.5), (0.1, 0.2))
    found = fit_calibration(logits, targets, Activation.SIGMOID, start, np.array([False, True]))
    assert (found.temperatures[0], found.offsets[0]) == (1.5, 0.1)
    assert found.temperatures[1] != 2.5


def test_the_new_bundle_says_where_it_comes_from_and_answers_by_the_new_numbers(bundle: Bundle, calibrated: Bundle) -> None:
    local, parent = calibrated.manifest.local, bundle.manifest
    assert local is not None
    assert (local.parent, local.dataset_name) == (parent.bundle_id, "index")
    assert local.gain.value == pytest.approx(local.log_loss_before - local.log_loss_after)
    assert local.log_loss_before > local.log_loss_after + 0.1
    assert "They promise too much" not in calibrated.read(MODEL_CARD).decode()
    assert local.words in calibrated.read(MODEL_CARD).decode().replace("\n", " ")
    assert f"`{parent.bundle_id}`" in calibrated.read(MODEL_CARD).decode()
    assert json.loads(calibrated.read(METRICS))["local"]["gain"]["value"] == pytest.approx(local.gain.value)

    assert calibrated.manifest.outliers == parent.outliers
    assert [point.threshold for point in calibrated.manifest.operating_points] == [
        point.threshold for point in parent.operating_points
    ]
    assert calibrated.manifest.conformal.bands == parent.conformal.bands
    kept = set(parent.files) - {METRICS, MODEL_CARD, HOME}
    assert {name: calibrated.manifest.files[name] for name in kept} == {name: parent.files[name] for name in kept}

    frame = make_frame(pixels=draw_chest(np.random.default_rng(7), "PNEUMONIA")[0])
    before, after = (Predictor(one).predict([frame])[0].predictions for one in (bundle, calibrated))
    logits = np.array([one.logit for one in after])
    assert [one.logit for one in before] == logits.tolist()
    numbers = calibrated.manifest.calibration
    expected = special.softmax(logits / numbers.temperatures + numbers.offsets)
    assert [one.probability for one in after] == pytest.approx(expected.tolist())


def test_the_gain_is_that_of_folds_without_the_patient(home: Path, bundle: Bundle, calibrated: Bundle) -> None:
    """The parent's loss is scikit-learn's; a fit that has seen the frames would lose less than what is stated."""
    index, local = load_index(home / "pale" / "index"), calibrated.manifest.local
    assert local is not None
    report = accept_bundle(bundle, index)
    assert report["calibration"]["log_loss_before"] == pytest.approx(local.log_loss_before)
    assert report["calibration"]["verdict"] == ("gain" if local.proven else "unproven")
    logits, truth = scored(bundle, index)
    before = probabilities(logits, Activation.SOFTMAX, bundle.manifest.calibration.temperatures)
    assert log_loss(truth, before[:, 1]) == pytest.approx(local.log_loss_before, rel=1e-4)
    numbers = calibrated.manifest.calibration
    inside = probabilities(logits, Activation.SOFTMAX, numbers.temperatures, numbers.offsets)
    assert log_loss(truth, inside[:, 1]) < local.log_loss_after


def scored(bundle: Bundle, index: Index) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Logits and truth of the frames of an index that a bundle does not refuse."""
    from pipeline.train.local_calibration import _site

    found = _site(bundle, index, list(Split), lambda items, *_: items)
    site = found.only(found.answered)
    return np.asarray(site.logits, np.float64), site.targets[:, 1]


def test_the_interval_is_students_if_each_patient_has_one_frame() -> None:
    rng = np.random.default_rng(3)
    before, after = rng.random(40), rng.random(40)
    names = tuple(map(str, range(40)))
    trial = _Trial(np.ones(1, bool), before, after, np.empty((40, 1)), np.empty((40, 1), object), names)
    known = stats.ttest_rel(before, after).confidence_interval(0.95)
    assert (trial.gain.low, trial.gain.high) == pytest.approx((known.low, known.high))


def test_copies_of_frames_prove_nothing_more() -> None:
    rng = np.random.default_rng(4)
    before, after = rng.random(20), rng.random(20)
    names = tuple(map(str, range(20)))
    one = _Trial(np.ones(1, bool), before, after, np.empty((20, 1)), np.empty((20, 1), object), names).gain
    parts = (np.repeat(before, 9), np.repeat(after, 9), np.empty((180, 1)), np.empty((180, 1), object))
    many = _Trial(np.ones(1, bool), *parts, tuple(np.repeat(names, 9))).gain
    assert (many.value, many.low, many.high) == pytest.approx((one.value, one.low, one.high))


def test_a_gain_is_proven_where_all_logits_are_far_too_high(home: Path, bundle: Bundle, tmp_path: Path) -> None:
    """A bundle that calls nearly every frame positive and is sure of it, though it ranks as well as before."""
    fields = {name: value for name, value in bundle.manifest if name not in ("schema_version", "bundle_id", "files")}
    heat = tuple(one / 2 for one in bundle.manifest.calibration.temperatures)
    contents = {name: bundle.read(name) for name in bundle.manifest.files}
    moved = write_bundle(tmp_path / "moved", contents, **(fields | {"calibration": Calibration(heat, (-4.0, 4.0))}))
    local = calibrate_bundle(moved, load_index(home / "pale" / "index"), tmp_path / "local").manifest.local
    assert local is not None
    assert local.proven
    assert (local.gain.low or 0) > 0
    assert accept_bundle(moved, load_index(home / "pale" / "index"))["calibration"]["verdict"] == "gain"


def test_what_does_not_help_is_refused(home: Path, bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_site(tmp_path / "same", lambda pixels: pixels, 60, 1, "50/25/25/0")
    index = str(tmp_path / "same" / "index")
    capsys.readouterr()
    assert main(["calibrate", str(home / "bundle"), "--index", index, "--out", str(tmp_path / "local")]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("octray: Local calibration makes the bundle no better here: the log loss of a frame rises by 0.0")
    assert not (tmp_path / "local").exists()


def test_what_may_help_is_called_unproven(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_site(tmp_path / "bright", lambda pixels: pixels**0.7, 60, 1, "50/25/25/0")
    index = str(tmp_path / "bright" / "index")
    assert main(["calibrate", str(home / "bundle"), "--index", index, "--out", str(tmp_path / "local")]) == 0
    assert "The gain is unproven: its interval holds zero." in capsys.readouterr().out
    local = load_bundle(tmp_path / "local").manifest.local
    assert local is not None
    assert not local.proven
    assert (local.gain.low or 0) < 0 < (local.gain.value or 0)


def test_patients_of_the_parent_are_left_out(home: Path, bundle: Bundle, tmp_path: Path) -> None:
    own = load_index(home / "home" / "index")
    with pytest.raises(InputError, match="has no patient that is new to the bundle: it knows frames of all 100"):
        calibrate_bundle(bundle, replace(own, sha256="other"), tmp_path / "local")
    again = load_index(home / "pale" / "index")
    records = [replace(record, root=0) for record in again.records[:30]] + [
        replace(record, root=1) for record in own.records[:5]
    ]
    mixed = replace(again, records=tuple(records), sources=(*again.sources, *own.sources))
    report = accept_bundle(bundle, mixed)
    assert (report["known_patients"], report["patients"]) == (5, 25)  # both sites call their first patients the same


def test_a_calibrated_bundle_knows_the_patients_of_its_calibration(home: Path, calibrated: Bundle, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has no patient that is new to the bundle: it knows frames of all 60"):
        accept_bundle(calibrated, load_index(home / "pale" / "index"))


def test_too_few_patients_are_counted(home: Path, bundle: Bundle, tmp_path: Path) -> None:
    index = load_index(home / "pale" / "index")
    few = replace(index, records=index.records[: 2 * LEAST_PATIENTS - 1])
    with pytest.raises(
        InputError, match="needs 10 new patients with each label and 10 without it.*PNEUMONIA \\d+ with and \\d+ without"
    ):
        calibrate_bundle(bundle, few, tmp_path / "local")
    report = accept_bundle(bundle, few)
    assert "needs 10 new patients" in report["calibration"]["not_measured"]


def test_labels_of_whole_studies_calibrate_frames_as_in_training(home: Path, bundle: Bundle, tmp_path: Path) -> None:
    index = load_index(home / "pale" / "index")
    records = tuple(replace(record, label_level=LabelLevel.STUDY) for record in index.records)
    calibrate_bundle(bundle, replace(index, records=records), tmp_path / "local")
    for point in load_bundle(tmp_path / "local").manifest.operating_points:
        assert 0 <= point.sensitivity <= 1
        assert point.expected_sensitivity is not None
        assert point.expected_sensitivity.value is not None


def test_the_test_split_of_the_site_is_not_used(home: Path, bundle: Bundle, calibrated: Bundle, tmp_path: Path) -> None:
    index = load_index(home / "pale" / "index")
    wrong = tuple(
        replace(record, split=Split.TEST, labels={label: not held for label, held in record.labels.items()})
        if number % 3 == 2
        else record
        for number, record in enumerate(index.records)
    )
    made = calibrate_bundle(bundle, replace(index, records=wrong), tmp_path / "local").manifest
    assert made.local is not None
    assert made.local.patients < 45
    assert accept_bundle(load_bundle(tmp_path / "local"), replace(index, records=wrong))["patients"] == 20


def test_decisions_are_chosen_again_if_asked_for(home: Path, bundle: Bundle, tmp_path: Path) -> None:
    made = calibrate_bundle(bundle, load_index(home / "pale" / "index"), tmp_path / "local", decisions=True).manifest
    assert made.local is not None
    assert made.local.decisions
    assert made.operating_points != bundle.manifest.operating_points
    for point, band in zip(made.operating_points, made.conformal.bands, strict=True):
        assert band.present_from <= point.threshold <= band.absent_below
    assert made.outliers == bundle.manifest.outliers


def test_the_report_sets_the_site_beside_the_home(home: Path, bundle: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", str(home / "bundle"), "--index", str(home / "pale" / "index")]) == 0
    said = capsys.readouterr().out
    assert "Acceptance on index: 60 frames of 60 patients." in said
    assert "Drift was found in" in said
    assert "the log loss of a frame changes from" in said
    report = accept_bundle(bundle, load_index(home / "pale" / "index"))
    assert report["drift"]["distance"]["found"]
    truth = scored(bundle, load_index(home / "pale" / "index"))[1]
    assert report["figures"]["labels"]["PNEUMONIA"]["n_positive"] == int(truth.sum())


def test_the_bundle_itself_is_not_overwritten(home: Path, bundle: Bundle) -> None:
    with pytest.raises(InputError, match="is the bundle that is to be calibrated"):
        calibrate_bundle(bundle, load_index(home / "pale" / "index"), home / "bundle")
    with pytest.raises(InputError, match="A bundle cannot be written to index: it holds an index"):
        calibrate_bundle(bundle, load_index(home / "pale" / "index"), home / "pale" / "index")
    assert load_bundle(home / "bundle").read(REFERENCE)
