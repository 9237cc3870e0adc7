"""The page of a learning curve: scores over labelled samples, the law through them, what twice as many would bring."""

from __future__ import annotations

import datetime
import math
from collections.abc import Callable
from pathlib import Path

from markupsafe import Markup

from mllm_tailor.core.io import write_atomic
from mllm_tailor.reporting.html import page
from mllm_tailor.scoring.compare import Interval
from mllm_tailor.scoring.learning import LearningCurve

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 640, 360, 44, 20, 14, 40
Place = Callable[[float, float], tuple[float, float]]


def write_curve(name: str, found: LearningCurve, untuned: Interval, sentence: str, recipe: str, path: Path) -> None:
    """Write it, whole or not at all; `sentence` is the finding in words."""
    text = page(
        "curve.html",
        name=name,
        made=f"{datetime.datetime.now():%Y-%m-%d %H:%M}",
        found=found,
        rows=list(zip(found.sizes, found.values, strict=True)),
        untuned=untuned,
        sentence=sentence,
        picture=picture(found),
        recipe=recipe,
    )
    write_atomic(path, text)


def picture(found: LearningCurve) -> Markup:
    """Scores with their intervals over samples (each doubling as wide as the last); the law's range is shaded."""
    shown = [*found.values, *(interval for _, interval in found.band)]
    low, high = min(one.low for one in shown), max(one.high for one in shown)
    if high - low < 1.0:
        low, high = low - 0.5, high + 0.5
    first, last = math.log(min(found.sizes)), math.log(2 * max(found.sizes))

    def place(size: float, value: float) -> tuple[float, float]:
        across = (math.log(size) - first) / (last - first) * (WIDTH - LEFT - RIGHT)
        return LEFT + across, TOP + (high - value) / (high - low) * (HEIGHT - TOP - BOTTOM)

    return Markup(
        '<svg class="curve" style="max-width: 46rem" viewBox="0 0 {width} {height}" role="img" aria-label="{name}">'
        "{grid}{band}{points}</svg>"
    ).format(
        width=WIDTH,
        height=HEIGHT,
        name=f"{found.metric} by labelled samples",
        grid=_grid(found, place, low, high),
        band=_band(found, place),
        points=Markup("").join(_point(place, size, one) for size, one in zip(found.sizes, found.values, strict=True)),
    )


def _band(found: LearningCurve, place: Place) -> Markup:
    """The shaded range, and the law as a line that is dashed beyond the last point."""

    def path(points: list[tuple[float, float]]) -> str:
        return " ".join(f"{x:.1f},{y:.1f}" for x, y in (place(*point) for point in points))

    edge = [(size, one.high) for size, one in found.band] + [(size, one.low) for size, one in reversed(found.band)]
    end = max(found.sizes)
    law = [(size, one.value) for size, one in found.band]
    seen = [point for point in law if point[0] <= end]
    return Markup(
        '<polygon style="fill: var(--accent-soft); opacity: .45" points="{edge}"/>'
        '<polyline class="line" points="{seen}"/>'
        '<polyline class="line" stroke-dasharray="5 4" points="{ahead}"/>'
    ).format(edge=path(edge), seen=path(seen), ahead=path([*seen[-1:], *(point for point in law if point[0] > end)]))


def _point(place: Place, size: float, one: Interval) -> Markup:
    (x, y), (_, top), (_, bottom) = place(size, one.value), place(size, one.high), place(size, one.low)
    return Markup(
        '<line class="whisker" x1="{x:.1f}" x2="{x:.1f}" y1="{top:.1f}" y2="{bottom:.1f}"/>'
        '<circle class="dot" cx="{x:.1f}" cy="{y:.1f}" r="4"/>'
    ).format(x=x, y=y, top=top, bottom=bottom)


def _grid(found: LearningCurve, place: Place, low: float, high: float) -> Markup:
    lines = Markup("")
    for value in (low, (low + high) / 2, high):
        _, y = place(found.sizes[0], value)
        lines += Markup(
            '<line class="axis" x1="{}" x2="{}" y1="{:.1f}" y2="{:.1f}"/>'
            '<text x="{}" y="{:.1f}" text-anchor="end">{:.1f}</text>'
        ).format(LEFT, WIDTH - RIGHT, y, y, LEFT - 6, y + 4, value)
    for size in (*found.sizes, 2 * max(found.sizes)):
        x, _ = place(size, low)
        lines += Markup('<text x="{:.1f}" y="{}" text-anchor="middle">{:,}</text>').format(x, HEIGHT - 20, size)
    return lines + Markup('<text x="{}" y="{}" text-anchor="end">labelled samples</text>').format(
        WIDTH - RIGHT, HEIGHT - 4
    )
