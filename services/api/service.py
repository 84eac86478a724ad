"""What the service holds while it runs: the predictor once it is loaded, and how much work it lets in."""

import asyncio
import logging
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress

import anyio

from pipeline.errors import OctrayError
from pipeline.imaging.file_workers import warm_file_worker
from pipeline.model.bundle import Bundle
from pipeline.score.predictor import Predictor
from pipeline.score.reading import InMemoryFile
from pipeline.score.study import FILES_AT_ONCE, SMALL_BYTES, score_study
from pipeline.workers.cores import usable_cores
from services.api.options import Settings
from services.api.problems import Cause, ProblemError
from services.api.scoring import Body, StudyRequest, answer_studies
from services.api.uploads import UploadStore

_log = logging.getLogger(__name__)
_GONE = "The client has closed the connection."
_STOPPING = "The service is being stopped. Send the study again in a few seconds."
_BUSY = "The service is busy. Try again in a few seconds."


class _Turn:
    """A study on its way through the queue; it belongs to the event loop but for `request`."""

    def __init__(self, request: StudyRequest) -> None:
        self.request = request
        self.outcome: asyncio.Future[Body] = asyncio.get_running_loop().create_future()
        self.is_small = len(request.looked_at) == 1 and request.looked_at[0].path.stat().st_size <= SMALL_BYTES

    def end(self, outcome: Body | Exception) -> None:
        """Give the outcome to whoever waits, if anybody does."""
        if self.outcome.done():
            return
        if isinstance(outcome, Exception):
            self.outcome.set_exception(outcome)
        else:
            self.outcome.set_result(outcome)


class Service:
    """A bundle, its predictor and the limits; one thread a core takes studies from the queue and has a worker score them.

    Raises
    ------
    InputError
        If there is no place for uploads.
    """

    def __init__(self, bundle: Bundle, settings: Settings) -> None:
        self.bundle = bundle
        self.settings = settings
        self.store = UploadStore(settings.upload_folder, settings.max_upload_bytes)
        self._predictor: Predictor | None = None
        self._obstacle: ProblemError | None = ProblemError(Cause.LOADING, "The model is being loaded.")
        self._threads = settings.concurrency or usable_cores()
        self._uploads: set[anyio.CancelScope] = set()
        self._waiting: deque[_Turn] = deque()
        self._running: set[_Turn] = set()
        self._changed = threading.Condition()
        self._closed = False

    async def load(self) -> None:
        """Load the predictor and start the workers; if that fails, the service stays up and says so in `/readyz`."""
        try:
            predictor = await anyio.to_thread.run_sync(Predictor, self.bundle, 1)
            async with anyio.create_task_group() as group:
                for _ in range(self._threads):
                    group.start_soon(anyio.to_thread.run_sync, _warm_up, predictor)
        except* OctrayError as errors:
            self._give_up(str(errors.exceptions[0]))
        except* Exception as errors:  # ONNX Runtime's exceptions have no common base, and may name places on this machine
            kind = type(errors.exceptions[0]).__name__
            self._give_up(f"its first run ended in an unexpected {kind}. Train the bundle again.")
        else:
            self._predictor = predictor
            if self._obstacle and self._obstacle.cause is Cause.LOADING:
                self._obstacle = None
            loop = asyncio.get_running_loop()
            for number in range(self._threads):
                threading.Thread(target=self._work, args=(loop, predictor), name=f"study-{number}", daemon=True).start()

    def _give_up(self, why: str) -> None:
        self._obstacle = ProblemError(Cause.BROKEN, f"The model cannot be loaded: {why}")
        _log.error(str(self._obstacle))

    def check(self) -> None:
        """Return if studies can be scored.

        Raises
        ------
        ProblemError
            503 as long as the model is not loaded, if it cannot be loaded, and as soon as the service is being stopped.
        """
        if self._obstacle:
            raise ProblemError(self._obstacle.cause, str(self._obstacle))

    @contextmanager
    def uploading(self) -> Iterator[None]:
        """Count one upload for as long as it goes on.

        Raises
        ------
        ProblemError
            503 if there is no room in the queue, if as many as the limits allow go on already, or if the service is stopped
            meanwhile.
        """
        self.check()
        if len(self._uploads) >= self.settings.max_uploads or self._is_full():
            raise ProblemError(Cause.BUSY, _BUSY)
        with anyio.CancelScope() as scope:
            self._uploads.add(scope)
            try:
                yield
            finally:
                self._uploads.discard(scope)
        if scope.cancelled_caught:
            raise ProblemError(Cause.STOPPING, _STOPPING)

    async def answer(self, request: StudyRequest) -> Body:
        """Score one study as soon as it is its turn; if the caller is cancelled, so is the study.

        Raises
        ------
        ProblemError
            503 if there is no room in the queue, or as the study is answered.
        OctrayError
            If the bundle or the workers fail.
        """
        self.check()
        if self._is_full():
            raise ProblemError(Cause.BUSY, _BUSY)
        turn = _Turn(request)
        with self._changed:
            self._waiting.append(turn)
            self._changed.notify()
        try:
            return await turn.outcome
        except asyncio.CancelledError:
            request.cancelled = _GONE
            with self._changed:
                if turn in self._waiting:
                    self._waiting.remove(turn)
            raise

    def is_at_work(self) -> bool:
        """Return whether a study is being scored for somebody who waits."""
        with self._changed:
            return any(not turn.outcome.done() for turn in self._running)

    def stop(self) -> None:
        """Refuse what comes and what has not begun; what is being scored goes on."""
        self._obstacle = ProblemError(Cause.STOPPING, _STOPPING)
        with self._changed:
            left, self._waiting = self._waiting, deque()
        for turn in left:
            turn.end(ProblemError(Cause.STOPPING, _STOPPING))
        for scope in self._uploads:
            scope.cancel()

    def cancel(self) -> None:
        """Refuse what is being scored, too."""
        with self._changed:
            running = list(self._running)
        for turn in running:
            turn.request.cancelled = _STOPPING
            turn.end(ProblemError(Cause.STOPPING, _STOPPING))

    def close(self) -> None:
        """End the threads as soon as they have nothing to do, and remove all uploads."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self.store.close()

    def _is_full(self) -> bool:
        return len(self._waiting) + len(self._running) >= self._threads + self.settings.queue

    def _work(self, loop: asyncio.AbstractEventLoop, predictor: Predictor) -> None:
        """Score one study after the other until the service is closed, several small ones at a time if they wait."""
        while turns := self._next_turns():
            open_turns = {turn.request: turn for turn in turns}
            outcome: Body | Exception
            try:
                with closing(answer_studies([turn.request for turn in turns], predictor, self.settings)) as answers:
                    for request, outcome in answers:
                        self._finish(loop, open_turns.pop(request), outcome)
            except Exception as error:
                for turn in open_turns.values():
                    self._finish(loop, turn, error)
            if any(turn.request.cancelled for turn in turns):
                warm_file_worker()  # since that which was at work has been ended

    def _next_turns(self) -> Sequence[_Turn]:
        """Wait for the next study, and take those with it that are as small; empty if the service is closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._waiting)
            if self._closed:
                return ()
            first = self._waiting.popleft()
            turns = [first]
            share = 1 + len(self._waiting) // self._threads
            while (
                len(turns) < min(share, FILES_AT_ONCE)
                and first.is_small
                and self._waiting
                and self._waiting[0].is_small
                and self._waiting[0].request.heatmaps == first.request.heatmaps
            ):
                turns.append(self._waiting.popleft())
            self._running.update(turns)
            return turns

    def _finish(self, loop: asyncio.AbstractEventLoop, turn: _Turn, outcome: Body | Exception) -> None:
        with self._changed:
            self._running.discard(turn)
        with suppress(RuntimeError):  # the loop has been closed: nobody waits any more
            loop.call_soon_threadsafe(turn.end, outcome)


def _warm_up(predictor: Predictor) -> None:
    """Have a worker load what it needs, so that the first study does not wait for it."""
    for _ in score_study([InMemoryFile("", b"")], predictor):
        pass
