"""Holds interrupts back for as long as something must not be left half done."""

import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager


@contextmanager
def undisturbed() -> Iterator[None]:
    """Hold interrupts back until the block is done; made for the main thread, which alone gets them."""
    held: list[int] = []
    with ExitStack() as restored:
        for number in (signal.SIGINT, signal.SIGTERM):
            restored.callback(signal.signal, number, signal.getsignal(number))
            signal.signal(number, lambda number, _: held.append(number))
        yield
    if held:
        raise KeyboardInterrupt
