"""Alpaca's rows: `instruction`, `input` and `output`, with `history`, `system` and media beside them."""

from __future__ import annotations

from collections.abc import Iterator

from mllm_tailor.core.sample import Sample
from mllm_tailor.data.issues import DataIssue
from mllm_tailor.data.jsonl import Row
from mllm_tailor.data.layouts import query_response
from mllm_tailor.data.layouts.base import Roots, row_layout

_KEYS = ("instruction", "input", "output")


def samples_of(row: Row, roots: Roots) -> Iterator[Sample | DataIssue]:
    """The samples of the conversation that the row holds; `input` stands below the instruction.

    Raises:
        DataError: naming the row.
    """
    values = {name: value for name, value in row.values.items() if name not in _KEYS}
    asked = [text for name in ("instruction", "input") if (text := row.values.get(name)) not in (None, "")]
    query = "\n".join(asked) if all(isinstance(text, str) for text in asked) else asked
    turns = {"query": query, "response": row.values.get("output")}
    return query_response.samples_of(Row(row.source, values | turns, row.split), roots)


LAYOUT = row_layout(lambda first: {"instruction", "output"} <= set(first), samples_of)
