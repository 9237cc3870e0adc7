"""The lengths of a training's samples in 56 bytes each: of a million samples, not a gigabyte of objects."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from dataclasses import astuple, fields
from typing import overload

from mllm_tailor.models import Length

WIDTH = len(fields(Length))


class PackedLengths(Sequence[Length]):
    """Lengths, unpacked when they are asked for."""

    def __init__(self, lengths: Iterable[Length]) -> None:
        self.values = array("q")
        for length in lengths:
            self.values.extend(astuple(length))

    def __len__(self) -> int:
        """The number of samples."""
        return len(self.values) // WIDTH

    @overload
    def __getitem__(self, index: int) -> Length: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Length]: ...
    def __getitem__(self, index: int | slice) -> Length | Sequence[Length]:
        """One length, or a list of some."""
        if isinstance(index, slice):
            return [self[number] for number in range(len(self))[index]]
        start = range(len(self))[index] * WIDTH
        return Length(*self.values[start : start + WIDTH])
