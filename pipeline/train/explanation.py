"""Checks the heatmaps of a trained network before its bundle is written, on frames of the calibration split alone."""

import copy
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats

from pipeline.frames import FloatArray
from pipeline.imaging.preprocess import placement
from pipeline.model.bundle import ExplanationCheck, MapSupport
from pipeline.model.engine import closed_form_maps
from pipeline.model.ensemble import Ensemble, mean_maps
from pipeline.model.gradient_maps import gradient_maps
from pipeline.model.networks import Network
from pipeline.predictions import HeatmapMethod
from pipeline.settings import Fit, Preprocessing
from pipeline.train.training_data import TrainingData
from pipeline.train.workspace import PreparedFrames

Masks = Mapping[int, tuple[int, NDArray[np.bool_]]]
"""By position of a frame: the label of its lesions, and the cells of the map that they touch."""


FRAMES = 8
LESION_FRAMES = 64
_STEPS = 6
_RANDOM_ORDERS = 2
_CURVES: tuple[tuple[Literal["deletion", "insertion"], bool], ...] = (("deletion", False), ("insertion", True))
REACHED = 0.95
"""Part of the true positives of each finding whose strongest cell reaches no more than the full scale of the colours."""
_FRAMES_AT_A_TIME = 16
APART = 0.5
"""Rank correlation with the map of the trained network that the map of a random one must stay below."""


@dataclass(frozen=True, slots=True, eq=False)
class Examined:
    """Networks whose heatmaps are checked, and the frames for them.

    Parameters
    ----------
    networks
        With their trained classifiers; one, or those whose maps an ensemble shows.
    supports
        How the maps of each are made.
    engine
        What gives the logits that the maps explain.
    method
        Which map.
    pixels
        Frames of the calibration split, float32 of shape (n, 1, size, size) in [0, 1].
    seed
        Of all that is random.
    """

    networks: tuple[Network, ...]
    supports: tuple[MapSupport, ...]
    engine: Ensemble
    method: HeatmapMethod
    pixels: FloatArray
    seed: int

    def maps(self, networks: Sequence[Network], pixels: FloatArray) -> FloatArray:
        """Return the maps that `networks`, in place of those examined, would give: (n, labels, map_rows, map_columns)."""
        return mean_maps([self._maps(*pair, pixels) for pair in zip(networks, self.supports, strict=True)])

    def _maps(self, network: Network, support: MapSupport, pixels: FloatArray) -> FloatArray:
        with torch.no_grad():
            features = network(torch.from_numpy(pixels))[1].numpy()
        if support.computed == "closed_form":
            weights = network.classifier.weight.detach().numpy()
            return closed_form_maps(features, weights, self.method, is_signed=True)
        return gradient_maps(network, features, self.method, layer=support.layer, pixels=pixels, is_signed=True)


def full_scale(examined: Examined, pixels: PreparedFrames, rows: NDArray[np.int64], chosen: NDArray[np.bool_]) -> float:
    """Return the heatmap value that gets the last colour in every picture of the bundle.

    Above it all values look the same, so it must lie near the strongest cells of frames. It is the 95 % quantile of the
    strongest cells of true positives, taken for the finding with the highest one.

    Parameters
    ----------
    examined
        What is examined.
    pixels
        All frames, as in `Examined`; may be a memory map.
    rows
        Which of them are looked at.
    chosen
        Of shape (rows, labels): of which frames the map of which label counts.

    Returns
    -------
    float
        Rounded up to two digits; 1 if nothing was chosen, or all maps are empty.
    """
    strongest = np.zeros(chosen.shape)
    frames = np.flatnonzero(chosen.any(axis=1))
    for start in range(0, len(frames), _FRAMES_AT_A_TIME):
        part = frames[start : start + _FRAMES_AT_A_TIME]
        maps = examined.maps(examined.networks, np.ascontiguousarray(pixels[rows[part]]))
        strongest[part] = maps.max(axis=(2, 3))
    known = (values[counted] for values, counted in zip(strongest.T, chosen.T, strict=True) if counted.any())
    highest = max((float(np.quantile(values, REACHED)) for values in known), default=0.0)
    if highest <= 0:
        return 1.0
    digits = 1 - math.floor(math.log10(highest))
    return round(math.ceil(round(highest * 10.0**digits, 3)) / 10.0**digits, max(digits, 0))


def check_explanations(examined: Examined, masks: Callable[[tuple[int, int]], Masks]) -> tuple[ExplanationCheck, ...]:
    """Check the heatmaps.

    `randomisation`: the mean rank correlation (Spearman) of a frame's map with that of the network whose layers were made
    random one group after the other, from the classifier down (Adebayo et al. 2018, arXiv 1810.03292). It is measured at
    the end, when all of them are random, and must be below `APART` then. `deletion` and `insertion` (Petsiuk et al. 2018,
    arXiv 1806.07421): the mean margin of the label while cells are greyed, or shown, in the order of the map, which must
    fall, or rise, faster than in random order. `pointing` (Zhang et al. 2018, doi 10.1007/s11263-017-1059-x): how often the
    hottest cell touches a known lesion, against the part of the cells that do. `iou`: intersection over union of these with
    the cells of at least half the map's maximum, against that of all cells.

    Frames whose map has the same value everywhere are left out of the first three checks; if that is true of all frames, the
    check has no frames and is not passed.

    Parameters
    ----------
    examined
        What is examined; at most `FRAMES` of its frames, and `LESION_FRAMES` for the last two.
    masks
        Given rows and columns of a map, the known lesions.
    """
    few = examined.pixels[:FRAMES]
    maps = examined.maps(examined.networks, few)
    labels = np.argmax(examined.engine.logits(iter(few)), axis=1)
    chosen = maps[np.arange(len(few)), labels]
    known = masks((maps.shape[2], maps.shape[3]))
    return (*_randomisation(examined, few, labels, chosen), *_curves(examined, few, labels, chosen), *_lesions(examined, known))


def _randomisation(
    examined: Examined, pixels: FloatArray, labels: NDArray[np.int64], maps: FloatArray
) -> Iterator[ExplanationCheck]:
    networks = copy.deepcopy(examined.networks)
    generator = torch.Generator().manual_seed(examined.seed)
    for network in networks:
        for names in _cascade(network):
            _make_random(network, names, generator)
    found = examined.maps(networks, pixels)[np.arange(len(pixels)), labels]
    both = [(before, after) for before, after in zip(maps, found, strict=True) if np.ptp(before) > 0]
    if not both:
        yield _unanswered("randomisation", APART)
        return
    value = float(np.mean([_rank_correlation(*pair) for pair in both]))
    yield ExplanationCheck(name="randomisation", frames=len(both), value=value, reference=APART, passed=value < APART)


def _unanswered(name: Literal["randomisation", "deletion", "insertion"], reference: float) -> ExplanationCheck:
    return ExplanationCheck(name=name, frames=0, value=0.0, reference=reference, passed=False)


def _cascade(network: Network) -> Iterator[list[str]]:
    """Yield the names of the parameters that are made random next: the classifier, then the two halves of the other groups."""
    yield [name for name, _ in network.body.named_parameters() if name.startswith(network.classifier_name.rpartition(".")[0])]
    groups = network.parameter_groups()
    middle = len(groups) // 2
    for half in (groups[middle:], groups[:middle]):
        yield [name for names in half for name in names]


def _make_random(network: Network, names: Sequence[str], generator: torch.Generator) -> None:
    """Shuffle the weights within each parameter, which keeps their distribution and destroys what was learned."""
    parameters = dict(network.body.named_parameters())
    with torch.no_grad():
        for name in names:
            flat = parameters[name].flatten()
            parameters[name].copy_(flat[torch.randperm(len(flat), generator=generator)].view_as(parameters[name]))


def _rank_correlation(before: FloatArray, after: FloatArray) -> float:
    """Return Spearman's correlation; 0 if the second map has the same value everywhere."""
    return 0.0 if np.ptp(after) == 0 else float(stats.spearmanr(before.ravel(), after.ravel()).statistic)


def _curves(examined: Examined, pixels: FloatArray, labels: NDArray[np.int64], maps: FloatArray) -> Iterator[ExplanationCheck]:
    rng = np.random.default_rng(examined.seed)
    frames = [number for number in range(len(pixels)) if np.ptp(maps[number]) > 0]
    for name, inserted in _CURVES:
        if not frames:
            yield _unanswered(name, 0.0)
            continue
        ordered, chance = [], []
        for number in frames:
            cells = maps[number].size
            heat = np.argsort(-maps[number].ravel(), kind="stable")
            orders = [heat, *(rng.permutation(cells) for _ in range(_RANDOM_ORDERS))]
            areas = [_area(examined, pixels[number], order, labels[number], maps.shape[1:], inserted) for order in orders]
            ordered.append(areas[0])
            chance.append(float(np.mean(areas[1:])))
        value, reference = float(np.mean(ordered)), float(np.mean(chance))
        passed = value > reference if inserted else value < reference
        yield ExplanationCheck(name=name, frames=len(frames), value=value, reference=reference, passed=passed)


def _area(
    examined: Examined, frame: FloatArray, order: NDArray[np.int64], label: int, shape: tuple[int, ...], inserted: bool
) -> float:
    """Return the mean margin of the label over the others while cells change in an order: greyed, or shown on grey."""
    rows, columns = shape
    size, grey = frame.shape[-1], np.full_like(frame, frame.mean())
    frames = []
    for step in range(_STEPS + 1):
        changed = np.zeros(rows * columns, bool)
        changed[order[: round(step / _STEPS * len(order))]] = True
        place = np.arange(size) * rows // size, np.arange(size) * columns // size
        mask = changed.reshape(rows, columns)[np.ix_(*place)] != inserted
        frames.append(np.where(mask, grey, frame))
    logits = examined.engine.logits(iter(frames))
    others = np.delete(logits, label, axis=1)
    return float(np.mean(logits[:, label] - (others.max(axis=1) if others.size else 0)))


def _lesions(examined: Examined, masks: Masks) -> Iterator[ExplanationCheck]:
    hits, overlaps, chances = [], [], []
    for number in list(masks)[:LESION_FRAMES]:
        label, mask = masks[number]
        heat = examined.maps(examined.networks, examined.pixels[number : number + 1])[0, label]
        hot = heat >= heat.max() / 2 if heat.any() else np.zeros_like(mask)
        hits.append(bool(heat.any() and mask[np.unravel_index(heat.argmax(), heat.shape)]))
        overlaps.append(float((hot & mask).sum() / (hot | mask).sum()))
        chances.append(float(mask.mean()))
    if hits:
        chance = float(np.mean(chances))
        for name, value in (("pointing", float(np.mean(hits))), ("iou", float(np.mean(overlaps)))):
            passed = value > chance
            yield ExplanationCheck(name=name, frames=len(hits), value=value, reference=chance, passed=passed)


def lesion_masks(data: TrainingData, rows: NDArray[np.int64], preprocessing: Preprocessing, cells: tuple[int, int]) -> Masks:
    """Return the cells of a map that the lesions of synthetic studies touch, from the `truth.json` beside them.

    Parameters
    ----------
    data
        Whose sources may be folders of synthetic studies; others have no known lesions.
    rows
        Of the frames, in the order in which the masks count them.
    preprocessing
        From a frame to the network's input; if it follows the brightness of a frame (`focus`), no lesion is known.
    cells
        Rows and columns of a map.
    """
    if preprocessing.fit is Fit.FOCUS:
        return {}
    truths = [_truth(source) for source in data.sources]
    masks = {}
    for number, row in enumerate(rows):
        record = data.records[row]
        told = truths[record.root].get(f"{data.sources[record.root].name}/{record.source}", {})
        frames = (frame for frame in told.get("frames", ()) if frame["frame_number"] == record.key.frame_number)
        boxes = [box for frame in frames for box in frame["boxes"]]
        if boxes and told["label"] in data.labels:
            mask = _touched(boxes, (record.rows, record.columns), preprocessing, cells)
            masks[number] = data.labels.index(told["label"]), mask
    return {number: (label, mask) for number, (label, mask) in masks.items() if mask.any()}


def _truth(source: Path) -> dict[str, Any]:
    try:
        found = json.loads((source.parent / "truth.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _touched(
    boxes: Sequence[Mapping[str, Any]], shape: tuple[int, int], preprocessing: Preprocessing, cells: tuple[int, int]
) -> NDArray[np.bool_]:
    place, mask = placement(*shape, preprocessing), np.zeros(cells, bool)
    for box in boxes:
        spans = (
            (place.top + box["top"] * place.rows / shape[0], box["rows"] * place.rows / shape[0], cells[0]),
            (place.left + box["left"] * place.columns / shape[1], box["columns"] * place.columns / shape[1], cells[1]),
        )
        ranges = []
        for start, extent, count in spans:
            first, last = (value * count / preprocessing.size for value in (start, start + extent))
            ranges.append(slice(max(0, int(first)), max(0, min(count, int(np.ceil(last))))))
        mask[ranges[0], ranges[1]] = True
    return mask
