"""Worker processes that read files: a `WorkerPool` with the limits of one file, and the readers already imported."""

from typing import Any

from pipeline.settings import Limits
from pipeline.workers.pool import WorkerPool, warm


def file_workers(workers: int = 0, limits: Limits = Limits()) -> WorkerPool:  # noqa: B008
    """Return a pool of workers that read files; 0 takes one for each core that this process may use."""
    return WorkerPool(workers, **_arguments(limits))


def warm_file_worker(limits: Limits = Limits()) -> None:  # noqa: B008
    """Start a worker for the next `file_workers` with these limits, which is ready by the time it is needed."""
    warm(**_arguments(limits))


def _arguments(limits: Limits) -> dict[str, Any]:
    return {
        "cpu_seconds": limits.frame_seconds,
        "wall_seconds": limits.wall_seconds,
        "memory_bytes": limits.worker_bytes,
        "preload": ("pipeline.imaging.sources",),
    }
