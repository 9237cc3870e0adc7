"""TRL's rows: `prompt` and `completion`, or `prompt`, `chosen` and `rejected`; each is text or a list of messages.

Of a preference pair the chosen reply is learned; the rejected one is kept beside the sample (`extra["rejected"]`) for
`train.prefer`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from mllm_tailor.core.errors import DataError
from mllm_tailor.core.sample import Sample
from mllm_tailor.core.strict_json import as_written
from mllm_tailor.data.dialogues import as_dialogue, dialogue_row
from mllm_tailor.data.issues import DataIssue
from mllm_tailor.data.jsonl import Row, kind_of
from mllm_tailor.data.layouts import chat
from mllm_tailor.data.layouts.base import Roots, row_layout

REPLIES = ("completion", "chosen")
ANSWERS = ("answer", "solution", "ground_truth", "response", "output", "target", "label")
PROMPTS = ("prompt", "question", "query", "instruction")  # RLAIF-V and its relatives name it a question


def recognises(first: Mapping[str, Any]) -> bool:
    """Whether a row has a prompt and a completion, a chosen and a rejected reply, or a prompt of messages."""
    stated = as_dialogue(first)
    keys = set(stated)
    asks = dialogue_row(stated.get("prompt")) is not None and "messages" not in keys
    return asks or {"prompt", "completion"} <= keys or {"chosen", "rejected"} <= keys


def samples_of(row: Row, roots: Roots) -> Iterator[Sample | DataIssue]:
    """One sample: the last reply is the answer, all before it is the conversation.

    Raises:
        DataError: naming the row.
    """
    row = Row(row.source, dict(as_dialogue(row.values)), row.split)
    reply = next((name for name in REPLIES if row.values.get(name) is not None), None)
    if reply is None:  # rows of rewards name the right answer
        reply = next((name for name in ANSWERS if isinstance(row.values.get(name), (str, int, float))), None)
    if reply is None:
        raise DataError(f"{row.source}: no `completion` and no `chosen` — add the reply to learn, or remove this row")
    prompt = next((name for name in PROMPTS if row.values.get(name) is not None), PROMPTS[0])
    values = {name: value for name, value in row.values.items() if name not in (prompt, reply)}
    messages = [*_messages(row, prompt, "user"), *_messages(row, reply, "assistant")]
    items = list(chat.samples_of(Row(row.source, values | {"messages": messages}, row.split), roots))
    yield from (item for item in items if isinstance(item, DataIssue))
    samples = [item for item in items if isinstance(item, Sample)]
    if samples:
        yield samples[-1] if "rejected" in samples[-1].extra else chat.whole_row(samples[-1])


def _messages(row: Row, name: str, role: str) -> list[Any]:
    """The messages that a column holds: a list of them, one message, or the text of one of this role."""
    value = row.values.get(name)
    if value is None:
        return []
    if isinstance(value, (str, int, float)):
        return [{"role": role, "content": as_written(value)}]
    if isinstance(value, Mapping):
        return [value]
    if not isinstance(value, list):
        raise DataError(f"{row.source}: `{name}` should be text or messages, found {kind_of(value)} — correct this row")
    return value


LAYOUT = row_layout(recognises, samples_of)
