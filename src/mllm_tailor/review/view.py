"""What the page is told of a document: values, what each still needs, other candidates, and where they stand."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from mllm_tailor.data.reviews.labels import DECIDING, current_tree, is_decided, needs_eye, undecided
from mllm_tailor.data.reviews.store import Entry, ReviewStore
from mllm_tailor.data.reviews.values import to_fields, to_tree, value_at, value_paths


def document_view(entry: Entry, store: ReviewStore) -> dict[str, Any]:
    """One document as JSON values."""
    document, reading, schema = entry.document, entry.document.reading, store.schema
    tree = current_tree(document, entry.decisions, schema)
    first = to_tree(reading.get("fields") or {})
    last = {decision.field: decision.action for decision in entry.decisions if decision.action in DECIDING}
    rows = dict(_rows(tree, schema))
    values = {}
    for path in value_paths(tree, schema):
        value = value_at(tree, path)
        values[path] = {
            "value": None if isinstance(value, Mapping) else value,
            "read": None if isinstance(value, Mapping) else value_at(first, path),
            "confidence": document.confidence.get(path),
            "eye": needs_eye(document, entry.kind, path),
            "decided": last.get(path) or ("row" if is_decided(path, entry.decisions) else None),
        }
    return {
        "document": document.sha256,
        "file": document.file,
        "audit": entry.kind == "audit",
        "state": entry.state,
        "seen": entry.last,
        "question": document.asked.get("prompt", ""),
        "problem": reading.get("problem"),
        "calibrated": reading.get("calibrated", True),
        "pages": len(document.media),
        "media": [item.kind for item in document.media],
        "rows": rows,
        "next_rows": {path: _next_row(path, first, entry) for path in rows},
        "values": values,
        "left": undecided(entry, schema),
        "candidates": reading.get("candidates") or {},
        "where": reading.get("where") or {},
    }


def _next_row(path: str, first: Any, entry: Entry) -> int:
    """A number that no row of a list had, removed ones included."""
    read = value_at(first, path)
    numbers = [int(number) for number in read] if isinstance(read, Mapping) else []
    begin = f"{path}."
    decided = [item.field.removeprefix(begin) for item in entry.decisions if item.field.startswith(begin)]
    return max([-1, *numbers, *(int(field.partition(".")[0]) for field in decided)]) + 1


def _rows(tree: Any, schema: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, list[int]]]:
    """The numbers of the rows of each list, by its path."""
    if schema.get("type") == "object":
        inner = tree if isinstance(tree, Mapping) else {}
        for name, part in schema["properties"].items():
            yield from _rows(inner.get(name), part, f"{prefix}{name}.")
    elif schema.get("type") == "array":
        rows = tree if isinstance(tree, Mapping) else {}
        yield prefix.removesuffix("."), list(rows)
        for number, row in rows.items():
            yield from _rows(row, schema["items"], f"{prefix}{number}.")


def form(store: ReviewStore) -> dict[str, Any]:
    """What the form is made of: the schema of a reply, the kind of each field, and an empty row of each list."""
    kinds: Mapping[str, str] = getattr(store.task, "kinds", {})
    return {"schema": store.schema, "kinds": dict(kinds), "blank": dict(_blank(store.schema))}


def _blank(schema: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    if schema.get("type") == "object":
        for name, part in schema["properties"].items():
            yield from _blank(part, f"{prefix}{name}.")
    elif schema.get("type") == "array":
        yield prefix.removesuffix("."), to_fields(None, schema["items"])
        yield from _blank(schema["items"], prefix)


def progress_view(store: ReviewStore) -> dict[str, Any]:
    """Counts of the whole review."""
    return dataclasses.asdict(store.progress())
