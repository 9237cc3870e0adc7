"""Progress of long work, shown by whoever asked for it.

The library reports through `track` and `progress`; nothing is shown until an application sets a factory. The command
line sets the one of `cli/console.py`; a notebook or service sets its own or none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager
from typing import Protocol, TypeVar

Item = TypeVar("Item")


class Progress(Protocol):
    """One piece of work that is being watched. Calls may come from several threads."""

    def start(self) -> None:
        """The work begins."""

    def advance(self, count: int = 1) -> None:
        """`count` more items are done."""

    def update(self, completed: int, note: str = "", seconds_left: float | None = None) -> None:
        """`completed` items are done in all; `note` is free text beside them.

        `seconds_left` is stated where they do not follow from the items, such as under a limit on the time.
        """

    def stop(self) -> None:
        """The work has ended, or was given up."""


ProgressFactory = Callable[[str, int | None, int], Progress]
"""Called with a short description, the number of items (None: unknown) and how many of them are already done."""


class NoProgress:
    """Shows nothing."""

    def start(self) -> None:
        """Do nothing."""

    def advance(self, count: int = 1) -> None:
        """Do nothing."""

    def update(self, completed: int, note: str = "", seconds_left: float | None = None) -> None:
        """Do nothing."""

    def stop(self) -> None:
        """Do nothing."""


_factory: list[ProgressFactory] = []


def set_progress_factory(factory: ProgressFactory | None) -> None:
    """Show all progress from now on through what `factory` makes; None shows nothing."""
    _factory[:] = [factory] if factory is not None else []


@contextmanager
def without_progress() -> Iterator[None]:
    """Within, nothing is shown of work that begins: it is a part of what is shown already."""
    before = _factory[0] if _factory else None
    set_progress_factory(None)
    try:
        yield
    finally:
        set_progress_factory(before)


def make_progress(what: str, total: int | None = None, completed: int = 0) -> Progress:
    """A `Progress` that has not been started; for work whose begin and end lie in different functions."""
    return _factory[0](what, total, completed) if _factory else NoProgress()


@contextmanager
def progress(what: str, total: int | None = None) -> Iterator[Progress]:
    """A started `Progress`, stopped at the end of the block."""
    shown = make_progress(what, total)
    shown.start()
    try:
        yield shown
    finally:
        shown.stop()


def track(items: Iterable[Item], what: str, total: int | None = None) -> Iterator[Item]:
    """Iterate over `items` and report how many of them are done."""
    if total is None and isinstance(items, Sized):
        total = len(items)
    with progress(what, total) as shown:
        for item in items:
            yield item
            shown.advance()
