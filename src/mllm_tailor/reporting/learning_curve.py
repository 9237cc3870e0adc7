"""The learning-curve page: scores by number of labelled samples, the fitted power law and its extrapolation."""

from __future__ import annotations

import datetime
import math
from collections.abc import Callable, Sequence
from pathlib import Path

from markupsafe import Markup

from mllm_tailor.core.io import write_atomic
from mllm_tailor.reporting.axes import axis, text_width, tick_text
from mllm_tailor.reporting.html import page
from mllm_tailor.scoring.intervals import Interval
from mllm_tailor.scoring.learning import LearningCurve

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 640, 360, 44, 26, 14, 44
Position = Callable[[float, float], tuple[float, float]]


def write_curve(name: str, curve: LearningCurve, base: Interval, sentence: str, recipe: str, path: Path) -> None:
    """Write the page atomically; `sentence` states the result."""
    text = page(
        "curve.html",
        name=name,
        made=f"{datetime.datetime.now():%Y-%m-%d %H:%M}",
        curve=curve,
        rows=list(zip(curve.sizes, curve.values, strict=True)),
        base=base,
        sentence=sentence,
        chart=chart(curve),
        recipe=recipe,
    )
    write_atomic(path, text)


def chart(curve: LearningCurve) -> Markup:
    """Scores with their intervals by number of samples (logarithmic); the range of the law is shaded."""
    shown = [*curve.values, *(interval for _, interval in curve.band)]
    ends = [end for interval in shown for end in (interval.low, interval.high)]
    ticks = axis(ends, 0.0, 100.0 if curve.better == "higher" else math.inf)
    first, last = math.log(min(curve.sizes)), math.log(2 * max(curve.sizes))

    def position(size: float, value: float) -> tuple[float, float]:
        across = (math.log(size) - first) / (last - first) * (WIDTH - LEFT - RIGHT)
        return LEFT + across, TOP + (ticks[-1] - value) / (ticks[-1] - ticks[0]) * (HEIGHT - TOP - BOTTOM)

    points = (_point(position, *point) for point in zip(curve.sizes, curve.values, strict=True))
    return Markup(
        '<svg class="curve" style="max-width: 46rem" viewBox="0 0 {width} {height}" role="img" aria-label="{name}">'
        "{grid}{band}{points}</svg>"
    ).format(
        width=WIDTH,
        height=HEIGHT,
        name=f"{curve.metric} by labelled samples",
        grid=_grid(curve, position, ticks),
        band=_band(curve, position),
        points=Markup("").join(points),
    )


def _band(curve: LearningCurve, position: Position) -> Markup:
    """The shaded range, and the law as a line, dashed beyond the last point."""

    def path(points: list[tuple[float, float]]) -> str:
        return " ".join(f"{x:.1f},{y:.1f}" for x, y in (position(*point) for point in points))

    edge = [(size, interval.high) for size, interval in curve.band] + [
        (size, interval.low) for size, interval in reversed(curve.band)
    ]
    end = max(curve.sizes)
    law = [(size, interval.value) for size, interval in curve.band]
    seen = [point for point in law if point[0] <= end]
    return Markup(
        '<polygon style="fill: var(--accent-soft); opacity: .45" points="{edge}"/>'
        '<polyline class="line" points="{seen}"/>'
        '<polyline class="line" stroke-dasharray="5 4" points="{ahead}"/>'
    ).format(edge=path(edge), seen=path(seen), ahead=path([*seen[-1:], *(point for point in law if point[0] > end)]))


def _point(position: Position, size: float, interval: Interval) -> Markup:
    (x, y), (_, top), (_, bottom) = (
        position(size, interval.value),
        position(size, interval.high),
        position(size, interval.low),
    )
    return Markup(
        '<line class="whisker" x1="{x:.1f}" x2="{x:.1f}" y1="{top:.1f}" y2="{bottom:.1f}"/>'
        '<circle class="dot" cx="{x:.1f}" cy="{y:.1f}" r="4"/>'
    ).format(x=x, y=y, top=top, bottom=bottom)


def _grid(curve: LearningCurve, position: Position, ticks: Sequence[float]) -> Markup:
    """Horizontal lines with their values; the sizes below, of which those that would overlap are left out."""
    lines = Markup("")
    for value in ticks:
        _, y = position(curve.sizes[0], value)
        lines += Markup(
            '<line class="axis" x1="{}" x2="{}" y1="{:.1f}" y2="{:.1f}"/>'
            '<text x="{}" y="{:.1f}" text-anchor="end">{}</text>'
        ).format(LEFT, WIDTH - RIGHT, y, y, LEFT - 6, y + 4, tick_text(value))
    free_to = float(WIDTH)
    for size in sorted({*curve.sizes, 2 * max(curve.sizes)}, reverse=True):
        x, _ = position(size, ticks[0])
        half = text_width(f"{size:,}") / 2
        if x + half > free_to:
            continue
        free_to = x - half - 4
        lines += Markup('<text x="{:.1f}" y="{}" text-anchor="middle">{:,}</text>').format(x, HEIGHT - 22, size)
    return lines + Markup('<text x="{}" y="{}" text-anchor="end">labelled samples</text>').format(
        WIDTH - RIGHT, HEIGHT - 6
    )
