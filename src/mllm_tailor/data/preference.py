"""Preference pairs of conversation rows: the reply that was rejected, beside the preferred one.

`chosen` and `rejected` are TRL's words, `rejected_response` and `rejected_messages` those of ms-swift. A reply is text,
a message, or a list of messages whose last one is the reply. A row whose `label` is false (KTO) is a rejected reply
alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mllm_tailor.data.jsonl import kind_of
from mllm_tailor.data.keys import REFUSED_IN_MESSAGE, KeyReader

REJECTED = ("rejected", "rejected_response", "rejected_messages")
ROLE_KEYS, TEXT_KEYS = ("role", "from"), ("content", "value")
UNDESIRED = "is marked as an undesired reply (`label` is false): neither learned nor scored"


def is_undesired(row: KeyReader) -> bool:
    """Whether a row marks its reply as one that is not to be learned (`label: false`, as KTO has it)."""
    label = row.values.get("label")
    if isinstance(label, bool):
        row.skip("label")
    return label is False


def rejected_reply(row: KeyReader, before: Sequence[Any]) -> str | None:
    """The text of the reply that a row rejects; None where it names none. `before` are the messages up to the reply.

    Raises:
        DataError: naming the row, for several rejected replies, for anything but a reply, or where the rejected reply
            answers another conversation.
    """
    stated = {name: value for name in REJECTED if (value := row.get(name)) not in (None, "", [])}
    if not stated:
        return None
    if len(stated) > 1:
        raise row.error(f"{' and '.join(f'`{name}`' for name in stated)} both name a rejected reply", "keep one")
    ((name, value),) = stated.items()
    messages = value if isinstance(value, list) else [value]
    earlier = list(map(_plain, messages[:-1]))
    if earlier and earlier != list(map(_plain, before))[-len(earlier) :]:
        raise row.error(f"`{name}` answers another conversation than the preferred reply", "give the last reply alone")
    return _text(messages[-1], name, row)


def _plain(message: Any) -> tuple[Any, Any]:
    values = message if isinstance(message, Mapping) else {}
    return tuple(next((values[key] for key in keys if key in values), None) for keys in (ROLE_KEYS, TEXT_KEYS))  # type: ignore[return-value]


def _text(message: Any, name: str, row: KeyReader) -> str:
    if isinstance(message, str):
        return message
    if not isinstance(message, Mapping):
        raise row.error(f"`{name}` should be text or messages, found {kind_of(message)}", "correct this row")
    reader = KeyReader(message, row.source, name)
    role = next((value for key in ROLE_KEYS if (value := reader.get(key)) is not None), "assistant")
    if role not in ("assistant", "gpt"):
        raise row.error(f"`{name}` ends in a message of the role {role!r}", "end it with a reply of the assistant")
    content = next((value for key in TEXT_KEYS if (value := reader.get(key)) is not None), None)
    reader.refuse(dict.fromkeys((*REFUSED_IN_MESSAGE, *reader.unread()), "leave it out of a rejected reply"))
    parts = content if isinstance(content, list) else [content]
    texts = [part.get("text") if isinstance(part, Mapping) else part for part in parts]
    if not texts or not all(isinstance(text, str) for text in texts):
        raise row.error(f"`{name}` holds no text", "give the rejected reply as text")
    return "\n".join(map(str, texts))
