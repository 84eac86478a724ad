"""Where the lesions of synthetic studies lie on a heatmap, from the truth that was written beside them."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.imaging.preprocess import placement
from pipeline.settings import Fit, Preprocessing
from pipeline.train.material import Material

Masks = Mapping[int, tuple[int, NDArray[np.bool_]]]
"""By position of a frame: which label its lesions speak for, and which cells of the map they touch."""


def lesion_masks(material: Material, rows: NDArray[np.int64], preprocessing: Preprocessing, cells: tuple[int, int]) -> Masks:
    """Return which cells the lesions of synthetic studies touch, from the `truth.json` that lies beside them.

    Parameters
    ----------
    material
        Whose sources may be folders of synthetic studies; others have no known lesions.
    rows
        Of the frames, in the order in which the masks count them.
    preprocessing
        From a frame to the network's input; where it follows the brightness of a frame, nothing is known.
    cells
        Rows and columns of a map.
    """
    if preprocessing.fit is Fit.FOCUS:
        return {}
    truths = [_truth(source) for source in material.sources]
    masks = {}
    for number, row in enumerate(rows):
        record = material.records[row]
        told = truths[record.root].get(f"{material.sources[record.root].name}/{record.source}", {})
        frames = (frame for frame in told.get("frames", ()) if frame["frame_number"] == record.key.frame_number)
        boxes = [box for frame in frames for box in frame["boxes"]]
        if boxes and told["label"] in material.labels:
            mask = _touched(boxes, (record.rows, record.columns), preprocessing, cells)
            masks[number] = material.labels.index(told["label"]), mask
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
