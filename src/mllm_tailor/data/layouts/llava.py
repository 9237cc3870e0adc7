"""LLaVA and ShareGPT rows: `conversations` of `{"from", "value"}`, with `image`, `images` or `video` beside them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mllm_tailor.core.sample import Sample
from mllm_tailor.data.conversation import Said, parts_of
from mllm_tailor.data.dialogues import as_dialogue
from mllm_tailor.data.inline_files import with_markers
from mllm_tailor.data.issues import DataIssue
from mllm_tailor.data.jsonl import Row
from mllm_tailor.data.keys import REFUSED_IN_MESSAGE, KeyReader
from mllm_tailor.data.layouts.base import row_layout
from mllm_tailor.data.layouts.chat import FIX_MESSAGE, ROLES, learned_by, row_samples, with_chosen


def samples_of(row: Row, roots: tuple[Path, ...]) -> Iterator[Sample | DataIssue]:
    """The samples of one row.

    Raises:
        DataError: naming the row.
    """
    values = with_markers(as_dialogue(row.values), "conversations", "value")
    row = Row(row.source, with_markers(values, "conversations", "content"), row.split)
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


LAYOUT = row_layout(lambda first: isinstance(as_dialogue(first).get("conversations"), list), samples_of)
