"""A bundle at another site: what it is worth on labelled studies of that site, and its calibration to them.

Networks answer differently elsewhere, mostly by logits that are all too high or too low, and a threshold that was chosen at
home is then wrong, though the ranking holds. Two numbers for each label mend that from a few dozen studies. Nothing else of the
bundle changes: not the networks, and never the threshold above which frames are refused.
"""

import json
import math
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from pipeline.config import Config
from pipeline.errors import BundleError, InputError
from pipeline.evaluate.calibration import Float64, fit_calibration, fit_scale, frame_odds, log_losses, probabilities
from pipeline.evaluate.decisions import choose_operating_points, conformal_bands, with_figures
from pipeline.evaluate.drift import Home, load_home
from pipeline.evaluate.metrics import Sample, evaluate
from pipeline.evaluate.outliers import RANKED_PATIENTS, load_reference
from pipeline.evaluate.units import Units, level_sample
from pipeline.frames import TRAINING_SPLITS, FloatArray, ImageRecord, Split
from pipeline.ingest.index import Index
from pipeline.ingest.splits import assign_folds, strata_of
from pipeline.levels import LevelRule
from pipeline.model.bundle import (
    CONFIG,
    HOME,
    METRICS,
    MODEL_CARD,
    REFERENCE,
    Bundle,
    Conformal,
    LocalCalibration,
    Manifest,
    draft_manifest,
    write_bundle,
)
from pipeline.model.card import model_card
from pipeline.predictions import Activation, Calibration, ConformalBand, Interval, OperatingPoint, State
from pipeline.progress import Progress, silent, working
from pipeline.train.assessment import frames_sample, labelled_outputs, level_figures, measure_refusals
from pipeline.train.workspace import bundle_place

LEAST_PATIENTS = 10
"""With each label, and as many without it: bands at alpha 0.1 need 9 of each kind."""
FOLDS, REPETITIONS = 5, 10
HALF_WIDTH = 0.05
"""Of the 95 % interval of a sensitivity or a specificity that decides whether a bundle is accepted."""
_POWER = 0.8414
"""Standard normal quantile of a power of 80 %."""


@dataclass(frozen=True, slots=True, eq=False)
class _Site:
    """The labelled frames of an index whose patients are new to a bundle, with what the bundle says of them.

    Parameters
    ----------
    records, targets, logits, features, distances
        Of n frames.
    known_patients
        How many patients were left out, since frames of theirs belong to the data of the bundle.
    """

    manifest: Manifest
    home: Home
    records: tuple[ImageRecord, ...]
    targets: Float64
    logits: FloatArray
    features: Float64
    distances: Float64
    known_patients: int

    @property
    def answered(self) -> NDArray[np.bool_]:
        """Which frames the bundle does not refuse."""
        return np.asarray(self.distances <= 1, bool)

    @property
    def patients(self) -> tuple[str, ...]:
        """The patient of each frame."""
        return tuple(record.patient_key for record in self.records)

    @property
    def names(self) -> tuple[str, ...]:
        """The hash of the pixels of each frame."""
        return tuple(record.pixel_sha256 for record in self.records)

    def only(self, rows: NDArray[np.bool_]) -> "_Site":
        """Return some of the frames."""
        kept = tuple(record for record, is_kept in zip(self.records, rows, strict=True) if is_kept)
        return replace(
            self,
            records=kept,
            targets=self.targets[rows],
            logits=self.logits[rows],
            features=self.features[rows],
            distances=self.distances[rows],
        )

    def counts(self) -> tuple[dict[str, int], dict[str, int]]:
        """Return how many patients have each label in a frame, and how many have a frame without it."""
        named = np.array(self.patients)
        present, absent = (
            {
                label: len(set(named[column == value]))
                for label, column in zip(self.manifest.labels, self.targets.T, strict=True)
            }
            for value in (1, 0)
        )
        return present, absent

    def sample(self, calibration: Calibration | None = None, logits: Float64 | None = None) -> Sample:
        """Return the frames to be evaluated, at the decisions of the bundle."""
        sample = frames_sample(self.manifest, self.records, self.targets, self.logits if logits is None else logits)
        return replace(sample, calibration=calibration or self.manifest.calibration)


@dataclass(frozen=True, slots=True, eq=False)
class _Trial:
    """What calibration to a site brings, each frame measured by a calibration that was fitted without its patient.

    Parameters
    ----------
    refitted
        Shape (labels,): which labels have enough patients to be calibrated.
    before, after
        Log loss of each frame, the second one the mean over the repetitions.
    logits
        Calibrated, of the first repetition, shape (n, labels).
    states
        What would be decided, of the first repetition, shape (n, labels).
    """

    refitted: NDArray[np.bool_]
    before: Float64
    after: Float64
    logits: Float64
    states: NDArray[np.object_]
    patients: tuple[str, ...]

    @property
    def gain(self) -> Interval:
        """The mean loss before minus that after, with its 95 % interval by patient."""
        value, error, count = _mean(self.before - self.after, self.patients)
        reach = error * _quantile(count - 1)
        return Interval(value, value - reach, value + reach)

    def further_patients(self) -> int:
        """Return how many more patients would show with a power of 80 % which of both is better, at the gain seen so far."""
        value, error, count = _mean(self.before - self.after, self.patients)
        needed = (error * math.sqrt(count) * (1.96 + _POWER) / max(abs(value), 1e-9)) ** 2
        return max(0, math.ceil(needed) - count)


def calibrate_bundle(
    bundle: Bundle, index: Index, out: Path | str, *, decisions: bool = False, progress: Progress = silent
) -> Bundle:
    """Calibrate a bundle to the labelled studies of another site, and write the result as a new bundle.

    Each label gets a temperature and an offset of its own, or under softmax all labels one temperature and each an offset
    (`fit_calibration`). Operating points and bands are probabilities, so they keep their meaning; they are chosen again only if
    that is asked for. The threshold above which frames are refused is never changed. Results of studies, eyes and patients get
    their two numbers again, too.

    All splits of the index but `test` and `promotion` are used. What the calibration brings is measured on the same frames in
    folds by patient, with everything fitted on the other folds: the mean difference in log loss, and its 95 % interval by
    patient.

    Parameters
    ----------
    bundle
        As `load_bundle` gives it.
    index
        Labelled studies of the site. Patients of whom the bundle knows a frame, by the hash of its pixels, are left out.
    out
        Folder of the new bundle.
    decisions
        Whether operating points and bands are chosen again on these studies.
    progress
        Shows the number of frames scored.

    Raises
    ------
    InputError
        If fewer than `LEAST_PATIENTS` patients have a label, or lack it; if log loss would not fall; if `out` is the bundle
        itself, a file or an index; or as `evaluate_bundle` does.
    """
    out = Path(out)
    if bundle_place(out) == bundle.path.resolve():
        raise InputError(f"{out.name} is the bundle that is to be calibrated. Give --out another folder; both stay usable.")
    found = _site(bundle, index, (Split.TRAIN, Split.TUNE, Split.CALIBRATION), progress)
    site = found.only(found.answered)
    config = Config.model_validate(yaml.safe_load(bundle.read(CONFIG)))
    if lacking := _lacking(site):
        raise InputError(lacking)
    trial = working(progress, "measuring the gain", lambda: _try(site, config, decisions))
    gain = trial.gain
    if not (gain.value or 0) > 0:
        rise, low, high = (-(one or 0.0) for one in (gain.value, gain.high, gain.low))
        raise InputError(
            f"Local calibration makes the bundle no better here: the log loss of a frame rises by {rise:.4f} "
            f"(95 % interval {low:.4f} to {high:.4f}). Keep the bundle as it is."
        )
    present, absent = site.counts()
    refitted = tuple(label for label, is_refitted in zip(site.manifest.labels, trial.refitted, strict=True) if is_refitted)
    calibration, points, bands = _fitted(site, np.ones(len(site.records), bool), trial.refitted, config, decisions)
    local = LocalCalibration(
        parent=bundle.manifest.bundle_id,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        dataset_name=index.name,
        dataset_sha256=index.sha256,
        frames=len(site.records),
        patients=len(set(site.patients)),
        present=present,
        absent=absent,
        known_patients=site.known_patients,
        refused_frames=len(found.records) - len(site.records),
        refitted=refitted,
        decisions=decisions,
        log_loss_before=float(trial.before.mean()),
        log_loss_after=float(trial.after.mean()),
        gain=gain,
        proven=(gain.low or 0) > 0,
    )
    measured = replace(
        site.sample(Calibration.of(1.0, len(points)), trial.logits),
        targets=site.targets,  # as training has it: what was given for a study counts in each of its frames
        operating_points=points,
        bands=bands,
    )
    points = _with_local_figures(points, measured, trial.refitted, decisions)
    levels, without = _levels(bundle, found, calibration, trial.refitted, config, decisions)
    fields = {name: value for name, value in bundle.manifest if name not in ("schema_version", "bundle_id", "files")} | {
        "calibration": calibration,
        "operating_points": points,
        "conformal": Conformal(alpha=bundle.manifest.conformal.alpha, bands=bands),
        "levels": levels,
        "local": local,
    }
    metrics = json.loads(bundle.read(METRICS)) | {
        "local": local.model_dump(mode="json") | {"figures": _before_and_after(site, trial), "levels_left_out": without}
    }
    contents = {name: bundle.read(name) for name in bundle.manifest.files} | {
        METRICS: (json.dumps(metrics, indent=2) + "\n").encode(),
        HOME: site.home.with_frames(record.pixel_sha256 for record in found.records).to_bytes(),
        MODEL_CARD: model_card(draft_manifest(**fields), metrics, ranked_patients=RANKED_PATIENTS).encode(),
    }
    return write_bundle(out, contents, **fields)


def accept_bundle(
    bundle: Bundle, index: Index, *, splits: Collection[Split] = TRAINING_SPLITS, progress: Progress = silent
) -> dict[str, Any]:
    """Report whether a bundle can be trusted on labelled studies of another site, as JSON has it.

    Its members are `figures`, as in `Evaluation.to_json` (frames that the bundle refuses are left out, as in scoring);
    `frames`, `patients` and `known_patients`, who were left out since the bundle knows frames of theirs; `home`, the same
    figures as the model card has them, None if there are none; `refusals` and `uncertain`; `drift`, the tests of `Home.drift`;
    `calibration`, what `calibrate_bundle` would bring; and `needed`, how many more patients a decision needs.

    Parameters
    ----------
    bundle, index, progress
        As in `calibrate_bundle`.
    splits
        Which frames of the index are taken.

    Raises
    ------
    InputError
        If no patient is new to the bundle, or all frames are refused; or as `evaluate_bundle` does.
    """
    found = _site(bundle, index, splits, progress)
    site, manifest = found.only(found.answered), bundle.manifest
    if not len(site.records):
        raise InputError(
            f"The bundle refuses all {len(found.records)} frames of the index {index.name}: they are unlike those that it was "
            "trained on. Use a bundle that was made for such images."
        )
    config = Config.model_validate(yaml.safe_load(bundle.read(CONFIG)))
    reference = load_reference(bundle.read(REFERENCE), manifest.outliers.threshold)
    evaluation = working(
        progress, "resampling patients", lambda: evaluate(site.sample(), config.evaluate.bootstrap, config.train.seed)
    )
    levels = level_figures(bundle, config, found.records, found.targets, found.logits, found.features)
    figures = replace(evaluation, levels=levels).to_json()
    drift = found.home.drift(
        manifest.labels,
        found.logits,
        found.distances,
        manifest.activation,
        patients=found.patients,
        names=found.names,
    )
    gain: dict[str, Any] = {"not_measured": _lacking(site)}
    trial = None if gain["not_measured"] else working(progress, "measuring the gain", lambda: _try(site, config, False))
    if trial:
        one = trial.gain
        verdict = "gain" if (one.low or 0) > 0 else "loss" if (one.high or 0) < 0 else "unproven"
        gain = asdict(one) | {
            "log_loss_before": float(trial.before.mean()),
            "log_loss_after": float(trial.after.mean()),
            "verdict": verdict,
        }
    metrics = json.loads(bundle.read(METRICS))
    return {
        "bundle_id": manifest.bundle_id,
        "index": index.name,
        "frames": len(found.records),
        "patients": len(set(found.patients)),
        "known_patients": found.known_patients,
        "figures": figures,
        "home": metrics.get("evaluation"),
        "refusals": measure_refusals(reference, found.features, found.patients).model_dump(mode="json"),
        "home_refusals": metrics.get("refusals"),
        "drift": {name: asdict(one) for name, one in drift.items()},
        "calibration": gain,
        "needed": _needed(site, trial),
    }


def _site(bundle: Bundle, index: Index, splits: Collection[Split], progress: Progress) -> _Site:
    """Score the frames of some splits whose patients are new to a bundle and of which something is known."""
    manifest = bundle.manifest
    records = tuple(record for record in index.records if record.split in splits)
    try:
        home = load_home(bundle.read(HOME), len(manifest.labels))
    except ValueError:
        raise BundleError(f"The file {HOME} of bundle {bundle.path.name} cannot be used. Train the bundle again.") from None
    is_known = home.knows([record.pixel_sha256 for record in records])
    known = {record.patient_key for record, found in zip(records, is_known, strict=True) if found}
    records = tuple(record for record in records if record.patient_key not in known)
    if not records:
        raise InputError(
            f"The index {index.name} has no patient that is new to the bundle: it knows frames of all {len(known)}. "
            "Ingest studies of other patients."
            if known
            else f"The index {index.name} has no frame in the splits {', '.join(sorted(splits))}. Choose others."
        )
    records, targets, logits, features = labelled_outputs(bundle, index, records, progress)
    reference = load_reference(bundle.read(REFERENCE), manifest.outliers.threshold)
    distances = np.array([reference.distance(one) for one in features])
    return _Site(manifest, home, records, targets, logits, features, distances, len(known))


def _refittable(site: _Site) -> NDArray[np.bool_]:
    """Return which labels have enough patients with and without them; under softmax all labels or none have."""
    present, absent = site.counts()
    enough = np.array([min(present[label], absent[label]) >= LEAST_PATIENTS for label in site.manifest.labels])
    return np.full_like(enough, enough.all()) if site.manifest.activation is Activation.SOFTMAX else enough


def _lacking(site: _Site) -> str:
    """Say which patients are missing if no label can be calibrated; empty if one can."""
    if len(site.records) and _refittable(site).any():
        return ""
    present, absent = site.counts()
    found = "; ".join(f"{label} {present[label]} with and {absent[label]} without" for label in site.manifest.labels)
    return (
        f"Local calibration needs {LEAST_PATIENTS} new patients with each label and {LEAST_PATIENTS} without it, whose frames "
        f"the bundle does not refuse. There are: {found}. Label more studies."
    )


def _fitted(
    site: _Site, rows: NDArray[np.bool_], refitted: NDArray[np.bool_], config: Config, decisions: bool
) -> tuple[Calibration, tuple[OperatingPoint, ...], tuple[ConformalBand, ...]]:
    """Fit the calibration on some frames, and choose operating points and bands on them if that is asked for."""
    manifest, targets = site.manifest, site.targets[rows]
    logits = np.asarray(site.logits[rows], np.float64)
    calibration = fit_calibration(logits, targets, manifest.activation, manifest.calibration, refitted)
    points, bands = manifest.operating_points, manifest.conformal.bands
    if decisions:
        chances = probabilities(logits, manifest.activation, calibration.temperatures, calibration.offsets)
        patients = [patient for patient, is_used in zip(site.patients, rows, strict=True) if is_used]
        points, bands = _decided(manifest, chances, targets, patients, points, bands, refitted, config)
    return calibration, points, bands


def _decided(
    manifest: Manifest,
    chances: Float64,
    targets: Float64,
    patients: Sequence[str],
    points: tuple[OperatingPoint, ...],
    bands: tuple[ConformalBand, ...],
    refitted: NDArray[np.bool_],
    config: Config,
) -> tuple[tuple[OperatingPoint, ...], tuple[ConformalBand, ...]]:
    """Choose operating points and bands again for the labels that are calibrated, by the criteria of the parent."""
    chosen, known = list(points), {band.label: band for band in bands}
    for place in np.flatnonzero(refitted).tolist():
        only = chances[:, [place]], targets[:, [place]]
        (chosen[place],) = choose_operating_points(*only, (points[place].label,), points[place].criterion)
        alpha, resamples = manifest.conformal.alpha, config.evaluate.bootstrap
        (band,) = conformal_bands(*only, patients, (chosen[place],), alpha, resamples, config.train.seed)
        known[band.label] = band
    return tuple(chosen), tuple(known[point.label] for point in chosen if point.label in known)


def _with_local_figures(
    points: tuple[OperatingPoint, ...], sample: Sample, refitted: NDArray[np.bool_], decisions: bool
) -> tuple[OperatingPoint, ...]:
    """Return the points of the labels that are calibrated with their figures at the site, the others as they are."""
    pairs = zip(with_figures(points, sample, are_chosen=decisions), points, refitted, strict=True)
    return tuple(new if is_refitted else old for new, old, is_refitted in pairs)


def _try(site: _Site, config: Config, decisions: bool) -> _Trial:
    """Measure each frame by what is fitted without its patient, in several divisions into folds."""
    manifest, refitted = site.manifest, _refittable(site)
    activation, before = manifest.activation, manifest.calibration
    logits = np.asarray(site.logits, np.float64)
    studies = [record.key.study_instance_uid for record in site.records]
    strata = strata_of(site.targets, manifest.labels)
    losses, first, states = [], np.empty_like(logits), np.empty(logits.shape, object)
    for repetition in range(REPETITIONS):
        assigned = np.array(
            assign_folds(site.patients, strata, site.names, studies, FOLDS, config.train.seed + repetition), np.int64
        )
        moved = np.empty_like(logits)
        for fold in range(FOLDS):
            unseen = assigned == fold
            if not unseen.any():
                continue
            chooses = decisions and repetition == 0
            calibration, points, bands = _fitted(site, ~unseen, refitted, config, chooses)
            moved[unseen] = logits[unseen] / calibration.temperatures + calibration.offsets
            if repetition == 0:
                rule = replace(site.sample(), operating_points=points, bands=bands, calibration=calibration)
                states[unseen] = rule.states[unseen]
        losses.append(log_losses(moved, site.targets, activation, Calibration.of(1.0, moved.shape[1])))
        if repetition == 0:
            first = moved
    loss = log_losses(logits, site.targets, activation, before)
    return _Trial(refitted, loss, np.mean(losses, axis=0), first, states, site.patients)


def _before_and_after(site: _Site, trial: _Trial) -> dict[str, Any]:
    """Return for each label the sensitivity, the specificity and the share of uncertain frames, as the bundle is and as it
    would be, each frame decided without its patient; None if there is no such frame."""
    both = {"before": site.sample().states, "after": trial.states}
    found: dict[str, Any] = {}
    for place, label in enumerate(site.manifest.labels):
        truth = site.targets[:, place]
        found[label] = {
            when: {
                "sensitivity": _part(states[truth == 1, place] == State.POSITIVE),
                "specificity": _part(states[truth == 0, place] == State.NEGATIVE),
                "uncertain": _part(states[~np.isnan(truth), place] == State.UNCERTAIN),
            }
            for when, states in both.items()
        }
    return found


def _part(hits: NDArray[np.bool_]) -> float | None:
    return float(np.mean(hits)) if len(hits) else None


def _levels(
    bundle: Bundle, site: _Site, calibration: Calibration, refitted: NDArray[np.bool_], config: Config, decisions: bool
) -> tuple[tuple[LevelRule, ...], list[str]]:
    """Fit scales and offsets of each level again; a level without enough units is left out, and named."""
    manifest, attention = bundle.manifest, bundle.attention()
    rules, without = [], []
    for rule in manifest.levels:
        units = _units(rule, site, calibration)
        patients = np.array(units.patients)
        columns = units.targets.T[refitted]
        if any(len(set(patients[truth == value])) < LEAST_PATIENTS for truth in columns for value in (1, 0)):
            without.append(rule.level.value)
            continue
        seen = units.pooled(rule.pooling, attention.get(rule.level))
        pooled = np.full(seen.shape[1], refitted.all()) if units.labels.are_grades else refitted
        scaled = [np.array(one) for one in (rule.scales, rule.offsets)]
        if pooled.all():
            scales, offsets = units.scaled(seen)
        else:  # a label without enough patients keeps its own
            scales, offsets = scaled
            for place in np.flatnonzero(pooled):
                scales[place], offsets[place] = fit_scale(seen[:, place], units.targets[:, place])
        points, bands = rule.operating_points, rule.bands
        if decisions:
            chances = units.labels.probabilities(seen * scales + offsets)
            points, bands = _decided(manifest, chances, units.targets, units.patients, points, bands, refitted, config)
        made = LevelRule(rule.level, rule.pooling, tuple(scales.tolist()), tuple(offsets.tolist()), points, bands)
        sample = level_sample(made, units, attention.get(rule.level))
        rules.append(replace(made, operating_points=_with_local_figures(points, sample, refitted, decisions)))
    return tuple(rules), without


def _units(rule: LevelRule, site: _Site, calibration: Calibration) -> Units:
    labels = site.manifest.label_set
    odds = frame_odds(site.logits, labels, calibration)
    return Units(rule.level, site.records, site.targets, labels, odds, site.features, ~site.answered)


def _needed(site: _Site, trial: _Trial | None) -> dict[str, Any]:
    """Return how many more patients a decision needs: on calibration, and on the figures of each label (Buderer 1996)."""
    present, absent = site.counts()
    sample = site.sample()
    figures = {}
    for place, label in enumerate(site.manifest.labels):
        truth, states = sample.targets[:, place], sample.states[:, place]
        hits = states[truth == 1] == State.POSITIVE, states[truth == 0] == State.NEGATIVE
        wanted = [_patients_for(int(one.sum()), len(one)) for one in hits]
        figures[label] = {
            "present": max(0, wanted[0] - present[label]),
            "absent": max(0, wanted[1] - absent[label]),
        }
    return {
        "patients_for_calibration": trial.further_patients() if trial and _is_open(trial) else 0,
        "patients_for_figures": figures,
    }


def _is_open(trial: _Trial) -> bool:
    return not ((trial.gain.low or 0) > 0 or (trial.gain.high or 0) < 0)


def _patients_for(hits: int, total: int) -> int:
    """Return how many patients give an interval of `HALF_WIDTH` to both sides, for a proportion near that seen so far.

    Buderer, "Statistical methodology: I. Incorporating the prevalence of disease into the sample size calculation for
    sensitivity and specificity", Academic Emergency Medicine 1996; the proportion is that of Agresti and Coull (1998), which is
    never 0 or 1.
    """
    part = (hits + 2) / (total + 4)
    return math.ceil(1.96**2 * part * (1 - part) / HALF_WIDTH**2)


def _mean(values: Float64, patients: Sequence[str]) -> tuple[float, float, int]:
    """Return the mean of frames, its standard error with frames clustered by patient, and the number of patients."""
    _, members = np.unique(np.asarray(patients, str), return_inverse=True)
    value, sums = float(values.mean()), np.bincount(members, values - values.mean())
    count = len(sums)
    return value, float(np.sqrt(count / max(count - 1, 1) * np.sum(sums**2))) / len(values), count


def _quantile(freedom: int) -> float:
    from scipy.special import stdtrit

    return float(stdtrit(max(freedom, 1), 0.975))
