"""Loads a bundle where a predictor is unpickled; light, so that what it imports counts as the network and not as reading."""

from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pipeline.errors import BundleError
from pipeline.score.faults import of_the_network
from pipeline.workers.process import outside_limits

if TYPE_CHECKING:
    from pipeline.score.predictor import Predictor


@lru_cache(maxsize=1)
def loaded(path: Path, bundle_id: str) -> "Predictor":
    """Return the predictor of a bundle, for one core; the same again for the same bundle.

    Raises
    ------
    BundleError
        Where the bundle cannot be used, or another one lies there by now.
    ScoringError
        Where there is no memory for the network, for example.
    """
    with outside_limits(keep_memory=True), of_the_network():
        from pipeline.model.bundle import load_bundle
        from pipeline.score.predictor import Predictor

        predictor = Predictor(load_bundle(path), threads=1)
        size = predictor.engine.size
        predictor.engine.run(np.zeros((predictor.engine.frames_at_once, 1, size, size), np.float32))  # takes what a call takes
    if predictor.manifest.bundle_id != bundle_id:
        raise BundleError(f"The bundle {path.name} was replaced while it was in use. Start again.")
    return predictor
