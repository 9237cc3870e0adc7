"""How independent pieces of work are done: one after the other here, or by whatever the caller brings."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol


class Mapper(Protocol):
    """Applies a function to items. The results come in the order of the items.

    A mapper may call the function in other processes: function, items and results must then survive pickling, and files
    must lie where all of them reach.
    """

    def __call__(self, function: Callable[[Any], Any], items: Sequence[Any]) -> Iterable[Any]:
        """The results, each as soon as it and those before it are there."""


def in_turn(function: Callable[[Any], Any], items: Sequence[Any]) -> Iterable[Any]:
    """One after the other, in this process."""
    return map(function, items)
