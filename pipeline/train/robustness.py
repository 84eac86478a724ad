"""What a trained network is worth away from home, measured on the splits that training may see, never on the test split.

A tune split from the pool of the training chooses the wrong network if the next site is unlike it. Three things tell something
of that without data of another site. Frames of the tune split are made worse in steps, as devices and archives do it (after Di
Salvo, Doerrich and Ledig, "MedMNIST-C: Comprehensive benchmark and improved classifier robustness by simulating realistic image
corruptions", 2024, and Hendrycks and Dietterich, "Benchmarking neural network robustness to common corruptions and
perturbations", ICLR 2019). Frames that were acquired alike form groups, and the probe is fitted without each group in its turn.
And a classifier that sees nothing but how a frame was acquired shows how much of the label that gives away.

Nothing is chosen by these figures, so all groups are reported.
"""

import io
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from pipeline.config import Config
from pipeline.evaluate.calibration import Float64
from pipeline.evaluate.drift import one_a_patient, score_odds
from pipeline.evaluate.intervals import Estimate, bootstrap
from pipeline.evaluate.metrics import auroc, curve
from pipeline.frames import FloatArray, Split
from pipeline.train.fit import Probe
from pipeline.train.head import fit_head
from pipeline.train.tasks import Objective, find_loss
from pipeline.train.training_data import TrainingData
from pipeline.train.workspace import PreparedFrames

CORRUPTIONS: Mapping[str, tuple[float, ...]] = {
    "resolution": (0.5, 0.3, 0.2),
    "blur": (0.006, 0.012, 0.02),
    "compression": (40, 20, 10),
    "contrast": (0.7, 0.5, 0.35),
    "gamma": (1.3, 1.7, 2.2),
    "noise": (0.03, 0.06, 0.1),
    "rotation": (5, 10, 20),
}
"""Three grades each: the part of the side that is kept, the deviation of a blur as a part of the side, the quality of a JPEG,
the part of the contrast that is left, an exponent, the deviation of added noise, degrees."""
MOST_FRAMES = 150
"""Of the tune split, one of each patient."""
GROUPS = 4
LEAST_PATIENTS = 10
"""With each label and without it, in a group that is held out."""
_FOLDS = 5
_RESAMPLES = 1000
_BACKGROUND = 0.02
"""Grey levels below it are the border of a frame."""

Answers = Callable[[FloatArray], FloatArray]
"""Returns the logits, (n, labels), of frames of shape (n, 1, size, size)."""


def corrupted(frames: FloatArray, name: str, grade: int, seed: int = 0) -> FloatArray:
    """Return frames of shape (n, 1, size, size) in [0, 1], made worse in the way `name` of `CORRUPTIONS`.

    Parameters
    ----------
    frames
        float32.
    name
        Of the corruption.
    grade
        0, 1 or 2, from the mildest to the worst.
    seed
        Of the noise.
    """
    amount, side = CORRUPTIONS[name][grade], frames.shape[-1]
    if name == "contrast":
        found = 0.5 + amount * (frames - 0.5)
    elif name == "gamma":
        found = np.clip(frames, 0, 1) ** amount
    elif name == "noise":
        found = frames + np.random.default_rng([seed, grade]).normal(0, amount, frames.shape)
    elif name == "blur":
        found = ndimage.gaussian_filter(frames, (0, 0, amount * side, amount * side))
    elif name == "rotation":
        found = ndimage.rotate(frames, amount, axes=(3, 2), reshape=False, order=1)
    elif name == "resolution":
        small = max(8, round(amount * side))
        found = np.stack([_resized(_resized(frame[0], small), side)[None] for frame in frames])
    else:
        found = np.stack([_compressed(frame[0], int(amount))[None] for frame in frames])
    return np.ascontiguousarray(np.clip(found, 0, 1), np.float32)


def _resized(picture: FloatArray, side: int) -> FloatArray:
    return np.asarray(Image.fromarray(picture).resize((side, side), Image.Resampling.BILINEAR), np.float32)


def _compressed(picture: FloatArray, quality: int) -> FloatArray:
    buffer = io.BytesIO()
    Image.fromarray(np.round(255 * np.clip(picture, 0, 1)).astype(np.uint8)).save(buffer, "JPEG", quality=quality)
    return np.asarray(np.asarray(Image.open(buffer), np.float32) / 255, np.float32)


def acquisition(frame: FloatArray, rows: int, columns: int) -> Float64:
    """Return how a frame was acquired, as far as it shows, in ten numbers: nothing of what it shows of the patient's inside.

    They are the logarithms of its size and of its shape, the mean, the deviation and three percentiles of its grey levels, its
    sharpness, the part of dark border, and how much stronger the edges of the 8 x 8 blocks of a JPEG are than other edges.

    Parameters
    ----------
    frame
        On the network's grid, of shape (size, size), in [0, 1].
    rows, columns
        Of the frame in its file.
    """
    grey = np.asarray(frame, np.float64)
    steps = np.abs(np.diff(grey, axis=1))
    at_blocks = np.arange(1, grey.shape[1]) % 8 == 0
    edges = np.concatenate([grey[0], grey[-1], grey[:, 0], grey[:, -1]])
    return np.array(
        [
            np.log(rows * columns),
            np.log(columns / rows),
            grey.mean(),
            grey.std(),
            *np.percentile(grey, (2, 50, 98)),
            np.log(ndimage.laplace(grey).var() + 1e-8),
            float((edges < _BACKGROUND).mean()),
            np.log((steps[:, at_blocks].mean() + 1e-6) / (steps[:, ~at_blocks].mean() + 1e-6)),
        ]
    )


def measure_robustness(
    config: Config, data: TrainingData, pixels: PreparedFrames, run: Answers, probe: Probe | None
) -> dict[str, Any]:
    """Return what `metrics.json` holds of a network away from home; all areas are means over the labels.

    `home` is the area under the ROC curve on frames of the tune split, one of each patient; `corruptions` has it for the
    three grades of each corruption, `mean_corruption` their mean, `worst_corruption` the least, `drop` the difference of home
    and mean with its 95 % interval over patients. `sites` are the groups of frames of the train and tune split that were
    acquired alike and could be held out: `home` is the area of a probe fitted without their patients, `away` that of a probe
    fitted without the group; `worst_site` is the one with the least `away`. `shortcut` has the area of a classifier that sees
    `acquisition` alone beside that of the probe, both in folds by patient. `probe` compares a fine-tuned network with its own
    probe on the corrupted frames; None if the network is a probe itself, or had none. `remark` is a sentence if the fine-tuned
    network is worse there than its own probe, the whole interval below zero; otherwise it is empty.

    Parameters
    ----------
    config
        Seed, task and settings of the head.
    data
        Targets and splits; the tune and the train split are used.
    pixels
        All frames on the network's grid.
    run
        Returns the logits, (n, labels), of frames of shape (n, 1, size, size): what the bundle answers.
    probe
        The head that training started from, with the features of the train and the tune split.
    """
    seed, activation = config.train.seed, config.task.activation
    rows = data.rows(Split.TUNE)
    rows = rows[one_a_patient(data.patients(rows), [data.records[row].pixel_sha256 for row in rows])]
    if len(rows) > MOST_FRAMES:
        rows = rows[np.linspace(0, len(rows) - 1, MOST_FRAMES).astype(np.int64)]
    frames, truth = np.ascontiguousarray(pixels[rows]), data.targets[rows]
    runs: dict[str, Answers] = {"network": run}
    if probe and not probe.is_final:
        runs["probe"] = probe.run
    odds = {name: [score_odds(one(frames), activation)] for name, one in runs.items()}
    places = [(corruption, grade) for corruption, grades in CORRUPTIONS.items() for grade in range(len(grades))]
    for corruption, grade in places:
        changed = corrupted(frames, corruption, grade, seed)
        for name, one in runs.items():
            odds[name].append(score_odds(one(changed), activation))

    def figures(weights: Float64) -> dict[str, Float64]:
        areas = {name: [_areas(one, truth, weights) for one in each] for name, each in odds.items()}
        found = {f"{name} home": each[0] for name, each in areas.items()}
        found |= {f"{name} away": np.mean(each[1:], axis=0) for name, each in areas.items()}
        found["drop"] = found["network home"] - found["network away"]
        if "probe" in areas:
            found["difference"] = found["network away"] - found["probe away"]
        return found

    found = bootstrap(figures, data.patients(rows), _RESAMPLES, seed)
    whole = [_number(_areas(one, truth, np.ones((1, len(rows))))[0]) for one in odds["network"][1:]]
    grid: dict[str, list[float | None]] = {name: [] for name in CORRUPTIONS}
    for (corruption, _), area in zip(places, whole, strict=True):
        grid[corruption].append(area)
    flat = [(area, *place) for place, area in zip(places, whole, strict=True) if area is not None]
    least = min(flat, default=None)
    report: dict[str, Any] = {
        "frames": len(rows),
        "home": found["network home"].value,
        "corruptions": grid,
        "mean_corruption": found["network away"].value,
        "worst_corruption": {"name": least[1], "grade": least[2] + 1, "auroc": least[0]} if least else None,
        "drop": _limits(found["drop"]),
        "sites": [],
        "worst_site": None,
        "shortcut": None,
        "probe": None,
    }
    if "probe" in runs:
        high = found["difference"].high
        report["probe"] = {
            "home": found["probe home"].value,
            "mean_corruption": found["probe away"].value,
            "difference": _limits(found["difference"]),
            "is_better_away": high is not None and high < 0,
        }
    if probe:
        report |= _held_out(config, data, pixels, probe)
    return report | {"remark": _remark(report)}


def _remark(report: Mapping[str, Any]) -> str:
    if not report["probe"] or not report["probe"]["is_better_away"]:
        return ""
    probe, difference = report["probe"], report["probe"]["difference"]
    low, high = difference["low"], difference["high"]
    return (
        "Fine-tuning made the network worse away from home than its own probe: on corrupted frames of the tune split its AUROC "
        f"is {report['mean_corruption']:.3f}, that of the probe {probe['mean_corruption']:.3f} (difference "
        f"{difference['value']:.3f}, 95 % interval {low:.3f} to {high:.3f}). Train with train.way=probe, or at a lower rate."
    )


def flat_robustness(report: Mapping[str, Any] | None) -> dict[str, float]:
    """Return the figures of `measure_robustness` under one name each, for MLflow; those that are not defined are left out."""
    if not report:
        return {}
    found = {
        "robustness_home": report["home"],
        "robustness_mean_corruption": report["mean_corruption"],
        "robustness_drop": report["drop"]["value"],
    }
    found |= {
        f"robustness_{name}_{grade}": value
        for name, values in report["corruptions"].items()
        for grade, value in enumerate(values, 1)
    }
    if report["worst_site"]:
        found["robustness_worst_site"] = report["worst_site"]["away"]
    if report["shortcut"]:
        found["robustness_shortcut"] = report["shortcut"]["acquisition"]
    if report["probe"]:
        found["robustness_probe_mean_corruption"] = report["probe"]["mean_corruption"]
        found["robustness_less_than_probe"] = report["probe"]["difference"]["value"]
    return {name: value for name, value in found.items() if value is not None}


def _held_out(config: Config, data: TrainingData, pixels: PreparedFrames, probe: Probe) -> dict[str, Any]:
    """Fit the probe without each group of frames that were acquired alike, and a classifier on how frames were acquired."""
    rows, seed = probe.rows, config.train.seed
    truth, patients = data.targets[rows], data.patients(rows)
    seen = np.array([acquisition(pixels[row][0], data.records[row].rows, data.records[row].columns) for row in rows.tolist()])
    folds = data.folds(rows, min(_FOLDS, len(set(patients))), seed)
    known = np.empty((len(rows), truth.shape[1]))
    alone = np.empty_like(known)
    for fold in np.unique(folds):
        unseen = folds == fold
        known[unseen] = _refitted(config, probe.features, truth, ~unseen, probe.weight_decay)[unseen]
        alone[unseen] = _refitted(config, seen, truth, ~unseen, max(config.train.head.weight_decays))[unseen]
    groups = _groups(seen, patients, seed)
    weights, activation = np.ones((1, len(rows))), config.task.activation
    sites: list[dict[str, Any]] = []
    for group in np.unique(groups):
        inside = groups == group
        if not _has_both(truth[inside], np.array(patients)[inside]):
            continue
        away = _refitted(config, probe.features, truth, ~inside, probe.weight_decay)[inside]
        members = np.array(patients)[inside].tolist()
        pair = {"home": score_odds(known[inside], activation), "away": score_odds(away, activation)}
        found = bootstrap(partial(_of_site, pair, truth[inside]), members, _RESAMPLES, seed)
        sites.append(
            {
                "frames": int(inside.sum()),
                "patients": len(set(members)),
                "home": found["home"].value,
                "away": found["away"].value,
                "drop": _limits(found["drop"]),
            }
        )
    both = [_number(_areas(score_odds(one, activation), truth, weights)[0]) for one in (alone, known)]
    defined = [site for site in sites if site["away"] is not None]
    return {
        "sites": sites,
        "worst_site": min(defined, key=lambda site: site["away"]) if defined else None,
        "shortcut": {"acquisition": both[0], "network": both[1]},
    }


def _refitted(config: Config, features: Float64, truth: Float64, used: NDArray[np.bool_], decay: float) -> Float64:
    """Return the logits of all frames by a head that was fitted on some of them."""
    objective = Objective(config.task, config.train.imbalance, truth[used], find_loss(config))
    settings = config.train.head.model_copy(update={"weight_decays": (decay,)})
    some = features[used], truth[used]
    head = fit_head(some, some, objective, settings)
    return np.asarray(features @ head.weight.T + head.bias, np.float64)


def _groups(seen: Float64, patients: Sequence[str], seed: int) -> NDArray[np.int64]:
    """Return the group of each frame; those of a patient are in one."""
    from sklearn.cluster import KMeans

    names, members = np.unique(np.asarray(patients, str), return_inverse=True)
    counts = np.bincount(members)
    means = np.stack([np.bincount(members, column) / counts for column in seen.T], axis=1)
    spread = means.std(axis=0)
    standard = (means - means.mean(axis=0)) / np.where(spread > 1e-9, spread, 1)
    found = KMeans(min(GROUPS, len(names)), n_init=10, random_state=seed).fit_predict(standard)
    return np.asarray(found[members], np.int64)


def _has_both(truth: Float64, patients: NDArray[np.str_]) -> bool:
    counts = [len(set(patients[column == value])) for column in truth.T for value in (1, 0)]
    return min(counts) >= LEAST_PATIENTS


def _areas(odds: Float64, truth: Float64, weights: Float64) -> Float64:
    """Return the mean area over the labels for each row of weights, of shape (r,); nan if a label is not defined there."""
    found = []
    for column, target in zip(odds.T, truth.T, strict=True):
        known = ~np.isnan(target)
        found.append(auroc(curve(column[known], target[known], weights[:, known])))
    return np.asarray(np.mean(found, axis=0), np.float64)


def _of_site(odds: Mapping[str, Float64], truth: Float64, weights: Float64) -> dict[str, Float64]:
    found = {name: _areas(one, truth, weights) for name, one in odds.items()}
    return found | {"drop": found["home"] - found["away"]}


def _limits(one: Estimate) -> dict[str, float | None]:
    return {"value": one.value, "low": one.low, "high": one.high}


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
