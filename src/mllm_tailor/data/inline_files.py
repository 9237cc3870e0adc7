"""Files that texts name themselves, as markers and a list beside the conversation.

Qwen-VL's `Picture 1: <img>receipt.jpg</img>` names the file in the text; MiniCPM-V's `<image_00>` is a key of an object
of files, `{"<image_00>": "receipt.jpg"}`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from mllm_tailor.media.source import media_kind

_INLINE = re.compile(r"(?:(?:Picture|Audio|Video) \d+: ?)?<(img|audio|video)>([^<>]+)</\1>")
_LISTS = {"img": "images", "audio": "audios", "video": "videos"}
_KEY = re.compile(r"<[\w ]{1,40}>")


def with_markers(values: Mapping[str, Any], messages: str, text: str) -> dict[str, Any]:
    """The row with `<image>` and its like where its texts name files, and the files in `images` in order.

    `messages` is the key of the messages, `text` that of the text of a message.
    """
    stated = dict(values)
    if not isinstance(stated.get(messages), list):
        return stated
    by_key: Mapping[str, Any] = next((stated[key] for key in ("image", "images") if _is_keyed(stated.get(key))), {})
    files: dict[str, list[str]] = {}

    def inline(match: re.Match[str]) -> str:
        name = match[2].strip()
        if media_kind(name) is None and "://" not in name:
            return match[0]
        files.setdefault(_LISTS[match[1]], []).append(name)
        return f"<{'image' if match[1] == 'img' else match[1]}>"

    def keyed(match: re.Match[str]) -> str:
        if match[0] not in by_key:
            return match[0]
        files.setdefault("images", []).append(by_key[match[0]])
        return "<image>"

    stated[messages] = [
        _replaced(_replaced(message, text, _KEY, keyed) if by_key else message, text, _INLINE, inline)
        for message in stated[messages]
    ]
    if by_key and set(files.get("images", ())) >= set(by_key.values()):
        stated = {key: value for key, value in stated.items() if value is not by_key}
    for name, named in files.items():
        beside = stated.get(name) or []
        stated[name] = [*(beside if isinstance(beside, list) else [beside]), *named]
    return stated


def _is_keyed(value: Any) -> bool:
    return isinstance(value, Mapping) and bool(value) and all(_KEY.fullmatch(str(key)) for key in value)


def _replaced(message: Any, key: str, pattern: re.Pattern[str], new: Callable[[re.Match[str]], str]) -> Any:
    if not isinstance(message, Mapping) or not isinstance(message.get(key), str):
        return message
    return {**message, key: pattern.sub(new, message[key])}
