"""ms-swift's rows: `query` and `response`, with `history` (pairs of question and answer), `system` and media beside."""

from __future__ import annotations

from collections.abc import Iterator

from mllm_tailor.core.errors import DataError
from mllm_tailor.core.sample import Sample
from mllm_tailor.data.issues import DataIssue
from mllm_tailor.data.jsonl import Row, kind_of
from mllm_tailor.data.layouts import chat
from mllm_tailor.data.layouts.base import Roots, row_layout
from mllm_tailor.data.options import listed

_TURNS = ("query", "response", "history", "system")


def samples_of(row: Row, roots: Roots) -> Iterator[Sample | DataIssue]:
    """The samples of the conversation that the row holds.

    Raises:
        DataError: naming the row.
    """
    values = {name: value for name, value in row.values.items() if name not in _TURNS}
    messages = [{"role": role, "content": text} for role, text in _turns(row)]
    if row.values.get("system"):
        messages.insert(0, {"role": "system", "content": row.values["system"]})
    return chat.samples_of(Row(row.source, values | {"messages": messages}, row.split), roots)


def _turns(row: Row) -> Iterator[tuple[str, str]]:
    history = row.values.get("history") or []
    history = listed(history) if isinstance(history, str) else history
    if not isinstance(history, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in history):
        raise DataError(f"{row.source}: `history` should be a list of [question, answer] — correct this row")
    pairs = [*history, [row.values.get("query"), row.values.get("response")]]
    for question, answer in pairs:
        for role, text in (("user", question), ("assistant", answer)):
            if text is None and role == "assistant":
                continue
            if not isinstance(text, str):
                raise DataError(f"{row.source}: a query or response is {kind_of(text)}, not text — correct this row")
            yield role, text


LAYOUT = row_layout(lambda first: {"query", "response"} <= set(first), samples_of)
