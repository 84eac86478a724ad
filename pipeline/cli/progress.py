"""Progress bars on standard error."""

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Protocol, TypeVar

Item = TypeVar("Item")

_REFRESH_SECONDS = 0.1
"""Working out a rate takes longer than many a study."""


def bar(items: Iterable[Item], description: str, total: int | None = None) -> Iterable[Item]:
    """Yield `items` and show a bar with count, time and time left; satisfies `pipeline.progress.Progress`."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        yield from progress.track(items, total=total, description=description)


class Advance(Protocol):
    """Moves a bar."""

    def __call__(self, total: int, done: int, failed: int) -> None:
        """Show how many of `total` studies are done, and how many files and frames were not scored."""


@contextmanager
def study_bar(description: str) -> Iterator[Advance]:
    """Show a bar of studies with their rate, the time left, and what was not scored."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[failed]} not scored"),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(description, total=None, rate="", failed=0)
        shown_at = 0.0
        latest: tuple[int | None, int, int] = None, 0, 0

        def show() -> None:
            nonlocal shown_at
            shown_at = time.monotonic()
            speed = progress.tasks[task].speed
            rate = f"{speed:.1f} a second" if speed else ""
            total, done, failed = latest
            progress.update(task, total=total, completed=done, failed=failed, rate=rate)

        def advance(total: int, done: int, failed: int) -> None:
            nonlocal latest
            latest = total, done, failed
            if time.monotonic() - shown_at > _REFRESH_SECONDS:
                show()

        try:
            yield advance
        finally:
            show()
