"""Scores of several runs against their cost, with the Pareto front, as SVG."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from mllm_tailor.reporting.axes import axis, text_width, tick_text
from mllm_tailor.scoring.intervals import Interval

WIDTH, HEIGHT, LEFT, TOP, BOTTOM = 720, 420, 64, 24, 56  # the right margin follows the names
SIZE = 14  # of the text


@dataclass(frozen=True)
class Point:
    """One run: what it cost (any unit, lower is better) and what it scored (0 to 100)."""

    name: str
    cost: float
    score: Interval


def front(points: Sequence[Point], *, lower: bool = False) -> list[Point]:
    """The Pareto front in cost and score, cheapest first.

    `lower`: a lower score is a better one, as where errors are counted.
    """
    sign = -1 if lower else 1
    best: list[Point] = []
    for point in sorted(points, key=lambda point: (point.cost, -sign * point.score.value)):
        if not best or sign * point.score.value > sign * best[-1].score.value:
            best.append(point)
    return best


def scatter(points: Sequence[Point], cost_name: str, score_name: str, *, lower: bool = False) -> str:
    """An SVG file: a dot for each run with its 95 % interval, the front as a line."""
    costs = axis([0.0, *(point.cost for point in points)], 0.0)
    ends = [end for point in points for end in (point.score.low, point.score.high, point.score.value)]
    ticks = axis(ends, 0.0, 100.0 if max(ends) <= 100.0 else math.inf)
    right = max(text_width(point.name, SIZE) for point in points) + 16
    bottom = HEIGHT - BOTTOM

    def position(cost: float, score: float) -> tuple[float, float]:
        across = LEFT + cost / costs[-1] * (WIDTH - LEFT - right)
        return across, TOP + (ticks[-1] - score) / (ticks[-1] - ticks[0]) * (bottom - TOP)

    best = front(points, lower=lower)
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in (position(point.cost, point.score.value) for point in best))
    marks = [_mark(point, position, on_front=point in best) for point in points]
    labels = [_text(LEFT - 10, position(0, value)[1] + 4, tick_text(value), "end") for value in ticks]
    labels += [_text(position(cost, 0)[0], bottom + 20, tick_text(cost), "middle") for cost in costs]
    labels += [_text(LEFT, HEIGHT - 10, f"across: {cost_name} · up: {score_name} · thin lines: 95 % intervals")]
    return str(
        Markup(
            '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {w} {h}" font-family="Georgia, serif" font-size="14">'
            '<rect width="{w}" height="{h}" fill="#fcfbf7"/>'
            '<path d="M{l},{t}V{b}H{r}" fill="none" stroke="#b9b4a8"/>'
            '<polyline points="{line}" fill="none" stroke="#0c6b4f" stroke-dasharray="4 4"/>{marks}{labels}</svg>\n'
        ).format(
            w=WIDTH,
            h=HEIGHT,
            l=LEFT,
            t=TOP,
            b=bottom,
            r=WIDTH - right,
            line=line,
            marks=Markup("").join(marks),
            labels=Markup("").join(labels),
        )
    )


def _mark(point: Point, position: Callable[[float, float], tuple[float, float]], *, on_front: bool) -> Markup:
    x, y = position(point.cost, point.score.value)
    _, lowest = position(point.cost, point.score.low)
    _, highest = position(point.cost, point.score.high)
    colour = "#0c6b4f" if on_front else "#8a8f88"
    return Markup(
        '<line x1="{x:.1f}" x2="{x:.1f}" y1="{a:.1f}" y2="{b:.1f}" stroke="{c}"/>'
        '<circle cx="{x:.1f}" cy="{y:.1f}" r="5" fill="{c}"/>'
    ).format(x=x, y=y, a=lowest, b=highest, c=colour) + _text(x + 9, y + 5, point.name)


def _text(x: float, y: float, words: str, anchor: str = "start") -> Markup:
    return Markup('<text x="{:.1f}" y="{:.1f}" text-anchor="{}" fill="#1d2a26">{}</text>').format(x, y, anchor, words)
