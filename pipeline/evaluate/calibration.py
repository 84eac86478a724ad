"""Turns logits into calibrated probabilities, and measures how far probabilities are from observed frequencies."""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pipeline.errors import InputError
from pipeline.levels import LabelSet
from pipeline.predictions import Activation, Calibration, rounded

Float64 = NDArray[np.float64]

TEMPERATURE_RANGE = (0.05, 20.0)
BINS = 15
_LEAST_SCALE = 1e-3
"""Of a logit of unit spread: less would be no ranking any more."""


def probabilities(logits: ArrayLike, activation: Activation, temperature: ArrayLike = 1.0, offset: ArrayLike = 0.0) -> Float64:
    """Turn logits into probabilities: the activation of `logits / temperature + offset`.

    Parameters
    ----------
    logits
        Array of shape (n, labels), finite; computed in float64 whatever its type.
    activation
        Softmax over the labels, or sigmoid of each label.
    temperature, offset
        One for all labels, or one for each, as in `Calibration`; 1 and 0 leave the network's own probabilities.

    Returns
    -------
    Float64
        Shape (n, labels), in [0, 1]; the rows of a softmax sum to 1.
    """
    moved = np.asarray(logits, np.float64) / np.asarray(temperature, np.float64) + np.asarray(offset, np.float64)
    return np.exp(_log_probabilities(moved, activation))


def stored(values: ArrayLike) -> Float64:
    """Return numbers `rounded`, as the record of a study keeps them, so that what follows from them is the same anywhere."""
    exact = np.asarray(values, np.float64)
    return np.array([rounded(one) for one in exact.ravel().tolist()], np.float64).reshape(exact.shape)


def frame_odds(logits: ArrayLike, labels: LabelSet, calibration: Calibration) -> Float64:
    """Return the log odds of the calibrated probabilities of frames, as results of studies, eyes and patients pool them.

    Parameters
    ----------
    logits, calibration
        As in `probabilities`; logits as they are `stored`.
    labels
        Say what is pooled, and how logits become probabilities.
    """
    found = probabilities(stored(logits), labels.task.activation, calibration.temperatures, calibration.offsets)
    return labels.odds(found)


def fit_temperature(logits: ArrayLike, targets: ArrayLike, activation: Activation) -> float:
    """Fit the temperature that makes the labels of the calibration split most likely.

    Temperature scaling as in Guo et al., "On Calibration of Modern Neural Networks" (ICML 2017): the mean negative log
    likelihood is minimised over the logarithm of the temperature; it is convex in the inverse temperature and so has a single
    minimum. If every frame is classified correctly, that minimum lies at temperature zero, a certainty that no finite number of
    frames supports; therefore one more frame is counted whose label is spread evenly (a weaker form of the prior in Platt's
    scaling, 1999), and the temperature is kept within [0.05, 20].

    Parameters
    ----------
    logits
        Array of shape (n, labels), finite.
    targets
        Array of shape (n, labels) of 1, 0 and nan (not known). Under sigmoid what is nan is left out; under softmax the frames
        are left out of which no label is known to hold.
    activation
        As in `probabilities`.

    Raises
    ------
    InputError
        If no target is known.
    """
    from scipy.optimize import minimize_scalar

    scaled = np.asarray(logits, np.float64)
    weights = _likelihood_weights(np.asarray(targets, np.float64), activation)

    def loss(log_temperature: float) -> float:
        logs = scaled / np.exp(log_temperature)
        positive = _log_probabilities(logs, activation)
        total = np.sum(weights[0] * positive)
        if activation is Activation.SIGMOID:
            total += np.sum(weights[1] * _log_probabilities(-logs, activation))
        return -float(total)

    bounds = tuple(np.log(TEMPERATURE_RANGE))
    found = minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-6})
    return float(np.clip(np.exp(found.x), *TEMPERATURE_RANGE))


def fit_temperatures(logits: ArrayLike, targets: ArrayLike, activation: Activation) -> Calibration:
    """Fit one temperature under softmax, and one for each label under sigmoid, where each label is a question of its own.

    A label that is not known in any frame keeps the temperature that suits all labels together. Parameters and errors are those
    of `fit_temperature`.
    """
    values, truth = np.asarray(logits, np.float64), np.asarray(targets, np.float64)
    shared, labels = fit_temperature(values, truth, activation), range(truth.shape[1])
    if activation is Activation.SOFTMAX:
        return Calibration.of(shared, len(labels))
    own = [
        shared if np.isnan(truth[:, one]).all() else fit_temperature(values[:, [one]], truth[:, [one]], activation)
        for one in labels
    ]
    return Calibration(tuple(own), (0.0,) * len(own))


def fit_scale(logits: ArrayLike, targets: ArrayLike) -> tuple[float, float]:
    """Fit the scale and the offset that make the truth of one label most likely, given sigmoid(scale x logit + offset).

    Platt's scaling (1999) with his targets, (n+ + 1) / (n+ + 2) and 1 / (n- + 2), so that both stay finite even if all are
    classified correctly. An offset is needed if logits are all too high, as those of a noisy-or over many frames.

    Parameters
    ----------
    logits
        Shape (n,), finite, of any size.
    targets
        Shape (n,) of 1, 0 and nan (not known, left out).

    Returns
    -------
    tuple of float
        The scale, positive, so that the ranking stays, and the offset.

    Raises
    ------
    InputError
        If no target is known.
    """
    from scipy.optimize import minimize

    known = ~np.isnan(np.asarray(targets, np.float64))
    values, truth = np.asarray(logits, np.float64)[known], np.asarray(targets, np.float64)[known] == 1
    if not len(values):
        raise InputError("No target is known to fit the scale on. Put labelled patients into the calibration split.")
    present, absent = int(truth.sum()), int((~truth).sum())
    soft = np.where(truth, (present + 1) / (present + 2), 1 / (absent + 2))
    centre, spread = float(values.mean()), max(float(values.std()), 1e-6)
    standard = (values - centre) / spread

    def loss(parameters: Float64) -> tuple[float, Float64]:
        moved = parameters[0] * standard + parameters[1]
        slope = np.exp(-np.logaddexp(0, -moved)) - soft
        total = np.mean(np.logaddexp(0, moved) - soft * moved)
        return float(total), np.array([np.mean(slope * standard), np.mean(slope)])

    bounds = ((_LEAST_SCALE, None), (None, None))
    found = minimize(
        loss, np.array([1.0, 0.0]), jac=True, method="L-BFGS-B", bounds=bounds, options={"gtol": 1e-9, "ftol": 1e-15}
    )
    scale = float(found.x[0]) / spread
    return scale, float(found.x[1]) - scale * centre


def fit_steps(logits: ArrayLike, targets: ArrayLike) -> tuple[Float64, Float64]:
    """Fit one scale and an offset for each step between grades, as `fit_scale` does for one label.

    The losses of the steps are added up. All steps have the same scale, and offsets that do not rise (proportional odds,
    McCullagh 1980), so that probabilities of shape (n, steps) that do not rise from one step to the next still do not.

    Parameters
    ----------
    logits
        Shape (n, steps), finite, not rising along a row.
    targets
        Shape (n, steps) of 1, 0 and nan (not known, left out).

    Returns
    -------
    tuple of Float64
        The scales, which are equal and positive, and the offsets, each of shape (steps,).

    Raises
    ------
    InputError
        If no target of a step is known.
    """
    from scipy.optimize import minimize

    values, truth = np.asarray(logits, np.float64), np.asarray(targets, np.float64)
    known = ~np.isnan(truth)
    if not known.any(axis=0).all():
        raise InputError("No target is known to fit the scale on. Put labelled patients into the calibration split.")
    present, absent = (truth == 1).sum(axis=0), (truth == 0).sum(axis=0)
    soft = np.where(truth == 1, (present + 1) / (present + 2), 1 / (absent + 2))
    centre, spread = float(values[known].mean()), max(float(values[known].std()), 1e-6)
    standard, count = (values - centre) / spread, int(known.sum())

    def loss(parameters: Float64) -> tuple[float, Float64]:
        moved = parameters[0] * standard + np.cumsum(parameters[1:])
        slope = np.where(known, np.exp(-np.logaddexp(0, -moved)) - soft, 0)
        total = np.where(known, np.logaddexp(0, moved) - soft * moved, 0).sum() / count
        by_step = slope.sum(axis=0) / count
        return float(total), np.append((slope * standard).sum() / count, np.cumsum(by_step[::-1])[::-1])

    steps = truth.shape[1]
    bounds = ((_LEAST_SCALE, None), (None, None), *(((None, 0.0),) * (steps - 1)))
    start = np.append(1.0, np.zeros(steps))
    found = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds, options={"gtol": 1e-9, "ftol": 1e-15})
    scale = float(found.x[0]) / spread
    return np.full(steps, scale), np.cumsum(found.x[1:]) - scale * centre


def fit_calibration(
    logits: ArrayLike, targets: ArrayLike, activation: Activation, start: Calibration, refitted: NDArray[np.bool_]
) -> Calibration:
    """Fit a temperature and an offset of each label that make the targets most likely.

    Under sigmoid each label has Platt's two numbers (`fit_scale`). Under softmax all labels share the temperature, and each has
    an offset: temperature scaling with corrected bias (Alexandari, Kundaje and Shrikumar, "Maximum likelihood with
    bias-corrected calibration is hard-to-beat at label shift adaptation", ICML 2020), which for two labels is Platt's scaling
    of their difference. Targets are those of Platt (1999), carried over to several labels: of n frames of a label each counts
    as (n + 1) / (n + labels) of it and as 1 / (n + labels) of each other one, so that all stays finite.

    Parameters
    ----------
    logits, targets, activation
        As in `fit_temperature`.
    start
        Kept for labels that are not fitted again.
    refitted
        Shape (labels,): which labels are fitted; under softmax all or none.

    Raises
    ------
    InputError
        If no target is known of a label that is fitted.
    """
    values, truth = np.asarray(logits, np.float64), np.asarray(targets, np.float64)
    if activation is Activation.SOFTMAX:
        return _fit_softmax(values, truth) if refitted.all() else start
    temperatures, offsets = list(start.temperatures), list(start.offsets)
    for place in np.flatnonzero(refitted):
        scale, offset = fit_scale(values[:, place], truth[:, place])
        temperatures[place], offsets[place] = 1 / scale, offset
    return Calibration(tuple(temperatures), tuple(offsets))


def _fit_softmax(logits: Float64, targets: Float64) -> Calibration:
    from scipy.optimize import minimize

    known = (targets == 1).any(axis=1)
    if not known.any():
        raise InputError("No target is known to fit the calibration on. Put labelled patients into the index.")
    values, truth = logits[known], (targets[known] == 1).argmax(axis=1)
    labels = values.shape[1]
    counts = np.bincount(truth, minlength=labels)
    soft = np.repeat((1 / (counts + labels))[truth, None], labels, axis=1)
    soft[np.arange(len(truth)), truth] = ((counts + 1) / (counts + labels))[truth]
    centred = values - values.mean(axis=1, keepdims=True)
    spread = max(float(centred.std()), 1e-6)
    standard = centred / spread

    def loss(parameters: Float64) -> tuple[float, Float64]:
        moved = parameters[0] * standard + parameters[1:]
        logs = _log_probabilities(moved, Activation.SOFTMAX)
        slope = (np.exp(logs) - soft) / len(truth)
        return -float(np.sum(soft * logs)) / len(truth), np.append(np.sum(slope * standard), slope.sum(axis=0))

    bounds = ((_LEAST_SCALE, None), *((None, None) for _ in range(labels)))
    start = np.append(1.0, np.zeros(labels))
    found = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds, options={"gtol": 1e-9, "ftol": 1e-15})
    offsets = found.x[1:] - found.x[1:].mean()
    return Calibration((spread / float(found.x[0]),) * labels, tuple(map(float, offsets)))


def log_losses(logits: ArrayLike, targets: ArrayLike, activation: Activation, calibration: Calibration) -> Float64:
    """Return the log loss of each frame, of shape (n,), not negative.

    Under softmax it is minus the logarithm of the probability of the label that holds, under sigmoid the mean over the labels
    of which it is known whether they hold; nan if that is known of none.

    Parameters are those of `frame_odds` and `fit_temperature`.
    """
    truth = np.asarray(targets, np.float64)
    scaled = np.asarray(logits, np.float64) / np.array(calibration.temperatures) + np.array(calibration.offsets)
    losses = -_log_probabilities(scaled, activation)
    if activation is Activation.SOFTMAX:
        counted = truth == 1
    else:
        losses = np.where(truth == 1, losses, -_log_probabilities(-scaled, activation))
        counted = ~np.isnan(truth)
    return ratio(np.where(counted, losses, 0).sum(axis=1), counted.sum(axis=1))


class Reliability(NamedTuple):
    """Sums over bins of equal width, each of shape (bins,): frames, their probability and observed positives."""

    frames: Float64
    probability: Float64
    positive: Float64


def reliability(probabilities: Float64, targets: Float64, bins: int = BINS) -> Reliability:
    """Sum frames, probabilities and positives of one label over bins of equal width.

    Parameters
    ----------
    probabilities
        Shape (n,), in [0, 1].
    targets
        Shape (n,) of 1 and 0.
    bins
        Number of bins over [0, 1]; a bin holds its upper edge, the first one zero as well.
    """
    place = np.searchsorted(np.linspace(0, 1, bins + 1)[1:-1], probabilities)
    sums = [np.bincount(place, values, bins) for values in (np.ones(len(targets)), probabilities, targets)]
    return Reliability(*(column.astype(np.float64) for column in sums))


def expected_calibration_error(probabilities: Float64, targets: Float64, bins: int = BINS) -> float:
    """Return the mean distance between the probability of one label and its observed frequency, in [0, 1].

    Bins of equal width as in Guo et al. (ICML 2017), one label against the rest as in Kull et al., "Beyond temperature scaling"
    (NeurIPS 2019). Parameters as in `reliability`; nan without frames.
    """
    sums = reliability(probabilities, targets, bins)
    return float(ratio(np.abs(sums.probability - sums.positive).sum(), sums.frames.sum()))


def adaptive_calibration_error(probabilities: Float64, targets: Float64, bins: int = BINS) -> float:
    """Return the mean distance between probability and frequency in bins of as many frames each, in [0, 1].

    Nixon et al., "Measuring calibration in deep learning" (CVPR workshops 2019): bins of equal width leave most of them nearly
    empty if probabilities gather at 0 and 1. Frames with the same probability stay in the order given; parameters as in
    `reliability`; nan without frames.
    """
    if not len(targets):
        return float("nan")
    order = np.argsort(probabilities, kind="stable")
    parts = np.array_split(order, min(bins, len(order)))
    return float(sum(abs((probabilities[part] - targets[part]).sum()) for part in parts) / len(targets))


def brier_score(probabilities: Float64, targets: Float64, weights: Float64 | None = None) -> Float64:
    """Return the mean squared difference between the probability of one label and its truth (Brier 1950), in [0, 1].

    Parameters
    ----------
    probabilities
        Shape (n,), in [0, 1].
    targets
        Shape (n,) of 1 and 0.
    weights
        Shape (..., n), not negative; None: all one.

    Returns
    -------
    Float64
        Shape (...), nan if all weights are 0.
    """
    weighed = np.ones(len(targets)) if weights is None else weights
    return ratio(weighed @ (probabilities - targets) ** 2, weighed.sum(-1))


def ratio(numerator: ArrayLike, denominator: ArrayLike) -> Float64:
    """Divide, with nan if the denominator is zero."""
    above, below = np.asarray(numerator, np.float64), np.asarray(denominator, np.float64)
    quotients: Float64 = np.full(np.broadcast_shapes(above.shape, below.shape), np.nan)
    np.divide(above, below, out=quotients, where=below != 0)
    return quotients


def _log_probabilities(logits: Float64, activation: Activation) -> Float64:
    if activation is Activation.SIGMOID:
        return -np.logaddexp(0, -logits)
    shifted = logits - logits.max(axis=1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)), np.float64)


def _likelihood_weights(targets: Float64, activation: Activation) -> Float64:
    """Return the weights of the log probabilities of each label being present and, under sigmoid, of it being absent.

    Shape (2, n, labels). One frame more than the n known ones is spread evenly: under softmax a target y becomes
    (n y + 1 / labels) / (n + 1), under sigmoid, label by label, (n y + 1 / 2) / (n + 1).
    """
    softmax = activation is Activation.SOFTMAX
    used = np.broadcast_to(np.any(targets == 1, axis=1, keepdims=True), targets.shape) if softmax else ~np.isnan(targets)
    known = used.sum(axis=0)
    if not known.any():
        raise InputError("No target is known to fit the temperature on. Put labelled patients into the calibration split.")
    share = 1 / targets.shape[1] if softmax else 0.5
    smooth = (known * (targets == 1) + share) / (known + 1)
    shares: Float64 = np.stack([smooth, 1 - smooth]) * used / used.sum()
    return shares
