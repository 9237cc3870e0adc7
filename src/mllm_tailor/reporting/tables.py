"""Scores as terminal tables. Strings from documents are never read as markup or terminal escapes."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from mllm_tailor.scoring.compare import Gain, Interval
from mllm_tailor.scoring.confusion import UNREAD, Confusion
from mllm_tailor.scoring.forgetting import Progression
from mllm_tailor.scoring.scores import MetricScore, Scores

# Controls, format characters (which include those that turn the reading direction) and what stands for no character.
_UNPRINTABLE = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}


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
    """Text for rich that is shown as it is: no markup, no emoji codes, no terminal escapes."""
    return Text(printable(text))


def gain_table(gains: Mapping[str, Gain], title: str, first: str = "untuned", second: str = "tuned") -> Table:
    """One row a metric (or a field: pass `gain.by_field`): both values, the difference and its interval."""
    table = empty_table(title, "", first, second, "change", "95 % interval", "mended", "broken")
    for name, gain in gains.items():
        if not gain.count:
            continue
        style = "green" if gain.improved else "red" if gain.difference.clear else ""
        table.add_row(
            plain(name.replace("_", " ")),
            f"{gain.base.value:.1f}",
            f"{gain.tuned.value:.1f}",
            Text(f"{gain.difference.value:+.1f}", style),
            f"{gain.difference.low:+.1f} to {gain.difference.high:+.1f}",
            str(gain.fixed),
            str(gain.broken),
        )
    return table


def score_table(systems: Mapping[str, Scores], title: str) -> Table:
    """One row a system, one column a metric; a dash where there was nothing to compare."""
    metrics = list(dict.fromkeys(metric for scores in systems.values() for metric in scores.metrics))
    table = empty_table(title, "", *(metric.replace("_", " ") for metric in metrics))
    for name, scores in systems.items():
        table.add_row(plain(name.replace("_", " ")), *(_cell(scores.metrics.get(metric)) for metric in metrics))
    return table


def empty_table(title: str, *columns: str) -> Table:
    """The look of every table: the first column to the left, the others to the right."""
    table = Table(title=plain(title), title_justify="left", title_style="bold", box=SIMPLE_HEAD, pad_edge=False)
    for place, column in enumerate(columns):
        table.add_column(plain(column), justify="right" if place else "left")
    return table


def _cell(score: MetricScore | None) -> str:
    return f"{score.value:.1f}" if score is not None and score.count else "–"


def confusion_table(confusion: Confusion) -> Table:
    """A row a class, a column what it was named; a dot stands for none."""
    title = "What is taken for what (row: true, column: named by the tuned model)"
    table = Table(title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("")
    unread = [UNREAD] if confusion.counts[:, -1].any() else []
    for column in (*map(str, range(1, len(confusion.classes) + 1)), *unread, "F1"):
        table.add_column(column, justify="right")
    rows = zip(confusion.classes, confusion.counts.tolist(), confusion.by_class, strict=True)
    for place, (name, counts, value) in enumerate(rows, 1):
        shown = [str(count or "·") for count in counts[: len(counts) - 1 + len(unread)]]
        table.add_row(plain(f"{place} {name}"), *shown, f"{value:.0f}")
    return table


def progression_tables(found: Progression) -> list[Table]:
    """Scores by state and set; then, for each set, gained, changed since, and in all."""
    names = [f"{one.name} ({one.metric.replace('_', ' ')})" for one in found.sets]
    values = empty_table("Every held-out set, after each stage (95 % interval)", "", *names)
    for state, name in enumerate(found.states):
        values.add_row(plain(name), *(_value(one.value(state)) for one in found.sets))
    changes = empty_table("Gained and forgotten", "", "by its own stage", "by the stages since", "in all")
    for name, (_, *gains) in zip(names, found.changes(), strict=True):
        changes.add_row(plain(name), *map(_change, gains))
    return [values, changes]


def _value(found: Interval | None) -> str:
    return f"{found.value:.1f} ({found.low:.1f} to {found.high:.1f})" if found else "–"


def _change(found: Gain | None) -> Text:
    if found is None:
        return Text("–")
    style = "green" if found.improved else "red" if found.difference.clear else ""
    difference = found.difference
    return Text(f"{difference.value:+.1f} ({difference.low:+.1f} to {difference.high:+.1f})", style)
