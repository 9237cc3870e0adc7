"""LLaVA and ShareGPT rows: `conversations` of `{"from", "value"}`, with `image`, `images` or `video` beside them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mllm_tailor.core.sample import Role, Sample
from mllm_tailor.data.conversation import Said, parts_of
from mllm_tailor.data.issues import DataIssue
from mllm_tailor.data.jsonl import Row
from mllm_tailor.data.keys import REFUSED_IN_MESSAGE, KeyReader
from mllm_tailor.data.layouts.base import row_layout
from mllm_tailor.data.layouts.chat import FIX_MESSAGE, learned_by, row_samples, with_chosen

ROLES: Mapping[str, Role] = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
}


def samples_of(row: Row, roots: tuple[Path, ...]) -> Iterator[Sample | DataIssue]:
    """The samples of one row.

    Raises:
        DataError: naming the row.
    """
    reader = KeyReader(row.values, row.source)
    turns = with_chosen(reader.get("conversations"), "conversations", reader)
    warnings: list[DataIssue] = []
    said = [_turn(turn, f"turn {number}", row.source, warnings) for number, turn in enumerate(turns, 1)]
    yield from row_samples(said, turns, reader, row, roots)
    yield from warnings


def _turn(turn: Any, where: str, source: str, warnings: list[DataIssue]) -> Said:
    reader = KeyReader(turn if isinstance(turn, Mapping) else {}, source, where)
    role = ROLES.get(str(reader.get("from", reader.get("role"))))
    text = reader.get("value", reader.get("content"))
    if role is None or not isinstance(text, str):
        raise reader.error(f"lacks `from` ({', '.join(ROLES)}) or a text `value`", "correct this row")
    learned = learned_by(reader)
    reader.refuse(REFUSED_IN_MESSAGE)
    warnings += reader.warnings(FIX_MESSAGE)
    return Said(role, tuple(parts_of(text)), learned is not False)


LAYOUT = row_layout(lambda first: isinstance(first.get("conversations"), list), samples_of)
