"""How often states hold the truth, are uncertain, and frames are refused: `python -m benchmarks.states BUNDLE INDEX`.

First what a training run measures: everything fitted on the calibration split, measured on the test split. That is one draw of
patients. So both splits, of which the network has seen nothing, are then put together and divided again by patients, many
times, into parts with as many patients; calibration, operating points, bands and refusal threshold are fitted on the one
part and measured on the other. Distances are those from the bundle's own training frames.
"""

import sys
from collections import defaultdict
from pathlib import Path

import numpy as np

from pipeline.evaluate.calibration import Float64, fit_temperatures, probabilities
from pipeline.evaluate.decisions import choose_operating_points, conformal_bands, coverage
from pipeline.evaluate.metrics import Sample
from pipeline.evaluate.outliers import load_reference, pooled, refusal_threshold
from pipeline.frames import Split
from pipeline.ingest.index import load_index
from pipeline.ingest.network_input import prepared_frames
from pipeline.model.bundle import GRAPH, REFERENCE, load_bundle
from pipeline.model.engine import Engine
from pipeline.predictions import State

ALPHA, RESAMPLES, DIVISIONS = 0.1, 200, 200
KINDS = ("covered_positives", "covered_negatives", "uncertain")


def main(bundle_path: Path, index_path: Path) -> int:
    """Print one table for the two splits as they are, and one for the mean over the divisions."""
    bundle, index = load_bundle(bundle_path), load_index(index_path)
    manifest, engine = bundle.manifest, Engine(bundle.read(GRAPH))
    reference = load_reference(bundle.read(REFERENCE), 1.0)
    records = [record for split in (Split.CALIBRATION, Split.TEST) for record in index.of(split)]
    runs = [engine.run(frame[None]) for frame in prepared_frames(records, index.sources, manifest.preprocessing)]
    logits = np.concatenate([one for one, _ in runs])
    distances = np.array([reference.distance(pooled(features[0])) for _, features in runs])
    targets = index.targets(records, manifest.labels)
    patients = np.array([record.patient_key for record in records])
    calibrating = np.array([record.split is Split.CALIBRATION for record in records])
    everyone, wanted = np.unique(patients), len(set(patients[calibrating]))

    def measured(fitted: "np.ndarray[tuple[int, ...], np.dtype[np.bool_]]") -> dict[tuple[str, str], float]:
        """Fit on some frames and measure on the others."""
        known, truth, names = logits[fitted], targets[fitted], patients[fitted]
        scaled = fit_temperatures(known, truth, manifest.activation)
        chances: Float64 = probabilities(known, manifest.activation, scaled.temperatures, scaled.offsets)
        criterion = manifest.operating_points[0].criterion
        points = choose_operating_points(chances, truth, manifest.labels, criterion)
        bands = conformal_bands(chances, truth, names.tolist(), points, ALPHA, RESAMPLES, 0)
        rest = ~fitted
        sample = Sample(
            logits=logits[rest],
            targets=targets[rest],
            groups=patients[rest].tolist(),
            labels=manifest.labels,
            task=manifest.task,
            calibration=scaled,
            operating_points=points,
            bands=bands,
            normal_label=manifest.normal_label,
        )
        found = {(label, kind): one[kind].value for label, one in coverage(sample).items() for kind in KINDS}
        states = sample.states
        found["frames", "any label uncertain"] = float((states == State.UNCERTAIN).any(axis=1).mean())
        found["frames", "several labels positive"] = float(((states == State.POSITIVE).sum(axis=1) > 1).mean())
        refused = distances[rest] > refusal_threshold(distances[fitted].tolist(), names.tolist())
        found["frames", "refused"] = float(refused.mean())
        found["patients", "with a refused frame"] = len(set(patients[rest][refused])) / len(set(patients[rest]))
        return found

    print(
        f"{bundle_path.name}: {calibrating.sum()} frames of {wanted} calibration patients, {(~calibrating).sum()} test frames"
    )
    once = measured(calibrating)
    many = defaultdict(list)
    rng = np.random.default_rng(0)
    while len(many["frames", "refused"]) < DIVISIONS:
        fitted = np.isin(patients, rng.choice(everyone, wanted, replace=False))
        if (targets[fitted].any(axis=0) & ~targets[fitted].all(axis=0)).all():
            for key, value in measured(fitted).items():
                many[key].append(value)
    print(f"{'':34}  test split  mean of {DIVISIONS} divisions")
    for key, value in once.items():
        print(f"{' '.join(key):34}  {value:10.3f}  {np.nanmean(many[key]):10.3f}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(*map(Path, sys.argv[1:3])))
