"""Conversations by other names and in other shapes, brought into `messages`, `conversations` or `texts`.

- a list of messages under another key (`conversation`, `dialog`), or as JSON text of a table;
- a list of pairs (`{"human": …, "gpt": …}`) under another key;
- Gemini's `contents` of `parts`, and OpenAI's preference rows (`input`, `preferred_output`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mllm_tailor.core.strict_json import parse_json

MESSAGE_SHAPES = (("role", "content", "messages"), ("from", "value", "conversations"))
PAIR_SHAPES = (("user", "assistant"), ("human", "assistant"), ("human", "gpt"), ("user", "gpt"), ("user", "model"))
USUAL = ("messages", "conversations", "texts")
# Lists of messages that are a part of a conversation, which other keys of the row complete.
PARTS_OF_ONE = frozenset(
    {"history", "prompt", "question", "query", "instruction", "completion", "chosen", "rejected", "rejected_messages"}
    | {"rejected_response", "input", "preferred_output", "non_preferred_output"}
)
GEMINI_ROLES = {"user": "user", "model": "assistant", "system": "system"}


def as_dialogue(values: Mapping[str, Any]) -> Mapping[str, Any]:
    """The row with its conversation under a usual key; the row itself where it holds none, or has it there already."""
    if _is_gemini(values.get("contents")):
        return _of_gemini(values)
    if isinstance(inner := values.get("input"), Mapping) and "preferred_output" in values:
        return _of_preference(values, inner)
    for key, value in values.items():
        listed = _list_in(value)
        if key in PARTS_OF_ONE or not listed:
            continue
        name = _usual_name(listed[0])
        if name is not None and (key == name or name not in values):
            if key == name and listed is value:
                return values
            return {other: stated for other, stated in values.items() if other != key} | {name: _renamed(listed, name)}
    return values


def dialogue_row(items: Any) -> dict[str, Any] | None:
    """A row for a list of messages that is a row by itself; None for anything else."""
    if not isinstance(items, list) or not items:
        return None
    name = _usual_name(items[0])
    return {name: items} if name in ("messages", "conversations") else None


def _list_in(value: Any) -> list[Any]:
    """The list that a value is, or holds as JSON text; empty for anything else."""
    if isinstance(value, str) and value.lstrip()[:1] == "[" and value.rstrip()[-1:] == "]" and "{" in value:
        try:
            value = parse_json(value)
        except ValueError:
            return []
    return value if isinstance(value, list) else []


def _usual_name(first: Any) -> str | None:
    """The usual key of a list that begins with this item; None where it is no conversation."""
    if not isinstance(first, Mapping):
        return None
    shapes = [name for who, what, name in MESSAGE_SHAPES if who in first and what in first]
    if shapes:
        return shapes[0]
    return "texts" if any(isinstance(first.get(user), str) and reply in first for user, reply in PAIR_SHAPES) else None


def _renamed(items: list[Any], name: str) -> list[Any]:
    """Pairs with the keys `user` and `assistant`; messages as they are."""
    if name != "texts":
        return items
    renamed = []
    for item in items:
        pair = next((keys for keys in PAIR_SHAPES if isinstance(item, Mapping) and set(keys) <= set(item)), None)
        usual = dict(zip(pair, PAIR_SHAPES[0], strict=True)) if pair else {}
        renamed.append({usual.get(key, key): value for key, value in item.items()} if usual else item)
    return renamed


def _is_gemini(contents: Any) -> bool:
    first = contents[0] if isinstance(contents, list) and contents else None
    return isinstance(first, Mapping) and isinstance(first.get("parts"), list)


def _of_gemini(values: Mapping[str, Any]) -> dict[str, Any]:
    stated = dict(values)
    contents = stated.pop("contents")
    for name in ("systemInstruction", "system_instruction"):
        if isinstance(system := stated.pop(name, None), Mapping):
            contents = [{**system, "role": "system"}, *contents]
    return stated | {"messages": [_gemini_message(content) for content in contents]}


def _gemini_message(content: Any) -> Any:
    if not isinstance(content, Mapping) or not isinstance(content.get("parts"), list):
        return content
    role = str(content.get("role", "user"))
    others = {key: value for key, value in content.items() if key not in ("role", "parts")}
    return {
        **others,
        "role": GEMINI_ROLES.get(role, role),
        "content": [_gemini_part(part) for part in content["parts"]],
    }


def _gemini_part(part: Any) -> Any:
    """A part in OpenAI's words; one of another kind keeps its name, by which it is refused."""
    if not isinstance(part, Mapping) or isinstance(part.get("text"), str):
        return {"type": "text", **part} if isinstance(part, Mapping) else part
    for name, address in (("inlineData", "data"), ("inline_data", "data"), ("fileData", "fileUri")):
        file = part.get(name)
        if isinstance(file, Mapping):
            kind = str(file.get("mimeType", file.get("mime_type", ""))).partition("/")[0] or "image"
            value = file.get(address)
            others = {key: stated for key, stated in part.items() if key != name}
            return {"type": kind, kind: {"data": value} if address == "data" else value, **others}
    return {"type": next(iter(part), "nothing"), **part}


def _of_preference(values: Mapping[str, Any], inner: Mapping[str, Any]) -> dict[str, Any]:
    names = {"preferred_output": "chosen", "non_preferred_output": "rejected"}
    stated = {names.get(key, key): value for key, value in values.items() if key != "input"}
    beside = {key: value for key, value in inner.items() if key != "messages"}
    return stated | beside | {"prompt": inner.get("messages")}
