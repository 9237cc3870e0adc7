"""The report's part on confidence: which values need no eye, and how far the stated confidences can be believed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from mllm_tailor.reporting.report_data import ConfidenceData
from mllm_tailor.reporting.sentences import SMALL_COUNT
from mllm_tailor.scoring.accept import Promise
from mllm_tailor.scoring.reliability import AcceptedCount, Reliability

SIZE, LEFT, BOTTOM, EDGE = 240, 40, 30, 10  # user units of a square chart and its margins
PARTS = {"all": "all values", "seen": "groups also in training", "unseen": "groups never seen in training"}
TICKS = (0.0, 0.25, 0.5, 0.75, 1.0)


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
    limit, certain = _percent(1 - promise.right), _percent(promise.certainty)
    if promise.threshold is None or part.accepted is None:
        yield (
            f"Every value needs an eye: that at most {limit} of some values are wrong could not be shown with "
            f"{certain} certainty ({promise.reason})."
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
    return _chart(marks, "confidence", "right", "reliability: share of right values by confidence", TICKS)


def risk_curve(part: Reliability, promise: Promise | None) -> Markup:
    """Share of wrong values among the most confident ones, against how many these are."""
    top = max(0.1, max(risk for _, risk in part.risk))
    points = " ".join("{:.1f},{:.1f}".format(*_position(across, risk / top)) for across, risk in part.risk)
    marks = [Markup('<polyline class="line" points="{}"/>').format(points)]
    if promise is not None:
        level = min(1.0, (1 - promise.right) / top)
        marks.append(_line("diagonal", (0.0, level), (1.0, level)))
    ticks = tuple(tick * top for tick in TICKS)
    return _chart(marks, "coverage", "wrong", "share of wrong values by coverage", ticks)


def _position(across: float, up: float) -> tuple[float, float]:
    width, height = SIZE - LEFT - EDGE, SIZE - BOTTOM - EDGE
    return LEFT + across * width, EDGE + (1 - up) * height


def _line(kind: str, start: tuple[float, float], end: tuple[float, float]) -> Markup:
    (x1, y1), (x2, y2) = _position(*start), _position(*end)
    return Markup('<line class="{}" x1="{:.1f}" y1="{:.1f}" x2="{:.1f}" y2="{:.1f}"/>').format(kind, x1, y1, x2, y2)


def _dot(across: float, up: float, label: str) -> Markup:
    x, y = _position(across, up)
    return Markup('<circle class="dot" cx="{:.1f}" cy="{:.1f}" r="4"><title>{}</title></circle>').format(x, y, label)


def _chart(marks: Sequence[Markup], across: str, up: str, name: str, ticks: Sequence[float]) -> Markup:
    labels = [
        Markup('<text x="{}" y="{:.1f}" text-anchor="end">{:.0f}\u00a0%</text>').format(
            LEFT - 4, _position(0, index / (len(ticks) - 1))[1] + 4, 100 * tick
        )
        for index, tick in enumerate(ticks)
    ]
    for tick in TICKS[::2]:
        x, y = _position(tick, 0.0)
        anchor = "end" if tick == 1 else "middle"
        labels.append(
            Markup('<text x="{:.1f}" y="{:.1f}" text-anchor="{}">{:.0f}\u00a0%</text>').format(
                x, y + 14, anchor, 100 * tick
            )
        )
    frame = [_line("axis", (0, 0), (1, 0)), _line("axis", (0, 0), (0, 1))]
    captions = Markup('<text x="{}" y="{}" text-anchor="middle">{}</text><text x="{}" y="{}">{}</text>').format(
        (LEFT + SIZE) // 2, SIZE - 3, across, LEFT + 4, EDGE + 8, up
    )
    return Markup('<svg class="curve" viewBox="0 0 {0} {0}" role="img" aria-label="{1}">{2}{3}{4}{5}</svg>').format(
        SIZE, name, *(Markup("").join(part) for part in (frame, labels, marks)), captions
    )
