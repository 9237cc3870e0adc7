"""LLaVA and ShareGPT rows: `conversations` of `{"from", "value"}`, with `image`, `images` or `video` beside them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from mllm_tailor.core.errors import DataError
from mllm_tailor.core.sample import Sample
from mllm_tailor.data.conversation import Said, conversation_samples
from mllm_tailor.data.jsonl import Row, kind_of
from mllm_tailor.data.layouts.base import row_layout
from mllm_tailor.data.layouts.chat import beside

ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}


def samples_of(row: Row, roots: tuple[Path, ...]) -> Iterator[Sample]:
    """The samples of one row.

    Raises:
        DataError: naming the row.
    """
    turns = row.values.get("conversations")
    if not isinstance(turns, list):
        raise DataError(f"{row.source}: `conversations` should be a list, found {kind_of(turns)} — mend this row")
    said = []
    for number, turn in enumerate(turns, 1):
        role = ROLES.get(str(turn.get("from", turn.get("role")))) if isinstance(turn, dict) else None
        text = turn.get("value", turn.get("content")) if isinstance(turn, dict) else None
        if role is None or not isinstance(text, str):
            raise DataError(f"{row.source}: turn {number} lacks `from` ({', '.join(ROLES)}) or a text `value` — mend")
        said.append(Said(role, text))  # type: ignore[arg-type]
    if isinstance(row.values.get("system"), str):
        said.insert(0, Said("system", row.values["system"]))
    shown = beside(row, roots)
    yield from conversation_samples(said, shown, row)


LAYOUT = row_layout(lambda first: isinstance(first.get("conversations"), list), samples_of)
