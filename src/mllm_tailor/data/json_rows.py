"""Rows of JSON files: a list of objects, or an object that wraps such lists (`{"data": [...]}`, `{"train": [...]}`)."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mllm_tailor.core.errors import DataError
from mllm_tailor.core.io import read_json
from mllm_tailor.data.dialogues import dialogue_row
from mllm_tailor.data.issues import DataIssue
from mllm_tailor.data.jsonl import HEAD_BYTES, Row, as_row, jsonl_rows, kind_of

SPLIT_NAMES = frozenset(
    {"train", "training", "val", "valid", "validation", "dev", "eval", "test", "testing", "held_out", "heldout"}
)
# Keys under which an object holds its rows, and keys beside them that state nothing about a row.
ROW_KEYS = ("data", "rows", "samples", "examples", "items", "records", "entries", "annotations", "images", "questions")
# Of which a row has at least one, where an object holds rows by their ids.
BY_ID_KEYS = frozenset(
    {"question", "query", "caption", "image", "imageId", "image_id", "file_name", "filename", "video", "conversations"}
)
HEADER_KEYS = frozenset(
    {"info", "version", "dataset_name", "dataset_version", "dataset_split", "data_type", "data_subtype", "license"}
    | {"licenses", "dataset", "dataset_type", "name", "description", "date_created", "split", "task_type"}
)

_decoder = json.JSONDecoder()
_LINES = re.compile(r"\{[^\n]*\}\s*\n\s*\{")


def split_of(name: str) -> str | None:
    """The split that a file or folder is named after: `train-00000-of-00002` -> `train`."""
    word = re.match(r"(?:held_out|[a-z]+)(?![a-z])", name.lower())
    return word[0] if word and word[0] in SPLIT_NAMES else None


def top_level(text: str) -> dict[str, Any]:
    """The keys and values of the JSON object that `text` begins with; `text` may be cut off.

    Of a value that is cut off, only the first item of a list is kept; the keys after it are unknown.
    """
    values: dict[str, Any] = {}
    try:
        position = _skip(text, text.index("{") + 1)
        while text[position] == '"':
            name, position = _decoder.raw_decode(text, position)
            position = _skip(text, position)
            try:
                values[name], position = _decoder.raw_decode(text, position)
            except ValueError:
                values[name] = _first_items(text, position)
                break
            position = _skip(text, position)
    except (ValueError, IndexError, RecursionError):
        pass  # the text ends here, or is no JSON: what was read so far is known
    return values


def _skip(text: str, position: int) -> int:
    while text[position] in " \t\r\n,:":
        position += 1
    return position


def _first_items(text: str, position: int) -> list[Any]:
    if text[position] != "[":
        return []
    try:
        return [_decoder.raw_decode(text, _skip(text, position + 1))[0]]
    except (ValueError, IndexError, RecursionError):
        return []


def first_json_row(path: Path) -> dict[str, Any]:
    """The first row of a JSON file; of an object that wraps no rows the object itself; empty when unreadable."""
    text = _head_text(path)
    if text.startswith("["):
        first = _first_items(text, 0)
        row = first[0] if first else None
        return row if isinstance(row, dict) else dialogue_row(row) or {}
    values = top_level(text) if text.startswith("{") else {}
    lists = {} if holds_lines(text) else row_keys(values)
    if not lists and are_rows_by_id(values):
        return _with_id(*next(iter(values.items())))
    return values[next(iter(lists))][0] if lists else values


def json_head(path: Path) -> dict[str, Any]:
    """The keys and values of the object in a JSON file, as far as its head goes; empty when it holds none."""
    text = _head_text(path)
    return top_level(text) if text.startswith("{") and not holds_lines(text) else {}


def holds_lines(text: str) -> bool:
    """Whether a text holds an object in each of its first two lines, as JSON lines do."""
    try:
        return bool(_LINES.match(text)) and isinstance(_decoder.decode(text[: text.index("\n")]), dict)
    except (ValueError, RecursionError):
        return False


def _head_text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file.read(HEAD_BYTES).decode("utf-8-sig", errors="ignore").lstrip()
    except OSError:
        return ""


def row_keys(values: Mapping[str, Any]) -> dict[str, str | None]:
    """The keys of an object that hold its rows, each with the split it names; empty when the object wraps no rows."""
    lists = [name for name, value in values.items() if _is_rows(value)]
    splits = [name for name in lists if name.lower() in SPLIT_NAMES]
    if splits:
        return dict.fromkeys(splits) | {name: name.lower() for name in splits}
    known = next((name for name in ROW_KEYS if name in lists), None)
    return {known: None} if known and len(lists) == 1 else {}


def are_rows_by_id(values: Mapping[str, Any]) -> bool:
    """Whether an object holds rows by their ids (`{"12": {"question": …}}`), by the first of them."""
    first = next(iter(values.values()), None)
    return isinstance(first, dict) and bool(BY_ID_KEYS & set(first))


def _with_id(key: str, value: dict[str, Any]) -> dict[str, Any]:
    return {"id": key, **value}


def _is_rows(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict)


def json_file_rows(path: Path, split: str | None = None) -> Iterator[Row | DataIssue]:
    """Every row of a JSON file."""
    if holds_lines(_head_text(path)):  # as NeMo names its manifests
        yield from jsonl_rows(path, split)
        return
    try:
        content = read_json(path)
    except DataError as error:
        yield DataIssue.of(error, str(path))
        return
    if isinstance(content, list):
        yield from _numbered(content, f"{path}", split)
        return
    lists = row_keys(content) if isinstance(content, dict) else {}
    if not lists and isinstance(content, dict) and are_rows_by_id(content):
        for key, value in content.items():
            yield as_row(_with_id(key, value) if isinstance(value, dict) else value, f"{path}:{key}", split)
        return
    if not lists:
        yield DataIssue(str(path), f"a list of rows is expected, found {kind_of(content)}", "wrap the rows in [ ]")
    for name, named in lists.items():
        yield from _numbered(content[name], f"{path}:{name}", named or split)
    for name in sorted(set(content) - set(lists) - HEADER_KEYS if lists else ()):
        problem = f"`{name}` beside the rows is not read"
        yield DataIssue(str(path), problem, "move what matters into the rows", None, "warning")


def objects_in(content: Any, name: str, source: str) -> list[Mapping[str, Any]]:
    """The objects of the list under a key of a document; none where the key is absent.

    Raises:
        DataError: naming the file, for anything but a list of objects.
    """
    value = content.get(name) if isinstance(content, Mapping) else content
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(entry, Mapping) for entry in value):
        raise DataError(f"{source}: `{name}` should be a list of objects, found {kind_of(value)} — correct the file")
    return value


def _numbered(entries: list[Any], source: str, split: str | None) -> Iterator[Row | DataIssue]:
    for number, value in enumerate(entries, 1):
        yield as_row(value, f"{source}:{number}", split)
