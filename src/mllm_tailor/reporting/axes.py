"""Axes of charts: round ends that never leave the range of the metric."""

from __future__ import annotations

import math
from collections.abc import Sequence

TICKS = 4  # about so many intervals on an axis


def axis(values: Sequence[float], low: float = -math.inf, high: float = math.inf) -> list[float]:
    """Round ticks around the values, from the lowest to the highest, within what is possible (`low` to `high`).

    >>> axis([52.0, 97.5], 0, 100), axis([0.5, 2.1], 0), axis([7.0], 0, 100)
    ([40.0, 60.0, 80.0, 100.0], [0.5, 1.0, 1.5, 2.0, 2.5], [6.0, 6.5, 7.0, 7.5, 8.0])
    """
    first, last = min(values), max(values)
    if last - first < 1e-9:
        first, last = first - 1.0, last + 1.0
    first, last = max(first, low), min(last, high)
    step = _round_step(max(last - first, 1e-9) / TICKS)
    start, end = math.floor(first / step + 1e-9), math.ceil(last / step - 1e-9)
    ticks = [min(high, max(low, index * step)) for index in range(start, end + 1)]
    return [round(tick, 10) + 0.0 for tick in dict.fromkeys(ticks)]


def _round_step(width: float) -> float:
    """The smallest of 1, 2 and 5 times a power of ten that is not below `width`."""
    power = 10.0 ** math.floor(math.log10(width))
    return power * next(factor for factor in (1, 2, 5, 10) if factor * power >= width * (1 - 1e-9))


def tick_text(value: float) -> str:
    """A tick as text, with no more decimals than it needs."""
    return f"{value:,.10g}".replace("-", "−")


def text_width(text: str, size: float = 11.0) -> float:
    """Estimated width of a text in a serif type of `size` units; generous, so that labels are whole."""
    return 0.6 * size * len(text)
