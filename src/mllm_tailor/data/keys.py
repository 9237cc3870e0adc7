"""The keys of a row: each is understood, harmless, or named with its row. Nothing that a row states is passed over.

Three kinds of keys are not read. Keys that change what a row means refuse the row, with what to do instead. Keys of a
short list say nothing that a model could use. Every other key that holds something is named in a warning.
`docs/row-keys.md` has the table.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from mllm_tailor.core.errors import DataError
from mllm_tailor.data.issues import DataIssue

# Read as a column to hold out, group or score by, never shown to the model.
TECHNICAL_KEYS = frozenset(
    {"group", "ocr", "width", "height", "frames", "fps", "sample_rate", "duration", "drawn"}
    | {"width_list", "height_list", "num_tiles"}
)
# Numbers, addresses and sizes of a row or file that say nothing about what it shows.
NUMBERING_KEYS = frozenset(
    {"questionId", "question_id", "docId", "ucsf_document_id", "ucsf_document_page_no", "data_split", "set_name"}
    | {"image_width", "image_height", "flickr_original_url", "flickr_300k_url", "coco_url", "flickr_url", "image_url"}
    | {"ocr_output_file", "sentids", "imgid", "cocoid", "img_id", "image_id", "filepath", "url", "license"}
    | {"date_captured", "segment_id", "idx", "index", "supercategory"}
)
HARMLESS_KEYS = TECHNICAL_KEYS | NUMBERING_KEYS
# Keys that change the meaning of a conversation, and what to do about each.
REFUSED_IN_ROW: Mapping[str, str] = {
    "history": "write the earlier turns into the messages",
    "tools": "tool calls are not supported: leave the row out, or write them into the texts",
    "functions": "tool calls are not supported: leave the row out, or write them into the texts",
    "chosen": "this conversation ends in a reply: end it with the question, or leave `chosen` out",
    "query": "put the question into the messages, or leave `messages` out",
    "response": "put the answer into the messages, or leave `messages` out",
}
REFUSED_IN_MESSAGE: Mapping[str, str] = {
    "tool_calls": "tool calls are not supported: leave the row out, or write them into the text",
    "function_call": "tool calls are not supported: leave the row out, or write them into the text",
    "reasoning_content": "write the reasoning into the content, as <think>…</think>, or take it out",
    "reasoning": "write the reasoning into the content, as <think>…</think>, or take it out",
    "thinking": "write the reasoning into the content, as <think>…</think>, or take it out",
    "images": "name files in content parts, or in `images` of the row with a marker in the text",
    "image": "name files in content parts, or in `images` of the row with a marker in the text",
    "videos": "name files in content parts, or in `videos` of the row with a marker in the text",
    "audios": "name files in content parts, or in `audios` of the row with a marker in the text",
    "refusal": "write it as the content, or take it out",
    "prefix": "replies that begin in the prompt are not supported: leave the row out",
}
NOTHING: tuple[Any, ...] = (None, "", [], {}, "[]", "{}")  # lists and objects also as JSON text of a table
SIZES = ("width", "height")  # of a file, beside it in a part
TAKE_OUT = "take it out, or write it into the labels"


class KeyReader:
    """A mapping of a row that remembers which of its keys were asked for."""

    def __init__(self, values: Mapping[str, Any], source: str, where: str = "") -> None:
        """`where` names the part of the row for messages, such as "message 3"."""
        self.values, self.source, self.where = values, source, where
        self.read: set[str] = set()

    def __contains__(self, key: str) -> bool:
        return self.get(key) is not None

    def get(self, key: str, default: Any = None) -> Any:
        """The value of a key, which counts as read."""
        self.read.add(key)
        value = self.values.get(key)
        return default if value is None else value

    def skip(self, *keys: str) -> None:
        """Count keys as read whose value says nothing more."""
        self.read.update(keys)

    def error(self, problem: str, fix: str) -> DataError:
        """An error that names the row and this part of it."""
        return DataError(f"{self.source}: {f'{self.where}: ' if self.where else ''}{problem} — {fix}")

    def unread(self) -> dict[str, Any]:
        """The keys that hold something and were not asked for."""
        return {str(key): value for key, value in self.values.items() if key not in self.read and value not in NOTHING}

    def refuse(self, refused: Mapping[str, str]) -> None:
        """Raise for an unread key that changes what the row means.

        Raises:
            DataError: naming the row, the key and what to do.
        """
        for key in self.unread():
            if key in refused:
                raise self.error(f"the key `{key}` is not read, but changes what is meant", refused[key])

    def warnings(self, fix: str, harmless: Collection[str] = TECHNICAL_KEYS) -> Iterator[DataIssue]:
        """A warning for every other unread key."""
        kind = self.where.rstrip("0123456789 ")
        part = f" of a {kind}" if kind else ""
        for key in self.unread():
            if key not in harmless:
                yield DataIssue(self.source, f"the key `{key}`{part} is not shown to the model", fix, None, "warning")


def unread_keys(
    values: Any, known: Collection[str], source: str, where: str = "", fix: str = TAKE_OUT
) -> Iterator[DataIssue]:
    """A warning for every key of an object that is not `known` and holds something; `where` names the object's kind."""
    if isinstance(values, Mapping):
        reader = KeyReader(values, source, where)
        reader.skip(*known)
        yield from reader.warnings(fix)


def seconds_of(reader: KeyReader, begin: str, end: str) -> tuple[float, float] | None:
    """The span that two keys of a row name, in seconds; None where neither is there.

    Raises:
        DataError: naming the row, for one without the other or what is no span.
    """
    stated = reader.get(begin), reader.get(end)
    if stated == (None, None) or stated == ("", ""):
        return None
    try:
        first, last = (float(value) for value in stated)
    except (TypeError, ValueError):
        first, last = 0.0, -1.0
    if not 0 <= first < last:
        shown = " and ".join(repr(value) for value in stated)
        raise reader.error(f"`{begin}` and `{end}` are {shown}, which is no span", "give both, in seconds from 0")
    return first, last
