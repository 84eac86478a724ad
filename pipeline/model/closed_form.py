"""Heatmaps without a backward pass, for heads of global average pooling and one linear layer."""

import numpy as np

from pipeline.frames import FloatArray
from pipeline.predictions import HeatmapMethod

EPSILON = 1e-6
"""What `grad-cam` adds to the denominator of its alpha weights."""


def closed_form_maps(features: FloatArray, weights: FloatArray, method: HeatmapMethod) -> FloatArray:
    """Return the map of every label in every frame.

    Parameters
    ----------
    features
        float32 array of shape (n, channels, map_rows, map_columns): what global average pooling takes.
    weights
        float32 array of shape (labels, channels): the linear classifier.
    method
        Which map.

    Returns
    -------
    FloatArray
        float32 array of shape (n, labels, map_rows, map_columns), not negative, in logits, not scaled to its maximum.

    Notes
    -----
    Behind such a head the gradient of a logit is w_k / area at every cell. HiResCAM (Draelos and Carin 2020, arXiv 2011.08891)
    is then Grad-CAM itself; LayerCAM (Jiang et al. 2021, doi 10.1109/TIP.2021.3089943) leaves the negative weights out.
    Grad-CAM++ (Chattopadhay et al. 2018, doi 10.1109/WACV.2018.00097, equation 19) weighs the positive ones by
    alpha = 1 / (2 + w_k * mean of channel k), here with the epsilon of `grad-cam`. It is taken as a mean over the cells,
    where the paper adds up, so that it stands on the scale of the others.
    """
    count, channels, rows, columns = features.shape
    cells = features.reshape(count, channels, rows * columns)
    seen = weights if method in ("grad-cam", "hirescam") else np.maximum(weights, 0)
    if method == "grad-cam++":
        seen = seen * _alpha(cells, weights)
    evidence: FloatArray = seen @ cells
    np.maximum(evidence, 0, out=evidence)
    evidence /= rows * columns
    return evidence.reshape(count, -1, rows, columns)


def _alpha(cells: FloatArray, weights: FloatArray) -> FloatArray:
    """Return the weights of Grad-CAM++, of shape (n, labels, channels)."""
    slope = weights / cells.shape[2]
    alpha: FloatArray = slope**2 / (2 * slope**2 + cells.sum(2)[:, None] * slope**3 + EPSILON)
    return alpha
