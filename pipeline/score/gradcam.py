"""Grad-CAM in closed form: for global average pooling and one linear layer it needs no backward pass."""

import numpy as np

from pipeline.records import FloatArray


def grad_cam(features: FloatArray, weight: FloatArray) -> FloatArray:
    """Return which cells of a feature map speak for one label.

    Parameters
    ----------
    features
        float32 array of shape (channels, map_rows, map_columns): what global average pooling takes.
    weight
        float32 array of shape (channels,): the row of the linear classifier that belongs to the label.

    Returns
    -------
    FloatArray
        float32 array of shape (map_rows, map_columns), not negative, in logits: the part of the label's logit that each cell
        contributes. Without the cut at zero, the sum over all cells would be the logit less its bias.

    Notes
    -----
    Grad-CAM (Selvaraju et al. 2017, doi 10.1109/ICCV.2017.74, equations 1 and 2) weighs channel k by the mean over all cells of
    the gradient of the logit. Behind global average pooling over A cells and one linear layer that gradient is w_k / A at every
    cell, so that relu(sum_k w_k / A * features_k) is Grad-CAM itself and not an approximation.
    """
    evidence: FloatArray = grad_cams(features[None], weight[None])[0, 0]
    return evidence


def grad_cams(features: FloatArray, weights: FloatArray) -> FloatArray:
    """Return the Grad-CAM of every label in every frame; see `grad_cam`.

    Parameters
    ----------
    features
        float32 array of shape (n, channels, map_rows, map_columns).
    weights
        float32 array of shape (labels, channels).

    Returns
    -------
    FloatArray
        float32 array of shape (n, labels, map_rows, map_columns), not negative, in logits.
    """
    count, channels, rows, columns = features.shape
    evidence: FloatArray = weights @ features.reshape(count, channels, rows * columns)
    np.maximum(evidence, 0, out=evidence)
    evidence /= rows * columns
    return evidence.reshape(count, -1, rows, columns)
