"""What frozen ImageNet features tell of a labelled set, and what fit and masking change: `python -m benchmarks.frozen INDEX`.

All splits of the index are combined and divided again by patient, five parts, three times; a balanced logistic regression
on standardised features of EfficientNet-Lite0 at 224 pixels is fitted to four parts and judged on the fifth.
"""

import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score, roc_auc_score
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from pipeline.ingest.index import Index, load_index
from pipeline.ingest.network_input import prepared_frames
from pipeline.model.engine import Engine
from pipeline.model.export import export_graph
from pipeline.model.networks import create_network
from pipeline.model.weights import load_weights
from pipeline.settings import Fit, Preprocessing

SIZE, FOLDS, SEEDS, BATCH = 224, 5, 3, 32
PENALTY = 0.1

Array = NDArray[np.float64]


def main(path: Path) -> int:
    """Print macro AUROC and balanced accuracy, each the mean of the seeds, for every way to prepare a frame."""
    index = load_index(path)
    network = create_network("tf_efficientnet_lite0", len(index.labels)).eval()
    load_weights(network, "tf_efficientnet_lite0", "bundled")
    engine = Engine(export_graph(network, SIZE))
    print("fit   white borders  mirrored  AUROC  balanced accuracy")
    for fit in Fit:
        for masked in (False, True):
            plain, mirrored = _features(engine, index, Preprocessing(SIZE, fit, masked, exact_decoding=True))
            for more in (None, mirrored):
                figures = np.mean([_cross_validate(index, plain, more, seed) for seed in range(SEEDS)], axis=0)
                words = f"{fit.value:4}  {'masked' if masked else 'kept':13}  {'yes' if more is not None else 'no':8}"
                print(f"{words}  {figures[0]:.3f}  {figures[1]:.3f}", flush=True)
    return 0


def _features(engine: Engine, index: Index, preprocessing: Preprocessing) -> tuple[Array, Array]:
    pixels = np.stack(list(prepared_frames(index.records, index.sources, preprocessing)))
    plain, mirrored = (
        np.concatenate([engine.run(views[start : start + BATCH])[1].mean((2, 3)) for start in range(0, len(views), BATCH)])
        for views in (pixels, pixels[..., ::-1])
    )
    return plain.astype(np.float64), mirrored.astype(np.float64)


def _cross_validate(index: Index, features: Array, mirrored: Array | None, seed: int) -> tuple[float, float]:
    truth = index.targets(index.records, index.labels)
    classes = truth.argmax(1)
    patients = [record.patient_key for record in index.records]
    chances = np.zeros(truth.shape)
    for train, test in StratifiedGroupKFold(FOLDS, shuffle=True, random_state=seed).split(features, classes, patients):
        seen, known = features[train], classes[train]
        if mirrored is not None:
            seen, known = np.concatenate([seen, mirrored[train]]), np.concatenate([known, known])
        regression = LogisticRegression(C=PENALTY, class_weight="balanced", max_iter=200)
        chances[test] = make_pipeline(StandardScaler(), regression).fit(seen, known).predict_proba(features[test])
    area = roc_auc_score(truth, chances, average="macro")
    return float(area), float(balanced_accuracy_score(classes, chances.argmax(1)))


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
