"""One way to show that long work goes on, and until when."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_silenced: ContextVar[bool] = ContextVar("silenced", default=False)


@contextmanager
def no_progress_bars() -> Iterator[None]:
    """No bar is drawn within."""
    before = _silenced.set(True)
    try:
        yield
    finally:
        _silenced.reset(before)


@contextmanager
def progress_bar(description: str, total: int, *, shown: bool = True) -> Iterator[Callable[[int], None]]:
    """A bar on standard error with count, elapsed time and ETA; yields a function that advances it by n steps.

    Standard output stays clean. Without a terminal nothing is drawn: a log wants no bars.
    """
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("ETA"),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True)
    hidden = not shown or _silenced.get() or not console.is_terminal
    with Progress(*columns, console=console, disable=hidden) as progress:
        task = progress.add_task(description, total=total)
        yield lambda steps: progress.advance(task, steps)
