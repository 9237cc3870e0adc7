"""The learning rate as a pure function of the step."""

from __future__ import annotations

import math
from typing import Literal


def rate_factor(
    step: float, steps: int, warmup: float, shape: Literal["cosine", "linear", "constant"] = "cosine"
) -> float:
    """Share of the peak rate in step `step` (from 0) of `steps`: a linear rise, then the shape's fall towards 0.

    A part of a step is allowed: a budget of minutes moves along the schedule by the clock.

    >>> [round(rate_factor(step, 10, 0.2, "linear"), 3) for step in (0, 1, 2, 9)]
    [0.5, 1.0, 1.0, 0.125]
    """
    rise = round(warmup * steps)
    if step < rise:
        return min(1.0, (step + 1) / rise)
    if shape == "constant":
        return 1.0
    progress = (step - rise) / max(1, steps - rise)
    return 1.0 - progress if shape == "linear" else 0.5 * (1.0 + math.cos(math.pi * progress))
