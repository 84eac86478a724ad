"""Worker processes that read files: a `WorkerPool` with the limits of one file, and the readers already imported."""

from pipeline.settings import WorkerLimits, worker_limits
from pipeline.workers.pool import WorkerPool, warm

_PRELOAD = ("pipeline.imaging.sources",)


def file_workers(workers: int = 0, limits: WorkerLimits | None = None) -> WorkerPool:
    """Return a pool of workers that read files, by default under the limits of `worker_limits`; 0 takes one for each core."""
    return WorkerPool(workers, limits or worker_limits(), _PRELOAD)


def warm_file_worker(limits: WorkerLimits | None = None) -> None:
    """Start a worker for the next `file_workers` with these limits, which is ready by the time it is needed."""
    warm(limits or worker_limits(), _PRELOAD)
