"""octray from Python: every command is one function, and what it works with can be used alone.

Each name is imported from where it is defined when it is first used, so that `import octray` costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipeline.catalog import list_datasets, pull_dataset
    from pipeline.config import Config, load_config
    from pipeline.deidentify.crosswalk import show_crosswalk
    from pipeline.deidentify.deidentifier import deidentify_folder, plan_deidentification
    from pipeline.errors import ConfigError, InputError, OctrayError, UnreadableError
    from pipeline.frames import Frame, Split
    from pipeline.imaging.describe import describe_files, describe_frame
    from pipeline.imaging.sources import discover, read_frames
    from pipeline.ingest.build import build_index
    from pipeline.ingest.index import Index, load_index
    from pipeline.job.job import score_folder
    from pipeline.model.bodies import NetworkBody
    from pipeline.model.bundle import Bundle, load_bundle
    from pipeline.model.layer_table import describe_architecture, list_networks
    from pipeline.model.networks import list_architectures
    from pipeline.phantoms.studies import write_phantom
    from pipeline.plugins import register_plugin
    from pipeline.predictions import FramePrediction, State, StudyRecord
    from pipeline.results.level_results import patient_results, study_results
    from pipeline.score.pictures import draw_heatmap
    from pipeline.score.predictor import Predictor
    from pipeline.score.study import score_study
    from pipeline.train.assessment import bundle_subgroups, compare_bundles, evaluate_bundle
    from pipeline.train.local_calibration import accept_bundle, calibrate_bundle
    from pipeline.train.promotion import Promotion, promote
    from pipeline.train.run import train
    from pipeline.train.sweep import SweepResult, sweep
    from pipeline.train.tracking import SyncedRun, register_bundle, sync_runs
    from services.api.command import serve

__all__ = [
    "Bundle",
    "Config",
    "ConfigError",
    "Frame",
    "FramePrediction",
    "Index",
    "InputError",
    "NetworkBody",
    "OctrayError",
    "Predictor",
    "Promotion",
    "Split",
    "State",
    "StudyRecord",
    "SweepResult",
    "SyncedRun",
    "UnreadableError",
    "accept_bundle",
    "build_index",
    "bundle_subgroups",
    "calibrate_bundle",
    "compare_bundles",
    "deidentify_folder",
    "describe_architecture",
    "describe_files",
    "describe_frame",
    "discover",
    "draw_heatmap",
    "evaluate_bundle",
    "list_architectures",
    "list_datasets",
    "list_networks",
    "load_bundle",
    "load_config",
    "load_index",
    "patient_results",
    "plan_deidentification",
    "promote",
    "pull_dataset",
    "read_frames",
    "register_bundle",
    "register_plugin",
    "score_folder",
    "score_study",
    "serve",
    "show_crosswalk",
    "study_results",
    "sweep",
    "sync_runs",
    "train",
    "write_phantom",
]

_MODULES = {
    "Bundle": "pipeline.model.bundle",
    "Config": "pipeline.config",
    "ConfigError": "pipeline.errors",
    "Frame": "pipeline.frames",
    "FramePrediction": "pipeline.predictions",
    "Index": "pipeline.ingest.index",
    "InputError": "pipeline.errors",
    "NetworkBody": "pipeline.model.bodies",
    "OctrayError": "pipeline.errors",
    "Predictor": "pipeline.score.predictor",
    "Promotion": "pipeline.train.promotion",
    "Split": "pipeline.frames",
    "State": "pipeline.predictions",
    "StudyRecord": "pipeline.predictions",
    "SweepResult": "pipeline.train.sweep",
    "SyncedRun": "pipeline.train.tracking",
    "UnreadableError": "pipeline.errors",
    "accept_bundle": "pipeline.train.local_calibration",
    "build_index": "pipeline.ingest.build",
    "bundle_subgroups": "pipeline.train.assessment",
    "calibrate_bundle": "pipeline.train.local_calibration",
    "compare_bundles": "pipeline.train.assessment",
    "deidentify_folder": "pipeline.deidentify.deidentifier",
    "describe_architecture": "pipeline.model.layer_table",
    "describe_files": "pipeline.imaging.describe",
    "describe_frame": "pipeline.imaging.describe",
    "discover": "pipeline.imaging.sources",
    "draw_heatmap": "pipeline.score.pictures",
    "evaluate_bundle": "pipeline.train.assessment",
    "list_architectures": "pipeline.model.networks",
    "list_datasets": "pipeline.catalog",
    "list_networks": "pipeline.model.layer_table",
    "load_bundle": "pipeline.model.bundle",
    "load_config": "pipeline.config",
    "load_index": "pipeline.ingest.index",
    "patient_results": "pipeline.results.level_results",
    "plan_deidentification": "pipeline.deidentify.deidentifier",
    "promote": "pipeline.train.promotion",
    "pull_dataset": "pipeline.catalog",
    "read_frames": "pipeline.imaging.sources",
    "register_bundle": "pipeline.train.tracking",
    "register_plugin": "pipeline.plugins",
    "score_folder": "pipeline.job.job",
    "score_study": "pipeline.score.study",
    "serve": "services.api.command",
    "show_crosswalk": "pipeline.deidentify.crosswalk",
    "study_results": "pipeline.results.level_results",
    "sweep": "pipeline.train.sweep",
    "sync_runs": "pipeline.train.tracking",
    "train": "pipeline.train.run",
    "write_phantom": "pipeline.phantoms.studies",
}
"""Where each name is defined; the imports above say the same to type checkers, and a test compares them."""

if not TYPE_CHECKING:  # to type checkers, any name would exist

    def __getattr__(name: str) -> object:
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(import_module(_MODULES[name]), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
