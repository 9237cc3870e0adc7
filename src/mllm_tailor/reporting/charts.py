"""Small charts as inline SVG. Bars use percent coordinates, so they fill any width without scaling their lines."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from markupsafe import Markup

from mllm_tailor.reporting.axes import axis, text_width, tick_text
from mllm_tailor.scoring.intervals import Interval

WIDTH, HEIGHT = 360, 190  # user units of a curve; about the pixels of a phone, so that its text keeps its size
RIGHT, TOP, BOTTOM = 12, 12, 34  # margins around the plot; the left one follows the tick labels
POINTS = 240  # a curve of more points is thinned by averaging


def scale_top(intervals: Iterable[Interval]) -> float:
    """The upper end of a scale from 0: 100, or a round number above that for rates beyond 100 %."""
    highest = max((max(each.value, each.high if each.known else 0.0) for each in intervals), default=100.0)
    return max(100.0, axis([0.0, highest], 0.0)[-1])


def _share(percent: float, top: float) -> str:
    return f"{min(100.0, max(0.0, 100 * percent / top)):.2f}%"


def bar(interval: Interval, kind: str, top: float = 100.0) -> Markup:
    """A horizontal bar from 0 to `top` with its 95 % interval as a whisker; `kind` is a CSS class."""
    low, value, high = (_share(number, top) for number in (interval.low, interval.value, interval.high))
    whisker = Markup(
        '<line class="halo" x1="{low}" x2="{high}" y1="10" y2="10"/>'
        '<line class="whisker" x1="{low}" x2="{high}" y1="10" y2="10"/>'
        '<line class="whisker" x1="{low}" x2="{low}" y1="6" y2="14"/>'
        '<line class="whisker" x1="{high}" x2="{high}" y1="6" y2="14"/>'
    ).format(low=low, high=high)
    return Markup(
        '<svg class="bar {kind}" width="100%" height="20" role="img" aria-label="{label}">'
        '<rect class="track" width="100%" height="20"/><rect class="fill" width="{value}" height="20"/>{whisker}</svg>'
    ).format(
        kind=kind,
        label=f"{interval.value:.1f} of {top:g}",
        value=value,
        whisker=whisker if interval.known else "",
    )


def dumbbell(base: Interval, tuned: Interval, top: float = 100.0) -> Markup:
    """From base to tuned on a line from 0 to `top`; a faint band is the tuned interval."""
    start, end, low, high = (_share(number, top) for number in (base.value, tuned.value, tuned.low, tuned.high))
    band = Markup('<line class="band" x1="{}" x2="{}" y1="10" y2="10"/>').format(low, high)
    return Markup(
        '<svg class="dumbbell" width="100%" height="20" role="img" aria-label="{label}">'
        '<line class="axis" x1="0" x2="100%" y1="10" y2="10"/>{band}'
        '<line class="path" x1="{start}" x2="{end}" y1="10" y2="10"/>'
        '<circle class="base" cx="{start}" cy="10" r="4.5"/><circle class="tuned" cx="{end}" cy="10" r="5"/></svg>'
    ).format(
        label=f"from {base.value:.1f} to {tuned.value:.1f}", start=start, end=end, band=band if tuned.known else ""
    )


def curve(
    points: Sequence[tuple[int, float]],
    name: str,
    *,
    marked: int | None = None,
    dots: bool = False,
    bounds: tuple[float, float] = (0.0, math.inf),
) -> Markup:
    """A line over the steps; `marked` is a step to highlight, `bounds` what the values can be."""
    shown = thin(points)
    ticks = axis([value for _, value in shown], *bounds)
    steps = [step for step, _ in shown]
    first, last = (min(steps), max(steps)) if len(set(steps)) > 1 else (steps[0] - 0.5, steps[0] + 0.5)
    left = max(text_width(tick_text(tick)) for tick in ticks) + 8

    def position(step: float, value: float) -> tuple[float, float]:
        across = (step - first) / (last - first) * (WIDTH - left - RIGHT)
        return left + across, TOP + (ticks[-1] - value) / (ticks[-1] - ticks[0]) * (HEIGHT - TOP - BOTTOM)

    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in (position(*point) for point in shown))
    marks = [position(*point) for point in shown] if dots else []
    best = [position(step, value) for step, value in points if step == marked]
    lines = Markup("").join(_tick(left, position(first, tick)[1], tick) for tick in ticks)
    ends = sorted({round(first), round(last)}) if last - first > 1 else [round(steps[0])]
    labels = Markup("").join(_step(position(step, ticks[0])[0], step, ends) for step in ends)
    return Markup(
        '<svg class="curve" viewBox="0 0 {width} {height}" role="img" aria-label="{name}">{lines}{labels}'
        '<polyline class="line" points="{path}"/>{dots}{best}</svg>'
    ).format(
        width=WIDTH,
        height=HEIGHT,
        name=name,
        lines=lines,
        labels=labels,
        path=path,
        dots=Markup("").join(_dot(x, y, "dot", 2.5) for x, y in marks),
        best=Markup("").join(_dot(x, y, "best", 5) for x, y in best),
    )


def _dot(x: float, y: float, kind: str, radius: float) -> Markup:
    return Markup('<circle class="{}" cx="{:.1f}" cy="{:.1f}" r="{}"/>').format(kind, x, y, radius)


def _tick(left: float, y: float, value: float) -> Markup:
    """A horizontal line with its value beside it."""
    return Markup(
        '<line class="axis" x1="{:.1f}" x2="{}" y1="{:.1f}" y2="{:.1f}"/>'
        '<text x="{:.1f}" y="{:.1f}" text-anchor="end">{}</text>'
    ).format(left, WIDTH - RIGHT, y, y, left - 6, y + 4, tick_text(value))


def _step(x: float, step: float, ends: Sequence[float]) -> Markup:
    """A label under the first or the last step."""
    if len(ends) == 1:
        anchor, text = "middle", f"step {step:,.0f}"
    else:
        anchor = "start" if step == ends[0] else "end"
        text = f"{step:,.0f}" if step == ends[0] else f"step {step:,.0f}"
    return Markup('<text x="{:.1f}" y="{}" text-anchor="{}">{}</text>').format(x, HEIGHT - 12, anchor, text)


def thin(points: Sequence[tuple[int, float]], most: int = POINTS) -> list[tuple[float, float]]:
    """At most `most` points, by averaging neighbours."""
    size = -(-len(points) // most) or 1
    groups = [points[start : start + size] for start in range(0, len(points), size)]
    return [(sum(x for x, _ in group) / len(group), sum(y for _, y in group) / len(group)) for group in groups]
