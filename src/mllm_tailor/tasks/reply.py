"""Read the JSON object inside a model's reply, and say what had to be overlooked to do so."""

from __future__ import annotations

from typing import Any

from mllm_tailor.core.strict_json import repair_json
from mllm_tailor.tasks.base import Reply


def read_object(text: str) -> Reply:
    """The object in `text`: bare, in a Markdown fence, after a preamble, or alone in a list.

    >>> read_object('```json\\n{"total": "9.00"}\\n```').fields
    {'total': '9.00'}
    >>> read_object("nine ringgit").problem
    'no JSON object in the reply'
    """
    start = text.find("{")
    if start < 0:
        return Reply(problem="no JSON object in the reply")
    for candidate in _candidates(text, start):
        try:
            value: Any = repair_json(candidate)
        except ValueError:
            continue
        if isinstance(value, dict):
            return Reply(fields=value)
    return Reply(problem="the JSON in the reply is broken or cut off")


def _candidates(text: str, start: int) -> list[str]:
    """Substrings worth trying, longest first: up to the last brace, then the first balanced object."""
    end = text.rfind("}")
    found = [text[start : end + 1]] if end > start else []
    balanced = _balanced_end(text, start)
    if balanced is not None and balanced != end:
        found.append(text[start : balanced + 1])
    return found


def _balanced_end(text: str, start: int) -> int | None:
    """Index of the brace that closes the object opened at `start`, strings respected."""
    depth, quoted, escaped = 0, False, False
    for index in range(start, len(text)):
        character = text[index]
        if escaped:
            escaped = False
        elif quoted:
            escaped = character == "\\"
            quoted = character != '"'
        elif character == '"':
            quoted = True
        elif character in "{}":
            depth += 1 if character == "{" else -1
            if depth == 0:
                return index
    return None
