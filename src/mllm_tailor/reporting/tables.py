"""Scores as terminal tables of at most 80 columns. Text from documents is never read as markup or terminal escapes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping

from rich.console import Group
from rich.text import Text

from mllm_tailor.core.terminal import Table
from mllm_tailor.reporting.sentences import ratios_text, score_pair
from mllm_tailor.scoring.compare import Gain
from mllm_tailor.scoring.confusion import NO_CLASS, Confusion
from mllm_tailor.scoring.forgetting import Forgetting
from mllm_tailor.scoring.intervals import Interval
from mllm_tailor.scoring.scores import MetricScore, Scores

WIDTH = 80  # columns of a terminal
GAP = 2  # columns between two columns
MOST_CONFUSED = 15  # pairs listed where the matrix would be too wide


def gain_table(gains: Mapping[str, Gain], title: str, first: str = "base", second: str = "tuned") -> Table:
    """One row for each metric (or field: pass `gain.by_field`): both values, the difference and its interval."""
    table = Table(title, "", "n", first, second, "change", "95 % interval", "fixed", "new errors", whole=(0, 5))
    for name, gain in gains.items():
        if not gain.count:
            continue
        style = "green" if gain.improved else "red" if gain.worsened else ""
        table.add_row(
            name.replace("_", " "),
            str(gain.count),
            *score_pair(gain),
            Text(f"{gain.difference.value:+.1f}", style),
            _signed_range(gain.difference),
            str(gain.fixed),
            str(gain.new_errors),
        )
    return table


def score_table(systems: Mapping[str, Scores], title: str) -> Group:
    """One row for each system, one column for each metric; a dash where nothing was scored.

    Metrics that do not fit the width continue in a second table below.
    """
    metrics = list(dict.fromkeys(metric for scores in systems.values() for metric in scores.metrics))
    return Group(
        *(_score_block(systems, block, title) for block in _blocks(metrics, max(map(len, systems), default=0)))
    )


def _score_block(systems: Mapping[str, Scores], metrics: list[str], title: str) -> Table:
    table = Table(title, "", *(metric.replace("_", " ") for metric in metrics))
    for name, scores in systems.items():
        table.add_row(name.replace("_", " "), *(_cell(scores.metrics.get(metric)) for metric in metrics))
    return table


def _blocks(metrics: list[str], first: int) -> Iterator[list[str]]:
    """Consecutive metrics whose columns fit beside a first one of `first` characters; a header wraps at its spaces."""
    block: list[str] = []
    used = first
    for metric in metrics:
        width = max(6, *map(len, metric.split("_"))) + GAP
        if block and used + width > WIDTH:
            yield block
            block, used = [], first
        block.append(metric)
        used += width
    if block:
        yield block


def _cell(score: MetricScore | None) -> str:
    return "–" if score is None else ratios_text(score.samples)


def confusion_table(confusion: Confusion) -> Table:
    """The confusion matrix with F1 of each class, or the most confused pairs where the matrix is wider than a page."""
    longest = max(map(len, confusion.classes)) + 3
    cell = max(2, len(str(confusion.counts.max()))) + GAP
    if longest + cell * len(confusion.classes) + len(NO_CLASS) + 2 * GAP + 4 > WIDTH:
        return _most_confused(confusion)
    no_class = [NO_CLASS] if confusion.counts[:, -1].any() else []
    columns = ("", *map(str, range(1, len(confusion.classes) + 1)), *no_class, "F1")
    table = Table("Confusion matrix (row: true class, column: predicted class)", *columns)
    rows = zip(confusion.classes, confusion.counts.tolist(), confusion.by_class, strict=True)
    for number, (name, counts, value) in enumerate(rows, 1):
        shown = [str(count or "·") for count in counts[: len(counts) - 1 + len(no_class)]]
        table.add_row(f"{number} {name}", *shown, f"{value:.0f}")
    return table


def _most_confused(confusion: Confusion) -> Table:
    names = (*confusion.classes, NO_CLASS)
    pairs = Counter(
        {
            (names[true], names[predicted]): count
            for true, counts in enumerate(confusion.counts.tolist())
            for predicted, count in enumerate(counts)
            if count and true != predicted
        }
    )
    title = f"Most frequent confusions ({len(pairs)} pairs of classes in all; the report has the matrix)"
    table = Table(title, "true class", "predicted class", "samples", whole=(0, 1))
    for (true, predicted), count in pairs.most_common(MOST_CONFUSED):
        table.add_row(true, predicted, str(count))
    return table


def forgetting_tables(forgetting: Forgetting) -> list[Table]:
    """Scores of every held-out set after every stage; then what its own stage and the later stages changed."""
    values = Table("Scores after each stage", "held-out set", "after", "n", "score", "95 % interval", whole=(0, 1))
    for set_scores in forgetting.sets:
        name = f"{set_scores.name} ({set_scores.metric.replace('_', ' ')})"
        for state, state_name in enumerate(forgetting.states):
            value, scores = set_scores.value(state), set_scores.scores[state]
            if value is not None and scores is not None:
                count = str(scores[set_scores.metric].count)
                values.add_row(name, state_name, count, f"{value.value:.1f}", _range(value))
            name = ""
    changes = Table("Gain and forgetting", "", "own stage", "later stages", "total")
    for change in forgetting.changes():
        name = f"{change.set_scores.name} ({change.set_scores.metric.replace('_', ' ')})"
        changes.add_row(name, *map(_change, (change.gained, change.since, change.total)))
    return [values, changes]


def _range(interval: Interval) -> str:
    if not interval.known:
        return "too few to say"
    return f"{interval.low:.1f} to {interval.high:.1f}"


def _signed_range(interval: Interval) -> str:
    if not interval.known:
        return "too few to say"
    return f"{interval.low:+.1f} to {interval.high:+.1f}"


def _change(gain: Gain | None) -> Text:
    if gain is None:
        return Text("–")
    style = "green" if gain.improved else "red" if gain.worsened else ""
    return Text(f"{gain.difference.value:+.1f} ({_signed_range(gain.difference)})", style)
