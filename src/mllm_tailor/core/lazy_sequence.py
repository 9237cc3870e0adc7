"""A sequence whose items are made whenever they are asked for, so that memory does not grow with their number."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Generic, TypeVar, overload

Item = TypeVar("Item")
Other = TypeVar("Other")


class LazySequence(Sequence[Item], Generic[Item]):
    """`length` items; each is made by its index."""

    def __init__(self, length: int, make: Callable[[int], Item], fingerprint: str) -> None:
        """`fingerprint`: a hash of everything that the items say."""
        self._length, self._make, self.fingerprint = length, make, fingerprint

    def __len__(self) -> int:
        """The number of items."""
        return self._length

    @overload
    def __getitem__(self, index: int) -> Item: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Item]: ...
    def __getitem__(self, index: int | slice) -> Item | Sequence[Item]:
        """An item, or a sequence of some that are made as lazily."""
        if isinstance(index, slice):
            chosen = range(self._length)[index]
            if chosen == range(self._length):
                return self
            return LazySequence(len(chosen), lambda number: self[chosen[number]], f"{self.fingerprint} {chosen}")
        if not -self._length <= index < self._length:
            raise IndexError(index)
        return self._make(index % self._length)

    def map(self, change: Callable[[Item], Other], name: str) -> LazySequence[Other]:
        """Every item changed when it is asked for; `name` distinguishes changes that give other items."""
        return LazySequence(self._length, lambda index: change(self[index]), f"{self.fingerprint} {name}")
