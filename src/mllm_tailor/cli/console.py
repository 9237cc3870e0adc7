"""The console: where the command line shows progress."""

from __future__ import annotations

import sys

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress


class ProgressBar:
    """A `core.progress.Progress` on the terminal; silent where standard error is none."""

    def __init__(self, what: str, total: int | None, completed: int) -> None:
        self._bar = RichProgress(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=None if sys.stderr.isatty() else 20),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=Console(stderr=True, highlight=False),
            disable=not sys.stderr.isatty(),
        )
        self._task = self._bar.add_task(what, total=total, completed=completed, note="")

    def start(self) -> None:
        """Show the bar."""
        self._bar.start()

    def advance(self, count: int = 1) -> None:
        """Move the bar on by `count` items."""
        self._bar.advance(self._task, count)

    def update(self, completed: int, note: str = "") -> None:
        """Set the bar to `completed` items, with `note` beside it."""
        self._bar.update(self._task, completed=completed, note=note)

    def stop(self) -> None:
        """Leave the bar as it stands."""
        self._bar.stop()
