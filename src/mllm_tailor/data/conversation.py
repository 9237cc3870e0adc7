"""Conversations into samples: one for each answer, so that every answer is learned exactly once."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from mllm_tailor.core.errors import DataError
from mllm_tailor.core.sample import Media, Sample, Turn
from mllm_tailor.data.columns import default_id, group_key, read_id
from mllm_tailor.data.jsonl import Row

MARKERS = {"<image>": "image", "<video>": "video", "<audio>": "audio"}
_MARKED = re.compile(rf"(?:(?:Image|Frame)-\d+: ?)?(?:{'|'.join(MARKERS)})\n?")  # InternVL numbers several pictures


@dataclass(frozen=True)
class Said:
    """One message: who, what, and the files shown with it."""

    role: Literal["system", "user", "assistant"]
    text: str
    media: tuple[Media, ...] = ()


def conversation_samples(said: Sequence[Said], shown: tuple[Media, ...], row: Row) -> Iterator[Sample]:
    """The samples of one row; `shown` are files named beside the conversation, to which markers in the texts refer.

    All samples of a conversation share a group, so that none of its turns is held out while another is trained on.

    Raises:
        DataError: when roles do not alternate or markers and files do not agree.
    """
    system = next((message.text for message in said if message.role == "system"), None)
    turns = [message for message in said if message.role != "system"]
    _check_order(turns, row.source)
    _check_markers(turns, shown, row.source)
    media = [*shown, *turns[0].media]
    identifier = read_id(row.values.get("id"), row.source) or default_id(tuple(media), row.source)
    several = len(turns) > 2
    split = row.values.get("split")
    extra = {name: value for name, value in row.values.items() if isinstance(value, (str, int, float)) and name != "id"}
    history: list[Turn] = []
    for question, answer in zip(turns[::2], [*turns[1::2], None], strict=False):
        media += question.media if history else ()
        prompt = strip_markers(question.text)
        yield Sample(
            id=f"{identifier}-{len(history) // 2 + 1}" if several else identifier,
            media=tuple(media),
            prompt=prompt,
            answer=answer.text if answer else None,
            history=tuple(history),
            system=system,
            group=group_key(row.values.get("group")) or (identifier if several else None),
            split=split if isinstance(split, str) else row.split,
            source=row.source,
            extra=extra,
        )
        if answer:
            history += [Turn("user", prompt), Turn("assistant", answer.text)]


def strip_markers(text: str) -> str:
    """The text without file markers: files go before the text, where every family's template puts them."""
    return _MARKED.sub("", text).strip()


def _check_order(turns: Sequence[Said], source: str) -> None:
    expected = ("user", "assistant")
    if not turns:
        raise DataError(f"{source}: the conversation is empty — add a question and an answer, or remove this row")
    for index, turn in enumerate(turns):
        if turn.role != expected[index % 2]:
            raise DataError(
                f"{source}: message {index + 1} is from the {turn.role} where the {expected[index % 2]} should speak"
                " — user and assistant take turns, the user first"
            )


def _check_markers(turns: Sequence[Said], shown: tuple[Media, ...], source: str) -> None:
    """Markers are optional, but where there are any, their number must be that of the files."""
    for marker, kind in MARKERS.items():
        marked = sum(turn.text.count(marker) for turn in turns if turn.role == "user")
        files = sum(item.kind == kind for item in (*shown, *(item for turn in turns for item in turn.media)))
        if marked and marked != files:
            raise DataError(f"{source}: {marked} {marker} markers but {files} {kind} files — make them agree")
