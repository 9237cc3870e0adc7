"""The values of a reply by their paths (`total`, `items.0.price`), and how decisions change them.

Rows of a list keep their number when another row is added or removed, so that a path always means the same value; their
order is that of the mapping.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from mllm_tailor.core.errors import DataError
from mllm_tailor.tasks import RegionTask, Task

Tree = dict[Any, Any]  # fields in which a list is a mapping from the number of a row to the row


def form_schema(task: Task) -> dict[str, Any]:
    """The JSON schema of a task's replies; of free text, one string for each field.

    Raises:
        DataError: for a task whose replies cannot be typed into a form.
    """
    if isinstance(task, RegionTask) or task.name == "match":
        raise DataError(
            f"a form has no place for replies of the task `{task.name}` — review fields, classes or answers"
        )
    stated = task.schema()
    if stated is not None and stated.get("type") == "object":
        return stated
    return {"type": "object", "properties": {name: {"type": "string"} for name in task.field_names}}


def to_tree(value: Any) -> Any:
    """Fields with each list of objects as a mapping by row number."""
    if isinstance(value, Mapping):
        return {key: to_tree(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return {number: to_tree(row) for number, row in enumerate(value)}
    return value


def to_fields(value: Any, schema: Mapping[str, Any]) -> Any:
    """The inverse of `to_tree`: every field of the schema, in its order; what is missing is empty."""
    kind = schema.get("type")
    if kind == "object":
        inner = value if isinstance(value, Mapping) else {}
        return {name: to_fields(inner.get(name), part) for name, part in schema["properties"].items()}
    if kind == "array":
        rows = value if isinstance(value, Mapping) else {}
        return [to_fields(row, schema["items"]) for row in rows.values()]
    if value is None and not _may_be_null(schema):
        return ""
    return value


def _may_be_null(schema: Mapping[str, Any]) -> bool:
    return isinstance(schema.get("type"), list) and "null" in schema["type"]


def value_paths(tree: Any, schema: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """The path of every value: of each single one, and of each list after its rows."""
    if schema.get("type") == "object":
        inner = tree if isinstance(tree, Mapping) else {}
        for name, part in schema["properties"].items():
            yield from value_paths(inner.get(name), part, f"{prefix}{name}.")
        return
    if schema.get("type") == "array":
        rows = tree if isinstance(tree, Mapping) else {}
        for number, row in rows.items():
            yield from value_paths(row, schema["items"], f"{prefix}{number}.")
    yield prefix.removesuffix(".")


def schema_at(schema: Mapping[str, Any], path: str) -> Mapping[str, Any]:
    """The schema of the value at a path.

    Raises:
        DataError: for a path that no reply has.
    """
    for key in path.split("."):
        kind = schema.get("type")
        if kind == "object" and key in schema["properties"]:
            schema = schema["properties"][key]
        elif kind == "array" and key.isascii() and key.isdigit():
            schema = schema["items"]
        else:
            raise DataError(f"`{path}` is no value of this task")
    return schema


def value_at(tree: Any, path: str) -> Any:
    """The value at a path; None where there is none."""
    for key in path.split("."):
        if not isinstance(tree, Mapping):
            return None
        tree = tree.get(int(key) if key.isdigit() and key not in tree else key)
    return tree


def set_value(tree: Tree, path: str, value: Any, schema: Mapping[str, Any]) -> None:
    """Put a value in its place; objects and rows on the way are made."""
    *outer, last = path.split(".")
    for key in outer:
        number: Any = int(key) if schema.get("type") == "array" else key
        schema = schema["items"] if schema.get("type") == "array" else schema["properties"][key]
        if not isinstance(tree.get(number), dict):
            tree[number] = {}
        tree = tree[number]
    tree[int(last) if schema.get("type") == "array" else last] = value


def remove_row(tree: Tree, path: str) -> None:
    """Take a row out of its list."""
    rows, number = _list_of(tree, path)
    rows.pop(number, None)


def place_row(tree: Tree, path: str, above: int | None) -> None:
    """Move a row of a list to stand above the row of this number; to the end where there is none."""
    rows, number = _list_of(tree, path)
    order = [other for other in rows if other != number]
    order.insert(order.index(above) if above in order else len(order), number)
    ordered = {other: rows[other] for other in order}
    rows.clear()
    rows.update(ordered)


def _list_of(tree: Tree, path: str) -> tuple[Tree, int]:
    """The list that holds a row, and the row's number."""
    outer, _, number = path.rpartition(".")
    rows = value_at(tree, outer)
    return (rows if isinstance(rows, dict) else {}), int(number)
