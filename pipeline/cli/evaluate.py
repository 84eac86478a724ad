"""`octray evaluate`: the figures of a bundle on one split of an index."""

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipeline.evaluate.metrics import Sample
    from pipeline.frames import ImageRecord
    from pipeline.ingest.index import Index
    from pipeline.model.bundle import Bundle

HELP = "measure a bundle on one split of an index"
EXAMPLE = "octray evaluate bundle/ --index index/ --split test"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("bundle", metavar="BUNDLE", type=Path, help="folder that `octray train` wrote")
    parser.add_argument("--index", type=Path, required=True, help="folder that `octray ingest` wrote")
    parser.add_argument(
        "--split",
        choices=("train", "tune", "calibration", "test"),
        default="test",
        help="which part of the index (default test)",
    )
    parser.add_argument("--json", action="store_true", help="print every figure as JSON")


def run(args: argparse.Namespace) -> int:
    """Read the split's frames, score them by the bundle's graph, and print the figures."""
    import yaml

    from pipeline.cli.progress import bar
    from pipeline.config import Config
    from pipeline.errors import InputError
    from pipeline.evaluate.metrics import evaluate
    from pipeline.frames import Split
    from pipeline.ingest.index import load_index
    from pipeline.model.bundle import CONFIG, load_bundle
    from pipeline.model.card import text_table
    from pipeline.progress import working

    bundle, index = load_bundle(args.bundle), load_index(args.index)
    records = index.of(Split(args.split))
    if missing := [label for label in bundle.manifest.labels if label not in index.labels]:
        raise InputError(f"The index has no label {', '.join(missing)}. Ingest it with the bundle's labels.")
    if not records:
        raise InputError(f"The index has no frame in the split {args.split}. Choose another --split.")
    if index.sha256 != bundle.manifest.provenance.dataset_sha256:
        sys.stderr.write(
            "octray: this is not the index that the bundle was trained on; if they share patients, the figures are too good.\n"
        )
    elif args.split != Split.TEST:
        sys.stderr.write(f"octray: the bundle was made with the split {args.split}: only figures of test are fair.\n")
    config = Config.model_validate(yaml.safe_load(bundle.read(CONFIG)))
    sample = _score(bundle, index, records)
    evaluation = working(bar, "drawing patients", lambda: evaluate(sample, config.evaluate.bootstrap, config.train.seed))
    figures = evaluation.to_json()
    print(json.dumps(figures, indent=2) if args.json else text_table(figures))
    return 0


def _score(bundle: "Bundle", index: "Index", records: "tuple[ImageRecord, ...]") -> "Sample":
    from pipeline.cli.progress import bar
    from pipeline.evaluate.metrics import Sample
    from pipeline.ingest.network_input import prepared_frames
    from pipeline.model.bundle import GRAPH
    from pipeline.model.engine import Engine

    manifest, engine = bundle.manifest, Engine(bundle.read(GRAPH))
    frames = bar(prepared_frames(records, index.sources, manifest.preprocessing), "scoring frames", len(records))
    return Sample(
        logits=engine.logits(frames),
        targets=index.targets(records, manifest.labels),
        groups=tuple(record.patient_key for record in records),
        labels=manifest.labels,
        activation=manifest.activation,
        temperature=manifest.temperature,
        operating_points=manifest.operating_points,
        bands=manifest.conformal.bands if manifest.conformal else (),
        normal_label=manifest.normal_label,
    )
