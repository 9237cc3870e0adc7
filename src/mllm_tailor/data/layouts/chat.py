"""Chat rows: `messages` with roles and contents, as OpenAI's fine-tuning files and their many relatives write them."""

from __future__ import annotations

import binascii
from base64 import b64decode
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mllm_tailor.core.errors import DataError
from mllm_tailor.core.sample import Media, MediaKind, Role, Sample
from mllm_tailor.data.columns import SPLIT_COLUMNS, read_media, with_span
from mllm_tailor.data.conversation import File, Part, Said, Slot, conversation_samples, parts_of
from mllm_tailor.data.dialogues import as_dialogue
from mllm_tailor.data.inline_files import with_markers
from mllm_tailor.data.issues import DataIssue
from mllm_tailor.data.jsonl import Row, kind_of
from mllm_tailor.data.keys import REFUSED_IN_MESSAGE, REFUSED_IN_ROW, SIZES, KeyReader
from mllm_tailor.data.layouts.base import row_layout
from mllm_tailor.data.layouts.columns import file_columns
from mllm_tailor.data.objects import filled
from mllm_tailor.data.preference import UNDESIRED, is_undesired, rejected_reply
from mllm_tailor.media.source import media_kind

ROLES: Mapping[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "model": "assistant",
}
BESIDE: Mapping[str, MediaKind] = {
    "images": "image",
    "image": "image",
    "videos": "video",
    "video": "video",
    "audios": "audio",
    "audio": "audio",
}
# Whether an answer is learned, in the words of OpenAI, ms-swift, TRL, axolotl and LLaMA-Factory.
WEIGHT_KEYS = ("weight", "loss", "train", "training", "loss_scale", "loss_weight")
FIX_MESSAGE = "write what it says into the content, or take it out"
FIX_PART = "the settings of the model decide; take it out"
FIX_ROW = "write what it says into a message, or take it out; it can be named in data.held_out or score_by"


def samples_of(row: Row, roots: tuple[Path, ...]) -> Iterator[Sample | DataIssue]:
    """One sample for each answer of a conversation.

    Raises:
        DataError: naming the row.
    """
    row = of_texts(Row(row.source, dict(as_dialogue(row.values)), row.split))
    row = Row(row.source, with_markers(row.values, "messages", "content"), row.split)
    reader = KeyReader(row.values, row.source)
    messages = with_chosen(reader.get("messages"), "messages", reader)
    warnings: list[DataIssue] = []
    said = [
        _message(message, f"message {number}", roots, row.source, warnings)
        for number, message in enumerate(messages, 1)
    ]
    yield from row_samples(said, messages, reader, row, roots)
    yield from warnings


def of_texts(row: Row) -> Row:
    """The row with the pairs in `texts` (The Cauldron's rows) as messages; what else a pair holds stays a key."""
    texts = row.values.get("texts")
    if "messages" in row.values or not has_texts(row.values):
        return row
    messages = []
    for number, pair in enumerate(texts if isinstance(texts, list) else (), 1):
        if not isinstance(pair, Mapping) or not {"user", "assistant"} <= set(pair):
            raise DataError(f"{row.source}: `texts`: pair {number} has no `user` and `assistant` — correct this row")
        others = {key: value for key, value in pair.items() if key not in ("user", "assistant", "system")}
        messages += [{"role": "system", "content": pair["system"]}] if pair.get("system") else []
        messages += [{"role": "user", "content": pair["user"]}]
        messages += [{"role": "assistant", "content": pair["assistant"], **others}]
    values = {key: value for key, value in row.values.items() if key != "texts"}
    return Row(row.source, values | {"messages": messages}, row.split)


def has_texts(values: Mapping[str, Any]) -> bool:
    """Whether a row holds a conversation as `texts`, a list of pairs of `user` and `assistant`."""
    texts = values.get("texts")
    first = texts[0] if isinstance(texts, list) and texts else None
    return isinstance(first, Mapping) and {"user", "assistant"} <= set(first)


def with_chosen(messages: Any, name: str, reader: KeyReader) -> list[Any]:
    """The messages of a row, with the preferred reply that `chosen` names after the question.

    Raises:
        DataError: naming the row, for anything but a list of messages.
    """
    if not isinstance(messages, list):
        raise reader.error(f"`{name}` should be a list, found {kind_of(messages)}", "correct this row")
    last = messages[-1] if messages else None
    role = str(last.get("role", last.get("from"))) if isinstance(last, Mapping) else ""
    if not isinstance(last, Mapping) or role not in ("user", "human") or (chosen := reader.get("chosen")) is None:
        return messages
    if isinstance(chosen, str):
        chosen = {"role": "assistant", "content": chosen} if "role" in last else {"from": "gpt", "value": chosen}
    return [*messages, *(chosen if isinstance(chosen, list) else [chosen])]


def row_samples(
    said: list[Said], messages: Sequence[Any], reader: KeyReader, row: Row, roots: tuple[Path, ...]
) -> Iterator[Sample | DataIssue]:
    """The samples of a conversation and warnings for the keys of its row that are not read.

    `messages` are those of the row, by which a rejected reply is found to answer the same conversation.

    Raises:
        DataError: naming the row.
    """
    if is_undesired(reader):
        yield DataIssue(row.source, UNDESIRED, "leave it out, or pair it with a preferred reply", None, "warning")
        return
    system = _system_text(reader)
    if system and system.strip():
        said = [Said("system", (system,)), *said]
    rejected = rejected_reply(reader, messages[:-1])
    learned = learned_by(reader)
    if learned is False:
        said = [Said(message.role, message.parts, learned=False) for message in said]
    files = beside(reader, roots)
    images = [media for message in said for media in message.media if media.kind == "image"]
    images += [media for file in files for media in file if media.kind == "image" and media not in images]
    said = filled(said, reader, images)
    reader.get("id")
    reader.get("group")
    reader.skip(*SPLIT_COLUMNS)
    reader.refuse(REFUSED_IN_ROW)
    beside_it = {"group", *reader.unread()}
    extra = {
        name: value for name, value in row.values.items() if name in beside_it and isinstance(value, (str, int, float))
    }
    items = list(conversation_samples(said, files, row, extra))
    if rejected is not None:
        items = with_rejected(items, rejected)
    yield from items
    yield from reader.warnings(FIX_ROW)


def _system_text(reader: KeyReader) -> str | None:
    """The system text beside the messages; Anthropic's may be a list of parts."""
    system = reader.get("system")
    if isinstance(system, list) and all(isinstance(part, Mapping) and set(part) <= {"type", "text"} for part in system):
        system = "\n\n".join(str(part.get("text", "")) for part in system)
    if system is not None and not isinstance(system, str):
        raise reader.error(f"`system` should be text, found {kind_of(system)}", "correct this row")
    return system


def with_rejected(items: list[Sample | DataIssue], rejected: str) -> list[Sample | DataIssue]:
    """The items of a row with the rejected reply kept beside the sample of the last answer.

    Only the preferred reply is learned, so the answers before it are its context.
    """
    samples = [item for item in items if isinstance(item, Sample)]
    if not samples:
        return items
    last = samples[-1]
    sample = replace(whole_row(last), extra={**last.extra, "rejected": rejected})
    return [sample, *(item for item in items if isinstance(item, DataIssue))]


def whole_row(last: Sample) -> Sample:
    """The sample of a row's last answer under the row's own id, where no other sample of the row is kept."""
    earlier = sum(turn.role == "user" for turn in last.history)
    return replace(last, id=last.id.removesuffix(f"-{earlier + 1}")) if earlier else last


def beside(reader: KeyReader, roots: tuple[Path, ...]) -> list[File]:
    """Files named beside the conversation, in `images`, `image`, `videos`, …; a document is one file of several pages.

    Raises:
        DataError: naming the row.
    """
    files: list[File] = []
    for column, kind in BESIDE.items():
        if (value := reader.get(column)) in (None, "", []):
            continue
        names = value if isinstance(value, list) else [value]
        files += [tuple(read_media(name, kind, roots, reader.source)) for name in names]
    for column, stands_for in ({} if files else file_columns(reader.values)).items():
        value = reader.get(column)
        if column not in BESIDE and (isinstance(value, Mapping) or media_kind(str(value))):
            files.append(tuple(read_media(value, BESIDE.get(stands_for), roots, reader.source)))
    return with_span(files, reader)


def learned_by(reader: KeyReader) -> bool | None:
    """Whether an answer is learned, by the weight that a message or row gives it; None where it gives none.

    Raises:
        DataError: naming the row, for weights between.
    """
    learned: bool | None = None
    for key in WEIGHT_KEYS:
        value = reader.get(key)
        if value is None:
            continue
        if value not in (0, 1):
            raise reader.error(f"`{key}` is {value!r}", "an answer is learned (1, true) or only context (0, false)")
        learned = bool(value) and learned is not False
    return learned


def _message(message: Any, where: str, roots: tuple[Path, ...], source: str, warnings: list[DataIssue]) -> Said:
    reader = KeyReader(message if isinstance(message, Mapping) else {}, source, where)
    stated_role = reader.get("role")
    role = ROLES.get(str(stated_role))
    if role is None:
        raise reader.error(f"the role {stated_role!r}, none of {', '.join(ROLES)}", "leave the row out, or correct it")
    learned = learned_by(reader)
    reader.refuse(REFUSED_IN_MESSAGE)
    content = reader.get("content")
    warnings += reader.warnings(FIX_MESSAGE)
    if isinstance(content, str):
        return Said(role, tuple(parts_of(content)), learned is not False)
    if not isinstance(content, list):
        raise reader.error(f"{kind_of(content)} as content", "write text or a list of parts")
    parts: list[Part] = []
    texts_before = False
    for value in content:
        new = _part(value, where, roots, source, warnings)
        text = all(isinstance(part, str) for part in new)
        parts += ["\n", *new] if text and texts_before else new  # neighbouring texts are lines
        texts_before = text
    return Said(role, tuple(parts), learned is not False)


def _part(value: Any, where: str, roots: tuple[Path, ...], source: str, warnings: list[DataIssue]) -> list[Part]:
    """A content part such as `{"type": "image_url", "image_url": {"url": "receipt.jpg"}}`, or a mere text."""
    if isinstance(value, str):
        return parts_of(value)
    part = KeyReader(value if isinstance(value, Mapping) else {}, source, where)
    kinds = ("text", "image", "video", "audio", "image_url", "video_url", "audio_url")
    kind = str(part.get("type") or next((key for key in kinds if key in part), None))
    if kind in ("text", "input_text", "output_text"):
        text = part.get("text", part.get("value"))  # `value` in LLaMA-Factory's newer rows
        if not isinstance(text, str):
            keys = ", ".join(f"`{key}`" for key in part.values if key != "type")
            raise part.error(f"a part of text holds {kind_of(text)} ({keys})", "write the text, or take the part out")
        warnings += part.warnings(FIX_MESSAGE)
        return parts_of(text)
    name = kind.removeprefix("input_").removesuffix("_url")
    part.skip("index")  # the number of the file, in rows of LLaVA's instructions on the hub
    if name not in ("image", "video", "audio"):
        raise part.error(f"a part of type {kind!r}", "use text, image, image_url, video or audio")
    file_keys = (kind, name, f"{name}_url", "path", "url", "source", "value")
    named = next((found for key in file_keys if (found := part.get(key))), None)
    if named is None and (embedded := part.get("base64")):
        named = {"data": embedded}
    parts: list[Part] = [Slot(name, marker=False)] if named is None else [*_media(named, name, roots, part)]  # type: ignore[arg-type]
    spanned = with_span([tuple(item for item in parts if isinstance(item, Media))], part)
    warnings += part.warnings(FIX_PART, SIZES)
    return parts if named is None else [*spanned[0]]


def _media(value: Any, kind: MediaKind, roots: tuple[Path, ...], part: KeyReader) -> list[Media]:
    if isinstance(value, Mapping) and isinstance(value.get("data"), str):  # OpenAI's input_audio, Anthropic's source
        try:
            return [Media(kind, data=b64decode(value["data"], validate=True))]
        except (binascii.Error, ValueError):
            raise part.error("the base64 of a part is damaged", "embed the file again") from None
    return read_media(value, kind, roots, part.source)


def recognises(first: Mapping[str, Any]) -> bool:
    """Whether a row holds messages, or pairs, under any name."""
    stated = as_dialogue(first)
    return isinstance(stated.get("messages"), list) or has_texts(stated)


LAYOUT = row_layout(recognises, samples_of)
