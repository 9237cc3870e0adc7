"""Small charts as inline SVG. Bars use percent coordinates, so they fill any width without scaling their lines."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from mllm_tailor.scoring.intervals import Interval

WIDTH, HEIGHT = 360, 190  # user units of a curve; about the pixels of a phone, so that its text keeps its size
LEFT, RIGHT, TOP, BOTTOM = 40, 12, 12, 26  # margins around the plot
POINTS = 240  # a curve of more points is thinned by averaging


def _share(percent: float) -> str:
    return f"{min(100.0, max(0.0, percent)):.2f}%"


def bar(interval: Interval, kind: str) -> Markup:
    """A horizontal bar from 0 to 100 with its 95 % interval as a whisker; `kind` is a CSS class."""
    low, value, high = (_share(number) for number in (interval.low, interval.value, interval.high))
    return Markup(
        '<svg class="bar {kind}" width="100%" height="20" role="img" aria-label="{label}">'
        '<rect class="track" width="100%" height="20"/><rect class="fill" width="{value}" height="20"/>'
        '<line class="halo" x1="{low}" x2="{high}" y1="10" y2="10"/>'
        '<line class="whisker" x1="{low}" x2="{high}" y1="10" y2="10"/>'
        '<line class="whisker" x1="{low}" x2="{low}" y1="6" y2="14"/>'
        '<line class="whisker" x1="{high}" x2="{high}" y1="6" y2="14"/></svg>'
    ).format(kind=kind, label=f"{interval.value:.1f} of 100", value=value, low=low, high=high)


def dumbbell(base: Interval, tuned: Interval) -> Markup:
    """From base to tuned on a line from 0 to 100; a faint band is the tuned interval."""
    start, end, low, high = (_share(number) for number in (base.value, tuned.value, tuned.low, tuned.high))
    return Markup(
        '<svg class="dumbbell" width="100%" height="20" role="img" aria-label="{label}">'
        '<line class="axis" x1="0" x2="100%" y1="10" y2="10"/>'
        '<line class="band" x1="{low}" x2="{high}" y1="10" y2="10"/>'
        '<line class="path" x1="{start}" x2="{end}" y1="10" y2="10"/>'
        '<circle class="base" cx="{start}" cy="10" r="4.5"/><circle class="tuned" cx="{end}" cy="10" r="5"/></svg>'
    ).format(label=f"from {base.value:.1f} to {tuned.value:.1f}", start=start, end=end, low=low, high=high)


def curve(points: Sequence[tuple[int, float]], name: str, marked: int | None = None, dots: bool = False) -> Markup:
    """A line over the steps with labelled axis ends; `marked` is a step to highlight."""
    shown = thin(points)
    (first, last), (low, high) = (nice_range([point[axis] for point in shown]) for axis in (0, 1))
    if low > 0 and low < 0.4 * high:
        low = 0.0

    def position(step: float, value: float) -> tuple[float, float]:
        across = (step - first) / (last - first) * (WIDTH - LEFT - RIGHT)
        return LEFT + across, TOP + (high - value) / (high - low) * (HEIGHT - TOP - BOTTOM)

    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in (position(*point) for point in shown))
    marks = [position(*point) for point in shown] if dots else []
    best = [position(step, value) for step, value in points if step == marked]
    return Markup(
        '<svg class="curve" viewBox="0 0 {width} {height}" role="img" aria-label="{name}">{grid}'
        '<polyline class="line" points="{path}"/>{dots}{best}</svg>'
    ).format(
        width=WIDTH,
        height=HEIGHT,
        name=name,
        grid=_grid(low, high, first, last),
        path=path,
        dots=Markup("").join(_dot(x, y, "dot", 2.5) for x, y in marks),
        best=Markup("").join(_dot(x, y, "best", 5) for x, y in best),
    )


def _dot(x: float, y: float, kind: str, radius: float) -> Markup:
    return Markup('<circle class="{}" cx="{:.1f}" cy="{:.1f}" r="{}"/>').format(kind, x, y, radius)


def _grid(low: float, high: float, first: float, last: float) -> Markup:
    """Three horizontal lines with their values, and the first and last step."""
    lines = Markup("")
    for share in (0.0, 0.5, 1.0):
        y = TOP + (1 - share) * (HEIGHT - TOP - BOTTOM)
        lines += Markup(
            '<line class="axis" x1="{}" x2="{}" y1="{:.1f}" y2="{:.1f}"/>'
            '<text x="{}" y="{:.1f}" text-anchor="end">{}</text>'
        ).format(LEFT, WIDTH - RIGHT, y, y, LEFT - 6, y + 4, _figure(low + share * (high - low), high - low))
    for x, step, anchor in ((LEFT, first, "start"), (WIDTH - RIGHT, last, "end")):
        word = "step " if anchor == "end" else ""
        lines += Markup('<text x="{}" y="{}" text-anchor="{}">{}</text>').format(
            x, HEIGHT - 6, anchor, f"{word}{step:.0f}"
        )
    return lines


def _figure(value: float, span: float) -> str:
    return f"{value:.{0 if span >= 20 else 1 if span >= 2 else 2}f}"


def nice_range(values: Sequence[float]) -> tuple[float, float]:
    """Minimum and maximum, never equal."""
    low, high = min(values), max(values)
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def thin(points: Sequence[tuple[int, float]], most: int = POINTS) -> list[tuple[float, float]]:
    """At most `most` points, by averaging neighbours."""
    size = -(-len(points) // most) or 1
    groups = [points[start : start + size] for start in range(0, len(points), size)]
    return [(sum(x for x, _ in group) / len(group), sum(y for _, y in group) / len(group)) for group in groups]
