"""The report's part on confidence: which values need no eye, and how far the stated confidences can be believed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from mllm_tailor.reporting.axes import axis, tick_text
from mllm_tailor.reporting.report_data import ConfidenceData
from mllm_tailor.reporting.sentences import SMALL_COUNT
from mllm_tailor.scoring.accept import Promise
from mllm_tailor.scoring.reliability import AcceptedCount, Reliability

WIDTH, HEIGHT = 360, 240  # user units; as wide as the training curves, so that texts are of one size
LEFT, RIGHT, TOP, BOTTOM = 44, 12, 12, 30  # margins around the plot
PARTS = {"all": "all values", "seen": "groups also in training", "unseen": "groups never seen in training"}
SHARES = (0.0, 25.0, 50.0, 75.0, 100.0)  # percent


@dataclass(frozen=True)
class PartRow:
    """A row of the table."""

    name: str
    part: Reliability
    right: str
    accepted: str
    wrong: str


def share(count: int, total: int) -> str:
    """A share with its count; of fewer than ten, the count alone.

    >>> share(62, 100), share(7, 9)
    ('62\\xa0% (62 of 100)', '7 of 9')
    """
    counts = f"{count:,} of {total:,}"
    return counts if total < SMALL_COUNT else f"{_percent(count / total)} ({counts})"


def _percent(part: float) -> str:
    """Whole percent; never 0 or 100 where it is neither, and one decimal near the ends."""
    percent = 100 * part
    digits = 1 if 0 < percent < 10 or 90 < percent < 100 else 0
    return f"{percent:.{digits}f}\u00a0%"


def sentences(data: ConfidenceData) -> list[str]:
    """What the figures mean."""
    if "all" not in data.parts:
        return [f"The confidences of this run are not calibrated: {data.reason}."] if data.reason else []
    whole = data.parts["all"]
    lines = [*_promise(data.promise, whole)] if data.promise is not None else []
    if data.promise is not None and data.promise.threshold is not None:
        lines += [_group(name, data.parts[name]) for name in ("seen", "unseen") if name in data.parts]
    ranking = ""
    if whole.auroc is not None:
        ranking = f" A right value is ranked above a wrong one in {_percent(whole.auroc)} of pairs."
    chance = f"{whole.ece_of_chance:.3f} would be chance alone with {whole.count:,} values"
    lines.append(f"Confidence and share of right values differ by {whole.ece:.3f} on average ({chance}).{ranking}")
    return lines


def _promise(promise: Promise, part: Reliability) -> Iterator[str]:
    limit, certain = (f"{100 * part:.4g}\u00a0%" for part in (1 - promise.right, promise.certainty))
    if promise.threshold is None or part.accepted is None:
        yield (
            f"Every value needs an eye: that at most {limit} of some values are wrong could not be shown with "
            f"a certainty of {certain} ({promise.reason})."
        )
        return
    accepted = part.accepted
    yield (
        f"{share(accepted.count, part.count)} of the values need no eye, at most {limit} of them wrong ({certain} "
        f"certain; confidence of at least {promise.threshold:.3f})."
    )
    if accepted.count:
        yield f"Counted on the scored samples, {_wrong(accepted)} of these are wrong. {_verdict(promise, accepted)}"


def _wrong(accepted: AcceptedCount) -> str:
    low, high = accepted.interval
    interval = f"95\u00a0% interval {_percent(low)} to {_percent(high)}"
    return (
        f"{share(accepted.wrong, accepted.count)} ({interval})"
        if accepted.count >= SMALL_COUNT
        else share(accepted.wrong, accepted.count)
    )


def _verdict(promise: Promise, accepted: AcceptedCount) -> str:
    allowed = 1 - promise.right
    if accepted.wrong <= allowed * accepted.count:
        return "The promise is kept."
    if accepted.interval[0] <= allowed:
        return "That is more than promised, but within the interval of so few samples."
    return "That is more than promised: do not rely on it."


def _group(name: str, part: Reliability) -> str:
    accepted = part.accepted
    if accepted is None:
        return ""
    wrong = f", of which {share(accepted.wrong, accepted.count)} are wrong" if accepted.count else ""
    return f"In {PARTS[name]}: {share(accepted.count, part.count)} need no eye{wrong}."


def rows(data: ConfidenceData) -> list[PartRow]:
    """The table: all values, seen and unseen groups, each field."""
    table = []
    for name, part in data.parts.items():
        accepted = part.accepted
        table.append(
            PartRow(
                PARTS.get(name, name.removeprefix("field ")),
                part,
                share(part.right, part.count),
                "–" if accepted is None else share(accepted.count, part.count),
                "–" if accepted is None or not accepted.count else share(accepted.wrong, accepted.count),
            )
        )
    return table


def reliability_diagram(part: Reliability) -> Markup:
    """Share of right values against stated confidence, with 95 % intervals; the diagonal is perfect."""
    marks = [_line("diagonal", (0.0, 0.0), (1.0, 1.0))]
    for entry in part.bins:
        low, high = entry.interval
        marks.append(_line("whisker", (entry.confidence, low), (entry.confidence, high)))
        marks.append(_dot(entry.confidence, entry.right / entry.count, f"{entry.right} of {entry.count} right"))
    return _chart(marks, "confidence", "reliability: share of right values by confidence", SHARES)


def risk_curve(part: Reliability, promise: Promise | None) -> Markup:
    """Share of wrong values among the most confident ones, against how many these are."""
    ticks = axis([0.0, max(10.0, *(100 * risk for _, risk in part.risk))], 0.0, 100.0)
    top = ticks[-1] / 100
    points = " ".join("{:.1f},{:.1f}".format(*_position(across, risk / top)) for across, risk in part.risk)
    marks = [Markup('<polyline class="line" points="{}"/>').format(points)]
    if promise is not None:
        level = min(1.0, (1 - promise.right) / top)
        marks.append(_line("diagonal", (0.0, level), (1.0, level)))
    return _chart(marks, "coverage", "share of wrong values by coverage", ticks)


def _position(across: float, up: float) -> tuple[float, float]:
    return LEFT + across * (WIDTH - LEFT - RIGHT), TOP + (1 - up) * (HEIGHT - TOP - BOTTOM)


def _line(kind: str, start: tuple[float, float], end: tuple[float, float]) -> Markup:
    (x1, y1), (x2, y2) = _position(*start), _position(*end)
    return Markup('<line class="{}" x1="{:.1f}" y1="{:.1f}" x2="{:.1f}" y2="{:.1f}"/>').format(kind, x1, y1, x2, y2)


def _dot(across: float, up: float, label: str) -> Markup:
    x, y = _position(across, up)
    return Markup('<circle class="dot" cx="{:.1f}" cy="{:.1f}" r="3.5"><title>{}</title></circle>').format(x, y, label)


def _chart(marks: Sequence[Markup], across: str, name: str, ticks: Sequence[float]) -> Markup:
    """Marks over a grid; `ticks` of the vertical axis are percentages from 0."""
    grid = []
    for tick in ticks:
        height = tick / ticks[-1]
        x, y = _position(0.0, height)
        grid.append(_line("axis", (0.0, height), (1.0, height)))
        grid.append(_label(x - 6, y + 4, "end", f"{tick_text(tick)}\u00a0%"))
    for tick in SHARES:
        x, y = _position(tick / 100, 0.0)
        text = f"{across} 100\u00a0%" if tick == SHARES[-1] else f"{tick_text(tick)}\u00a0%"
        anchor = "end" if tick == SHARES[-1] else "start" if tick == 0 else "middle"
        if tick != SHARES[-2]:  # where the last label lies
            grid.append(_label(x, y + 18, anchor, text))
    return Markup('<svg class="curve" viewBox="0 0 {} {}" role="img" aria-label="{}">{}{}</svg>').format(
        WIDTH, HEIGHT, name, Markup("").join(grid), Markup("").join(marks)
    )


def _label(x: float, y: float, anchor: str, text: str) -> Markup:
    return Markup('<text x="{:.1f}" y="{:.1f}" text-anchor="{}">{}</text>').format(x, y, anchor, text)
