"""One look for every progress bar: what, how far, how fast, time left."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sized
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

Item = TypeVar("Item")

console = Console(stderr=True, highlight=False)


def progress_bar() -> Progress:
    """A bar for work of known length; `task.fields["note"]` is free text beside it."""
    return Progress(
        TextColumn("[bold]{task.description}"),
        BarColumn(bar_width=None if sys.stderr.isatty() else 20),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
        transient=False,
        disable=not sys.stderr.isatty(),
    )


def track(items: Iterable[Item], what: str, total: int | None = None) -> Iterator[Item]:
    """Iterate with a bar; silent where standard error is not a terminal."""
    if total is None and isinstance(items, Sized):
        total = len(items)
    with progress_bar() as bar:
        task = bar.add_task(what, total=total, note="")
        for item in items:
            yield item
            bar.advance(task)
