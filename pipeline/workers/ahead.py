"""Works on many items ahead of their use, in threads, and yields the results in the order of the items, in bounded memory."""

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from typing import Generic, TypeVar

ITEMS_AHEAD = 256
BYTES_AHEAD = 2**27

Handle = TypeVar("Handle")
Item = TypeVar("Item")
Result = TypeVar("Result")


def map_ahead(work: Callable[[Item], Result], items: Iterable[Item], threads: int, ahead: int) -> Generator[Result, None, None]:
    """Yield `work(item)` for every item in order, with up to `ahead` items begun before their results are needed."""

    def single(item: Item) -> Iterator[Result]:
        yield work(item)

    with closing(stream_ahead(single, ((None, item) for item in items), threads, ahead=ahead)) as streams:
        for _, results in streams:
            yield from results


def stream_ahead(
    work: Callable[[Item], Iterator[Result]],
    items: Iterable[tuple[Handle, Item]],
    threads: int,
    *,
    ahead: int = ITEMS_AHEAD,
    size: Callable[[Result], int] = lambda _: 0,
    cancel: Callable[[], None] = lambda: None,
) -> Generator[tuple[Handle, Iterator[Result]], None, None]:
    """Do some work on every item, several at a time.

    Parameters
    ----------
    work
        Yields the results of an item; an exception it raises ends the iteration over its results, and is raised there.
    items
        Each with a handle by which the caller knows it; taken as needed, by the thread that iterates.
    threads
        How many items are worked on at the same time.
    ahead
        How many items are begun before their results are needed.
    size
        How many bytes a result takes; the default limits nothing but the number of items.
    cancel
        Called at the end, however it came; ends the work that is still going on.

    Yields
    ------
    tuple
        The handle of each item and an iterator over its results, in the order of the items; results that are left when the
        next item is taken are lost. At most `BYTES_AHEAD` of results wait, plus one for each thread and one for the item in
        use. Closing the iterator stops the work.
    """
    begun = _Begun(work, iter(items), ahead, size)
    pool = [threading.Thread(target=begun.serve, name=f"ahead-{number}", daemon=True) for number in range(threads)]
    for thread in pool:
        thread.start()
    try:
        yield from begun.slots()
    finally:
        begun.stop()
        cancel()
        for thread in pool:
            thread.join()


class _Slot(Generic[Handle, Item, Result]):
    """An item that was begun: its results that wait, and whether more will come."""

    def __init__(self, handle: Handle, item: Item) -> None:
        self.handle = handle
        self.item = item
        self.waiting: deque[Result] = deque()
        self.ended = False
        self.error: BaseException | None = None


class _Begun(Generic[Handle, Item, Result]):
    """The items that are begun, in order; all of it under one lock."""

    def __init__(
        self,
        work: Callable[[Item], Iterator[Result]],
        items: Iterator[tuple[Handle, Item]],
        most: int,
        size: Callable[[Result], int],
    ) -> None:
        self._work = work
        self._items = items
        self._most = most
        self._size = size
        self._slots: deque[_Slot[Handle, Item, Result]] = deque()
        self._untouched: deque[_Slot[Handle, Item, Result]] = deque()
        self._changed = threading.Condition()
        self._bytes = 0
        self._stopped = False

    def slots(self) -> Iterator[tuple[Handle, Iterator[Result]]]:
        self._top_up()
        while self._slots:
            slot = self._slots[0]
            yield slot.handle, self._taken(slot)
            for _ in self._taken(slot):
                pass
            with self._changed:
                self._slots.popleft()
                self._changed.notify_all()
            self._top_up()

    def stop(self) -> None:
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    def _top_up(self) -> None:
        while len(self._slots) < self._most:
            try:
                slot: _Slot[Handle, Item, Result] = _Slot(*next(self._items))
            except StopIteration:
                return
            with self._changed:
                self._slots.append(slot)
                self._untouched.append(slot)
                self._changed.notify_all()

    def _taken(self, slot: _Slot[Handle, Item, Result]) -> Iterator[Result]:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: slot.waiting or slot.ended)
                if not slot.waiting:
                    break
                result = slot.waiting.popleft()
                self._bytes -= self._size(result)
                self._changed.notify_all()
            yield result
        error, slot.error = slot.error, None  # so that it is raised once, and not when the rest is taken
        if error:
            raise error

    def serve(self) -> None:
        """Work on one item after the other until told to stop."""
        while slot := self._next():
            error = None
            try:
                for result in self._work(slot.item):
                    if not self._put(slot, result):
                        return
            except Exception as caught:
                error = caught
            with self._changed:
                slot.error, slot.ended = error, True
                self._changed.notify_all()

    def _next(self) -> _Slot[Handle, Item, Result] | None:
        with self._changed:
            self._changed.wait_for(lambda: self._stopped or self._untouched)
            return None if self._stopped else self._untouched.popleft()

    def _put(self, slot: _Slot[Handle, Item, Result], result: Result) -> bool:
        """Wait for room, then add a result; the item in use always gets one through, so that it never stands still."""
        size = self._size(result)
        with self._changed:
            self._changed.wait_for(lambda: self._stopped or self._has_room(slot, size))
            if not self._stopped:
                slot.waiting.append(result)
                self._bytes += size
                self._changed.notify_all()
            return not self._stopped

    def _has_room(self, slot: _Slot[Handle, Item, Result], size: int) -> bool:
        is_awaited = not slot.waiting and slot is self._slots[0]
        return is_awaited or self._bytes + size <= BYTES_AHEAD
