"""How long work reports its progress: rooms below the command line take a `Progress` and know no terminal."""

from collections.abc import Callable, Iterable
from typing import Protocol, TypeVar

Item = TypeVar("Item")


class Progress(Protocol):
    """Passes items through and shows how many have gone by."""

    def __call__(self, items: Iterable[Item], description: str, total: int | None = None) -> Iterable[Item]:
        """Yield `items` unchanged; `total` is their number if it is known."""


def silent(items: Iterable[Item], description: str, total: int | None = None) -> Iterable[Item]:
    """Pass items through and show nothing."""
    return items


def working(progress: Progress, description: str, work: Callable[[], Item]) -> Item:
    """Do one piece of work that cannot be counted, show that it is running, and return its result."""
    results = [work() for _ in progress((None,), description, 1)]
    return results[0]
