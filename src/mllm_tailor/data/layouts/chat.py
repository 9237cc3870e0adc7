"""Chat rows: `messages` with roles and contents, as OpenAI's fine-tuning files and their many relatives write them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mllm_tailor.core.errors import DataError
from mllm_tailor.core.sample import Media, MediaKind, Sample
from mllm_tailor.data.columns import read_media
from mllm_tailor.data.conversation import Said, conversation_samples
from mllm_tailor.data.jsonl import Row, kind_of
from mllm_tailor.data.layouts.base import row_layout

ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
BESIDE: dict[str, MediaKind] = {
    "images": "image",
    "image": "image",
    "videos": "video",
    "video": "video",
    "audios": "audio",
    "audio": "audio",
}


def samples_of(row: Row, roots: tuple[Path, ...]) -> Iterator[Sample]:
    """One sample for each answer of a conversation.

    Raises:
        DataError: naming the row.
    """
    messages = row.values.get("messages")
    if not isinstance(messages, list):
        raise DataError(f"{row.source}: `messages` should be a list, found {kind_of(messages)} — mend this row")
    said = [_message(message, number, roots, row.source) for number, message in enumerate(messages, 1)]
    shown = beside(row, roots)
    yield from conversation_samples(said, shown, row)


def beside(row: Row, roots: tuple[Path, ...]) -> tuple[Media, ...]:
    """Files named beside the conversation, in `images`, `image`, `videos`, ..."""
    return tuple(
        media
        for column, kind in BESIDE.items()
        if row.values.get(column)
        for media in read_media(row.values[column], kind, roots, row.source)
    )


def _message(message: Any, number: int, roots: tuple[Path, ...], source: str) -> Said:
    role = ROLES.get(str(message.get("role"))) if isinstance(message, dict) else None
    if role is None:
        raise DataError(f"{source}: message {number} has no role of {', '.join(ROLES)} — mend this row")
    content = message.get("content")
    if isinstance(content, str):
        return Said(role, content)  # type: ignore[arg-type]
    if not isinstance(content, list):
        raise DataError(f"{source}: message {number} has {kind_of(content)} as content — write text or a list of parts")
    texts: list[str] = []
    media: list[Media] = []
    for part in content:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind in ("text", "input_text", "output_text") and isinstance(part.get("text"), str):
            texts.append(part["text"])
        else:
            media += _file(part, kind, number, roots, source)
    return Said(role, "\n".join(texts), tuple(media))  # type: ignore[arg-type]


def _file(part: Any, kind: Any, number: int, roots: tuple[Path, ...], source: str) -> list[Media]:
    """The file of a content part such as `{"type": "image_url", "image_url": {"url": "receipt.jpg"}}`."""
    name = str(kind).removeprefix("input_").removesuffix("_url")
    if name not in ("image", "video", "audio"):
        raise DataError(f"{source}: message {number} has a part of type {kind!r} — use text, image_url, video, audio")
    value = next((part[key] for key in (kind, name, f"{name}_url", "path", "url") if key in part), None)
    return read_media(value, name, roots, source)  # type: ignore[arg-type]


LAYOUT = row_layout(lambda first: isinstance(first.get("messages"), list), samples_of)
