"""What the service holds while it runs: the predictor once it is loaded, and how much work it lets in."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial

import anyio
from starlette.exceptions import HTTPException

from pipeline.errors import OctrayError, UnreadableError
from pipeline.imaging.file_workers import file_workers
from pipeline.model.bundle import Bundle
from pipeline.score.predictor import Predictor
from pipeline.score.reading import InMemoryFile
from pipeline.score.study import read_files
from services.api.options import Settings
from services.api.problems import RETRY

_log = logging.getLogger(__name__)


class Service:
    """A bundle, its predictor and the limits."""

    def __init__(self, bundle: Bundle, settings: Settings) -> None:
        self.bundle = bundle
        self.settings = settings
        self.limiter = anyio.CapacityLimiter(settings.concurrency)
        self._predictor: Predictor | None = None
        self._state = "The model is being loaded."
        self._open = 0

    async def load(self) -> None:
        """Load the predictor in a worker thread; if that fails, the service stays up and says so in `/readyz`."""
        try:
            self._predictor = await anyio.to_thread.run_sync(_loaded, self.bundle, self.settings.threads)
        except OctrayError as error:
            self._give_up(str(error))
        except Exception as error:  # ONNX Runtime's exceptions have no common base, and may name places on this machine
            self._give_up(f"its first run ended in an unexpected {type(error).__name__}. Train the bundle again.")

    def _give_up(self, why: str) -> None:
        self._state = f"The model cannot be loaded: {why}"
        _log.error(self._state)

    def predictor(self) -> Predictor:
        """Return the predictor.

        Raises
        ------
        HTTPException
            503 as long as it is not loaded.
        """
        if self._predictor is None:
            raise HTTPException(503, self._state, RETRY)
        return self._predictor

    @contextmanager
    def admitted(self) -> Iterator[None]:
        """Count one request for as long as it is open.

        Raises
        ------
        HTTPException
            503 if as many requests as the limits allow are open already.
        """
        if self._open >= self.settings.concurrency + self.settings.queue:
            raise HTTPException(503, "The service is busy. Try again in a few seconds.", RETRY)
        self._open += 1
        try:
            yield
        finally:
            self._open -= 1


def _loaded(bundle: Bundle, threads: int) -> Predictor:
    """Load the predictor, and start a process that reads files, so that the first study does not wait for it."""
    predictor = Predictor(bundle, threads)
    with file_workers(1) as workers, suppress(UnreadableError):
        list(workers.run(partial(read_files, admission=predictor.admission), [InMemoryFile("", b"")]))
    return predictor
