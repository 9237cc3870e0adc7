"""Scores as terminal tables of at most 80 columns. Text from documents is never read as markup or terminal escapes."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping

from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.table import Table
from rich.text import Text

from mllm_tailor.scoring.compare import Gain, Interval
from mllm_tailor.scoring.confusion import NO_CLASS, Confusion
from mllm_tailor.scoring.forgetting import Forgetting
from mllm_tailor.scoring.scores import MetricScore, Scores

# Controls, format characters (which include those that change the reading direction), surrogates and unassigned.
_UNPRINTABLE = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}

WIDTH = 80  # columns of a terminal
NAME_WIDTH = 20  # columns kept for the first column of a wide table
GAP = 2  # columns between two columns
MOST_CONFUSED = 15  # pairs listed where the matrix would be too wide


def printable(text: str) -> str:
    """The text without control characters; line breaks and tabs become spaces, the others a replacement mark.

    >>> printable("total\\x1b[31m\\n9.00")
    'total�[31m 9.00'
    """
    return "".join(
        " " if character in "\n\r\t" else "�" if unicodedata.category(character) in _UNPRINTABLE else character
        for character in text
    )


def plain(text: str) -> Text:
    """Text for rich that is shown literally: no markup, no emoji codes, no terminal escapes."""
    return Text(printable(text))


def empty_table(title: str, *columns: str) -> Table:
    """A table without rows in the common style: first column left-aligned, the others right-aligned."""
    table = Table(title=plain(title), title_justify="left", title_style="bold", box=SIMPLE_HEAD, pad_edge=False)
    for index, column in enumerate(columns):
        table.add_column(plain(column), justify="right" if index else "left")
    return table


def gain_table(gains: Mapping[str, Gain], title: str, first: str = "base", second: str = "tuned") -> Table:
    """One row for each metric (or field: pass `gain.by_field`): both values, the difference and its interval."""
    table = empty_table(title, "", "n", first, second, "change", "95 % interval", "fixed", "new errors")
    for name, gain in gains.items():
        if not gain.count:
            continue
        style = "green" if gain.improved else "red" if gain.difference.clear else ""
        table.add_row(
            plain(name.replace("_", " ")),
            str(gain.count),
            f"{gain.base.value:.1f}",
            f"{gain.tuned.value:.1f}",
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
    return Group(*(_score_block(systems, block, title) for block in _blocks(metrics)))


def _score_block(systems: Mapping[str, Scores], metrics: list[str], title: str) -> Table:
    table = empty_table(title, "", *(metric.replace("_", " ") for metric in metrics))
    for name, scores in systems.items():
        table.add_row(plain(name.replace("_", " ")), *(_cell(scores.metrics.get(metric)) for metric in metrics))
    return table


def _blocks(metrics: list[str]) -> Iterator[list[str]]:
    """Consecutive metrics whose columns fit beside the first one; a header wraps at its spaces."""
    block: list[str] = []
    used = NAME_WIDTH
    for metric in metrics:
        width = max(5, *map(len, metric.split("_"))) + GAP
        if block and used + width > WIDTH:
            yield block
            block, used = [], NAME_WIDTH
        block.append(metric)
        used += width
    if block:
        yield block


def _cell(score: MetricScore | None) -> str:
    return f"{score.value:.1f}" if score is not None and score.count else "–"


def confusion_table(confusion: Confusion) -> Table:
    """The confusion matrix with F1 of each class, or the most confused pairs where the matrix is wider than a page."""
    longest = max(map(len, confusion.classes)) + 3
    cell = max(2, len(str(confusion.counts.max()))) + GAP
    if longest + cell * len(confusion.classes) + len(NO_CLASS) + 2 * GAP + 4 > WIDTH:
        return _most_confused(confusion)
    table = empty_table("Confusion matrix (row: true class, column: predicted class)", "")
    no_class = [NO_CLASS] if confusion.counts[:, -1].any() else []
    for column in (*map(str, range(1, len(confusion.classes) + 1)), *no_class, "F1"):
        table.add_column(column, justify="right")
    rows = zip(confusion.classes, confusion.counts.tolist(), confusion.by_class, strict=True)
    for number, (name, counts, value) in enumerate(rows, 1):
        shown = [str(count or "·") for count in counts[: len(counts) - 1 + len(no_class)]]
        table.add_row(plain(f"{number} {name}"), *shown, f"{value:.0f}")
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
    table = empty_table(title, "true class", "predicted class", "samples")
    for (true, predicted), count in pairs.most_common(MOST_CONFUSED):
        table.add_row(plain(true), plain(predicted), str(count))
    return table


def forgetting_tables(forgetting: Forgetting) -> list[Table]:
    """Scores of every held-out set after every stage; then what its own stage and the later stages changed."""
    values = empty_table("Scores after each stage", "held-out set", "after", "n", "score", "95 % interval")
    for set_scores in forgetting.sets:
        name = f"{set_scores.name} ({set_scores.metric.replace('_', ' ')})"
        for state, state_name in enumerate(forgetting.states):
            value, scores = set_scores.value(state), set_scores.scores[state]
            if value is not None and scores is not None:
                count = str(scores[set_scores.metric].count)
                values.add_row(plain(name), plain(state_name), count, f"{value.value:.1f}", _range(value))
            name = ""
    changes = empty_table("Gain and forgetting", "", "own stage", "later stages", "total")
    for change in forgetting.changes():
        name = f"{change.set_scores.name} ({change.set_scores.metric.replace('_', ' ')})"
        changes.add_row(plain(name), *map(_change, (change.gained, change.since, change.total)))
    return [values, changes]


def _range(interval: Interval) -> str:
    return f"{interval.low:.1f} to {interval.high:.1f}"


def _signed_range(interval: Interval) -> str:
    return f"{interval.low:+.1f} to {interval.high:+.1f}"


def _change(gain: Gain | None) -> Text:
    if gain is None:
        return Text("–")
    style = "green" if gain.improved else "red" if gain.difference.clear else ""
    return Text(f"{gain.difference.value:+.1f} ({_signed_range(gain.difference)})", style)
