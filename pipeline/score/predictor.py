"""From frames to predictions with heatmaps: everything a bundle can say, without files and without HTTP."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import ArrayLike, NDArray
from safetensors import SafetensorError
from safetensors.numpy import load

from pipeline.errors import BundleError, Reason, UnreadableError
from pipeline.evaluate.calibration import probabilities
from pipeline.evaluate.outliers import load_reference, pooled
from pipeline.frames import FloatArray, Frame, FrameFacts, Quarantined
from pipeline.imaging.preprocess import reading_for
from pipeline.imaging.quality.gate import check_tools
from pipeline.model.bundle import REFERENCE, Bundle, Manifest, Member
from pipeline.model.engine import closed_form_maps
from pipeline.model.ensemble import Ensemble, mean_maps
from pipeline.predictions import FramePrediction, Heatmap, Prediction
from pipeline.score.reading import Admission, Admitted

NEAR_LOGIT = 0.6
"""A frame decoded at a reduced resolution is near a threshold if calibrated logits that differ by so much would put any of its
labels into another state; DECISIONS.md says what was measured."""
NEAR_DISTANCE = 0.05
"""The same for its distance from the training frames, in units of the bundle's threshold."""


class Predictor:
    """A bundle that is ready to score; may be called from several threads at once.

    Parameters
    ----------
    bundle
        As `load_bundle` gives it.
    threads
        How many cores one call may use; 0 takes all of them.

    Attributes
    ----------
    path
        Of the bundle.
    manifest
        That of the bundle.
    admission
        What it asks of files and frames.
    engine
        What runs its graphs.

    Raises
    ------
    BundleError
        If graph, classifier, reference, labels and operating points do not belong together.
    ConfigError
        If the bundle's quality gate needs what is not installed.
    """

    def __init__(self, bundle: Bundle, threads: int = 0) -> None:
        self.manifest = bundle.manifest
        self.path = bundle.path.absolute()
        preprocessing = bundle.manifest.preprocessing
        self.admission = Admission(reading_for(preprocessing, bundle.manifest.limits), bundle.manifest.gate(), preprocessing)
        check_tools(self.admission.gate)
        self.engine = Ensemble.of(bundle, threads)
        shown = {place: bundle.manifest.members[place] for place in bundle.manifest.heatmap.members}
        closed = {place: member for place, member in shown.items() if member.maps.computed == "closed_form"}
        self._classifiers = {place: _classifier(bundle, member) for place, member in closed.items()}
        self._maps = {place: _maps(bundle, member, self._classifiers.get(place)) for place, member in shown.items()}
        self._thresholds = _thresholds(bundle.manifest)
        self._rule = bundle.manifest.rule()
        self._attention = bundle.attention()
        try:
            self._reference = load_reference(bundle.read(REFERENCE), bundle.manifest.outliers.threshold)
        except ValueError:
            raise BundleError(f"The file {REFERENCE} of bundle {bundle.path.name} cannot be used. {_MEND}") from None
        self._check_shapes()

    @property
    def runs_in_workers(self) -> bool:
        """Whether every process can have one: it needs neither a GPU nor torch."""
        return self.engine.is_on_processor and self.manifest.heatmap.computed != "gradient"

    def predict(self, frames: Sequence[Frame], heatmaps: bool = True) -> list[FramePrediction]:
        """Score frames, in their order; a frame's result does not depend on the frames beside it.

        Parameters
        ----------
        frames
            Of any shape, from any number of studies.
        heatmaps
            Whether to add a heatmap for every label.

        Raises
        ------
        UnreadableError
            If the bundle's quality gate refuses a frame, which `admission` tells beforehand, or if a frame is unlike all
            that the bundle was trained on.
        """
        admission = replace(self.admission, drawn=False)
        admitted = [admission.admit(frame) for frame in frames]
        results = []
        for part in self.engine.parts(len(admitted)):
            for result, _ in self._predict(admitted[part], heatmaps):
                if isinstance(result, Quarantined):
                    raise UnreadableError(Reason(result.reason), result.message)
                results.append(result)
        return results

    def predict_admitted(
        self, admitted: Sequence[Admitted], heatmaps: bool = True
    ) -> list[FramePrediction | Quarantined | Admitted]:
        """Score frames that `admission` has let pass, as `predict` does, and refuse none of the others for one of them.

        Returns
        -------
        list of FramePrediction, Quarantined or Admitted
            In the order of the frames. `Quarantined` with `Reason.OUT_OF_DISTRIBUTION` if a frame is unlike all that the bundle
            was trained on. The frame itself if it was decoded at a reduced resolution, and its answer is so near a
            threshold that the whole frame may be on the other side: read it whole (`read_whole`), and score that.
        """
        return [
            item if is_near else result
            for part in self.engine.parts(len(admitted))
            for item, (result, is_near) in zip(admitted[part], self._predict(admitted[part], heatmaps), strict=True)
        ]

    def _predict(self, admitted: Sequence[Admitted], heatmaps: bool) -> list[tuple[FramePrediction | Quarantined, bool]]:
        """Return for each frame its prediction, and whether that is too near a threshold for a reduced resolution."""
        pixels = np.stack([item.pixels for item in admitted])
        logits, members, features = self.engine.run(pixels)
        calibrated = self._calibrated(logits)
        apart = self._disagreement(members)
        maps = mean_maps([made(features[place], pixels) for place, made in self._maps.items()]) if heatmaps else None
        states = self._rule.states(calibrated)
        means = [pooled(one) for one in features[self.manifest.outliers.member]]
        distances = [self._reference.distance(one) for one in means]
        results: list[FramePrediction | Quarantined] = [
            _refusal(item.facts, distances[index])
            if not distances[index] <= 1
            else FramePrediction(
                facts=item.facts,
                bundle_id=self.manifest.bundle_id,
                predictions=self._predictions(logits[index], calibrated[index], states[index], apart[index]),
                flags=item.flags,
                distance=distances[index],
                heatmaps=() if maps is None else self._heatmaps(maps[index]),
                attention={level.value: tuple(one.scores(means[index]).tolist()) for level, one in self._attention.items()},
            )
            for index, item in enumerate(admitted)
        ]
        near = (
            item.is_reduced and self._is_near(values, distance)
            for item, values, distance in zip(admitted, logits, distances, strict=True)
        )
        return list(zip(results, near, strict=True))

    def _is_near(self, logits: FloatArray, distance: float) -> bool:
        """Say whether a little more or less of any logit, or of the distance, may make another answer of a frame.

        Each label is moved against all others, and all together: then each probability, and the lead of each label over any
        other, takes its least and its largest value.
        """
        if not distance < 1 - NEAR_DISTANCE:
            return distance <= 1 + NEAR_DISTANCE
        apart = 2 * np.eye(len(logits)) - 1
        moves = np.concatenate([[np.zeros(len(logits))], apart, -apart, [np.ones(len(logits))], [-np.ones(len(logits))]])
        moved = logits + NEAR_LOGIT * np.array(self.manifest.calibration.temperatures) * moves
        states = self._rule.states(self._calibrated(moved))
        return bool((states != states[0]).any())

    def _calibrated(self, logits: ArrayLike) -> NDArray[np.float64]:
        """Return the probabilities of logits of shape (n, labels)."""
        calibration = self.manifest.calibration
        return probabilities(logits, self.manifest.activation, calibration.temperatures, calibration.offsets)

    def _disagreement(self, members: FloatArray) -> NDArray[np.float64]:
        """Return how far the networks differ, of shape (n, labels); nan if there is one network."""
        if len(members) == 1:
            return np.full(members[0].shape, np.nan)
        each = [self._calibrated(one) for one in members]
        return np.asarray(np.std(each, axis=0), np.float64)

    def _predictions(
        self,
        logits: FloatArray,
        calibrated: NDArray[np.float64],
        states: NDArray[np.object_],
        disagreement: NDArray[np.float64],
    ) -> tuple[Prediction, ...]:
        values = zip(self.manifest.labels, logits, calibrated, states, self._thresholds, disagreement, strict=True)
        return tuple(
            Prediction(
                label=label,
                logit=float(logit),
                probability=float(probability),
                state=state,
                operating_point=threshold,
                disagreement=None if np.isnan(apart) else float(apart),
            )
            for label, logit, probability, state, threshold, apart in values
        )

    def _heatmaps(self, maps: FloatArray) -> tuple[Heatmap, ...]:
        labels = self.manifest.labels
        return tuple(Heatmap(label, bool(values.any()), values=values) for label, values in zip(labels, maps, strict=True))

    def _check_shapes(self) -> None:
        size, labels = self.manifest.preprocessing.size, len(self.manifest.labels)
        if self.engine.size != size:
            raise BundleError(f"The inference graph takes {self.engine.size} pixels, the manifest says {size}. {_MEND}")
        logits, _, features = self.engine.run(np.zeros((1, 1, size, size), np.float32))
        if logits.shape[1] != labels:
            raise BundleError(f"The inference graph returns {logits.shape[1]} logits for {labels} labels. {_MEND}")
        for place, classifier in self._classifiers.items():
            if classifier.shape != (expected := (labels, features[place].shape[1])):
                raise BundleError(f"The classifier has shape {classifier.shape} instead of {expected}. {_MEND}")
        known, found = len(self._reference.mean), features[self.manifest.outliers.member].shape[1]
        if known != found:
            raise BundleError(f"The reference has {known} features for {found} of the graph. {_MEND}")
        for level, one in self._attention.items():
            if one.channels != found:
                raise BundleError(
                    f"The attention of level {level} takes {one.channels} features; the graph has {found}. {_MEND}"
                )


_MEND = "Train the bundle again."


def _classifier(bundle: Bundle, member: Member) -> FloatArray:
    name = member.maps.classifier
    try:
        return np.asarray(load(bundle.read(member.weights))[name], np.float32)
    except (SafetensorError, KeyError):
        raise BundleError(f"The weights of bundle {bundle.path.name} have no tensor {name}. {_MEND}") from None


def _refusal(facts: FrameFacts, distance: float) -> Quarantined:
    message = (
        f"The frame is unlike the images that the bundle was trained on (distance {distance:.2f}, refused above 1). "
        "Score it with a bundle that was made for such images, or have it read without one."
    )
    return Quarantined(facts.source, Reason.OUT_OF_DISTRIBUTION, message, facts.key.frame_number)


def _maps(bundle: Bundle, member: Member, classifier: FloatArray | None) -> Callable[[FloatArray, FloatArray], FloatArray]:
    """Return what makes signed maps of feature maps and frames; torch is imported only if the bundle needs it."""
    if classifier is not None:
        return lambda features, _: closed_form_maps(features, classifier, bundle.manifest.heatmap.method, is_signed=True)
    from pipeline.model.gradient_maps import GradientMaps

    return GradientMaps(bundle, member)


def _thresholds(manifest: Manifest) -> tuple[float, ...]:
    points = {point.label: point.threshold for point in manifest.operating_points}
    if missing := [label for label in manifest.labels if label not in points]:
        raise BundleError(f"The manifest has no operating point for {', '.join(missing)}. {_MEND}")
    return tuple(points[label] for label in manifest.labels)
