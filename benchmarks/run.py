"""`make bench`: how far octray is from its limit, the engine alone on tensors, and from its peers; ratios of one run."""

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from benchmarks.ledger import main as count_studies
from benchmarks.memory import main as weigh
from benchmarks.peers.reading import main as compare_reading
from benchmarks.score import main as compare_scoring
from benchmarks.service import main as compare_service
from pipeline.frames import Frame
from pipeline.imaging.preprocess import prepare, reading_for
from pipeline.imaging.sources import discover, read_frames
from pipeline.model.engine import Engine, closed_form_maps
from pipeline.model.export import export_graph
from pipeline.model.networks import create_network
from pipeline.model.weights import load_weights
from pipeline.phantoms.studies import write_phantom
from pipeline.settings import Limits, Preprocessing

SIZE, STUDIES, ROUNDS = 224, 32, 5


def main() -> int:
    """Print one ratio a line, each the median of pairs measured in turn."""
    network = create_network("tf_efficientnet_lite0", 2).eval()
    load_weights(network, "tf_efficientnet_lite0", "bundled")
    engine = Engine(export_graph(network, SIZE))
    weight = network.classifier.weight.detach().numpy()
    preprocessing = Preprocessing(SIZE, exact_decoding=False)
    reading = reading_for(preprocessing, Limits())
    with tempfile.TemporaryDirectory() as folder:
        write_phantom(Path(folder), "xray", STUDIES, 0)
        files = list(discover(Path(folder) / "studies"))
        frames = [frame for file in files for frame in read_frames(file, reading)]
        pixels = _prepared(frames, preprocessing)

        def limit() -> None:
            engine.run(pixels)

        def eager() -> None:
            with torch.no_grad():
                network(torch.from_numpy(pixels))

        def with_heatmaps() -> None:
            _, features = engine.run(pixels)
            closed_form_maps(features, weight, "grad-cam")

        def from_frames() -> None:
            engine.run(_prepared(frames, preprocessing))

        def from_files() -> None:
            engine.run(_prepared([frame for file in files for frame in read_frames(file, reading)], preprocessing))

        rows = {
            "engine against eager PyTorch": (eager, limit),
            "engine with heatmaps against engine alone": (limit, with_heatmaps),
            "from frames in memory against engine alone": (limit, from_frames),
            "from files, read one by one, against engine alone": (limit, from_files),
        }
        print(f"{len(frames)} synthetic radiographs, EfficientNet-Lite0 at {SIZE} px; images a second, as a ratio:")
        for name, (reference, measured) in rows.items():
            print(f"  {name}: {_ratio(reference, measured):.2f}")
    return compare_reading() or compare_scoring([]) or compare_service([]) or weigh([]) or count_studies([])


def _prepared(frames: list[Frame], preprocessing: Preprocessing) -> np.ndarray:
    return np.stack([prepare(frame.pixels, preprocessing, frame.whole_box, frame.whole_shape) for frame in frames])


def _ratio(reference: Callable[[], None], measured: Callable[[], None]) -> float:
    """Return how many times as fast `measured` is as `reference`: the median over pairs run in turn."""
    ratios = []
    for _ in range(ROUNDS + 1):
        ratios.append(_seconds(reference) / _seconds(measured))
    return statistics.median(ratios[1:])


def _seconds(work: Callable[[], None]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


if __name__ == "__main__":
    sys.exit(main())
