"""Where a bundle comes from: time, commit, versions."""

import platform
import shutil
import subprocess
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

from pipeline.config import Config
from pipeline.ingest.index import Index
from pipeline.model.bundle import Provenance

_LIBRARIES = ("octray", "torch", "timm", "monai", "numpy", "pillow", "pydicom", "imagecodecs", "onnx", "onnxruntime")


def provenance(config: Config, index: Index, run_id: str) -> Provenance:
    """Return what a reader needs to train the same bundle again."""
    return Provenance(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        git_commit=_git_commit(),
        mlflow_run_id=run_id,
        dataset_name=index.name,
        dataset_sha256=index.sha256,
        config_name=config.name,
        seed=config.train.seed,
        versions={"python": platform.python_version()} | {name: metadata.version(name) for name in _LIBRARIES},
    )


def _git_commit() -> str:
    """Return the commit of octray's own checkout; empty where it lies in no checkout, or in somebody else's."""
    git = shutil.which("git")
    here = Path(__file__)
    if git is None:
        return ""

    def ask(*words: str) -> str | None:
        command = [git, "-C", str(here.parent), *words]
        done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - fixed words
        return done.stdout.strip() if done.returncode == 0 else None

    return (ask("ls-files", "--error-unmatch", here.name) and ask("rev-parse", "HEAD")) or ""
