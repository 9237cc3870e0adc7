"""Standard error of the command line: progress, the library's log and errors. Results are printed by `commands`."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable
from datetime import timedelta

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Task, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress
from rich.text import Text

from mllm_tailor.core.progress import Progress, set_progress_factory
from mllm_tailor.core.terminal import plain_lines

LEVELS = ("error", "warning", "info", "debug")
LINE_EVERY = 30.0  # seconds between two lines of progress where standard error is no terminal

console = Console(stderr=True, highlight=False, markup=False, emoji=False, soft_wrap=True)


class TimeLeftColumn(TimeRemainingColumn):
    """The time that the work itself states to be left, else what rich works out."""

    def render(self, task: Task) -> Text:
        """The time as rich writes it."""
        seconds = task.fields["seconds_left"]
        if seconds is None or task.finished:
            return super().render(task)
        return Text(str(timedelta(seconds=round(seconds))), style="progress.remaining")


class ProgressBar:
    """A `core.progress.Progress` on a terminal."""

    def __init__(self, what: str, total: int | None, completed: int) -> None:
        self._bar = RichProgress(
            TextColumn("{task.description}", style="bold", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}", markup=False),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeLeftColumn(),
            console=console,  # the one that messages go to: they are printed above the bar
        )
        self._task = self._bar.add_task(what, total=total, completed=completed, note="", seconds_left=None)

    def start(self) -> None:
        """Show the bar."""
        self._bar.start()

    def advance(self, count: int = 1) -> None:
        """Move the bar on by `count` items."""
        self._bar.advance(self._task, count)

    def update(self, completed: int, note: str = "", seconds_left: float | None = None) -> None:
        """Set the bar to `completed` items, with `note` beside it."""
        self._bar.update(self._task, completed=completed, note=note, seconds_left=seconds_left)

    def stop(self) -> None:
        """Leave the bar as it stands."""
        self._bar.stop()


class ProgressLines:
    """A `core.progress.Progress` in a file or pipe: a line every half minute, with the minutes that are left."""

    def __init__(
        self, what: str, total: int | None, completed: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._what, self._total, self._clock = what, total, clock
        self._before = self._completed = completed
        self._note = ""
        self._seconds_left: float | None = None
        self._began = self._said = clock()

    def start(self) -> None:
        """Begin to count the time."""
        self._began = self._said = self._clock()

    def advance(self, count: int = 1) -> None:
        """`count` more items are done."""
        self.update(self._completed + count, self._note)

    def update(self, completed: int, note: str = "", seconds_left: float | None = None) -> None:
        """`completed` items are done in all; prints a line when the last one is half a minute ago."""
        self._completed, self._note, self._seconds_left = completed, note, seconds_left
        now = self._clock()
        if now - self._said >= LINE_EVERY:
            self._said = now
            show_line(self._line(now))

    def stop(self) -> None:
        """Print nothing more."""

    def _line(self, now: float) -> str:
        count = f"{self._completed} of {self._total}" if self._total is not None else str(self._completed)
        parts = [f"{self._what}: {count}", self._note]
        done = self._completed - self._before
        if self._total is not None and done:
            seconds = (now - self._began) / done * (self._total - self._completed)
            minutes = (seconds if self._seconds_left is None else self._seconds_left) / 60
            parts.append(f"{minutes:.0f} min left" if minutes >= 1 else "less than a minute left")
        return ", ".join(filter(None, parts))


class LogHandler(logging.Handler):
    """Prints the library's log records: remarks as they are, warnings in yellow, debugging with its module."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            style = "yellow" if record.levelno >= logging.WARNING else "dim" if record.levelno < logging.INFO else ""
            name = f"{record.name}: " if record.levelno < logging.INFO else ""
            show_line(name + self.format(record), style)
        except Exception:  # noqa: BLE001
            self.handleError(record)


def set_up_output(verbosity: int = 0, level: str | None = None) -> None:
    """Show the library's log and progress on standard error.

    `verbosity` 1 adds debugging, -1 leaves warnings and errors only (and no progress), -2 errors only. `level`, one of
    `LEVELS`, is used when `verbosity` is 0.

    Raises:
        ValueError: for an unknown level.
    """
    if verbosity or not level:
        level = LEVELS[max(0, min(3, 2 + verbosity))]
    if level.lower() not in LEVELS:
        raise ValueError(level)
    number = getattr(logging, level.upper())
    logger = logging.getLogger("mllm_tailor")
    logger.setLevel(number)
    if not any(isinstance(handler, LogHandler) for handler in logger.handlers):
        logger.addHandler(LogHandler())
    # It suggests, at every start, to install a package that would fetch compiled code from the hub.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    set_progress_factory(make_bar if number <= logging.INFO else None)


def make_bar(what: str, total: int | None, completed: int) -> Progress:
    return (ProgressBar if sys.stderr.isatty() else ProgressLines)(what, total, completed)


def show_line(text: str, style: str = "") -> None:
    """Print one message; its text is taken literally and its line breaks are kept."""
    console.print(plain_lines(_with_urls(text), style))


def show_error(message: str) -> None:
    """Print what went wrong."""
    console.print(Text("Error: ", "bold red") + plain_lines(_with_urls(message)))


def _with_urls(text: str) -> str:
    """Copies of files of a store by their URLs."""
    if "remote" not in text:
        return text
    from mllm_tailor.core.remote import with_urls  # not needed by any other message

    return with_urls(text)
