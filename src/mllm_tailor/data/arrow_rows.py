"""Rows of Parquet files and of the Arrow files that Hugging Face's `datasets` saves, a few at a time."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from mllm_tailor.core.errors import DataError
from mllm_tailor.core.io import MAX_RATIO, unpacked_limit
from mllm_tailor.core.optional import need
from mllm_tailor.core.strict_json import parse_json
from mllm_tailor.data.issues import DataIssue
from mllm_tailor.data.jsonl import Row

BATCH_ROWS = 64  # rows held as Python objects at once; embedded images make rows large
Decode = Callable[[Any], Any]


def first_arrow_row(path: Path) -> dict[str, Any]:
    """The first row by column name; None for every column where there is no row; empty when unreadable."""
    try:
        batches = _batches(path, 1)
        batch = next(batches, None)
        if batch is not None and batch.num_rows:
            return _decoded(batch.slice(0, 1).to_pylist()[0], _decoders(batch.schema))
        return dict.fromkeys(_schema(path).names)
    except (DataError, OSError, ValueError, _arrow(path).ArrowException):
        return {}


def arrow_rows(path: Path, split: str | None = None) -> Iterator[Row | DataIssue]:
    """Every row, in order; class numbers become class names and JSON columns are decoded."""
    number = 0
    try:
        for batch in _batches(path, BATCH_ROWS):
            decoders = _decoders(batch.schema)
            for values in batch.to_pylist():
                number += 1
                yield Row(f"{path}:{number}", _decoded(values, decoders), split)
    except DataError as error:
        yield DataIssue.of(error, str(path))
    except (OSError, ValueError, _arrow(path).ArrowException):
        yield DataIssue(f"{path}:{number + 1}", "the table is damaged or cut off here", "copy it again from its source")


def _arrow(path: Path) -> Any:
    """The library, which the extra `arrow` brings."""
    return need("pyarrow", "arrow", str(path))


def _schema(path: Path) -> Any:
    """A `pyarrow.Schema`."""
    pa = _arrow(path)
    if path.suffix.lower() == ".parquet":
        return need("pyarrow.parquet", "arrow", str(path)).read_schema(path)
    with pa.memory_map(str(path)) as source:
        return pa.ipc.open_stream(source).schema


def _batches(path: Path, size: int) -> Iterator[Any]:
    """`pyarrow.RecordBatch`es of at most `size` rows."""
    pa = _arrow(path)
    if path.suffix.lower() == ".parquet":
        with need("pyarrow.parquet", "arrow", str(path)).ParquetFile(path) as table:
            groups = (table.metadata.row_group(number) for number in range(table.metadata.num_row_groups))
            if sum(group.total_byte_size for group in groups) > unpacked_limit(path):
                raise DataError(f"{path}: unpacks to over {MAX_RATIO} times its size — unpack it yourself")
            yield from table.iter_batches(batch_size=size)
        return
    with pa.memory_map(str(path)) as source:
        for batch in pa.ipc.open_stream(source):
            yield from (batch.slice(start, size) for start in range(0, batch.num_rows, size))


def _decoded(values: dict[str, Any], decoders: dict[str, Decode]) -> dict[str, Any]:
    return values | {name: decode(values[name]) for name, decode in decoders.items()} if decoders else values


def _decoders(schema: Any) -> dict[str, Decode]:
    """How to read columns whose stored values need the features that Hugging Face keeps beside the schema."""
    try:
        features: Any = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        pairs = [(name, _decoder(feature)) for name, feature in features.items() if name in schema.names]
    except (KeyError, ValueError, TypeError, AttributeError):
        return {}  # no such note, or another format of it: the values are read as stored
    return {name: decode for name, decode in pairs if decode is not None}


def _decoder(feature: Any) -> Decode | None:
    """The decoder of one feature, nested ones included; None where values are read as stored."""
    if isinstance(feature, list):  # the older notation of a list
        inner = _decoder(feature[0]) if feature else None
        return inner and _over_list(inner)
    if not isinstance(feature, dict):
        return None
    kind = feature.get("_type")
    if kind == "ClassLabel":
        names = [str(name) for name in feature.get("names") or ()]
        return lambda value: _class_name(value, names)
    if kind == "Json":
        return _json_value
    if kind in ("Sequence", "List", "LargeList"):
        inner = _decoder(feature.get("feature"))
        return inner and _over_list(inner)
    if kind is None:  # a struct
        decoders = {name: decode for name, part in feature.items() if (decode := _decoder(part)) is not None}
        return _over_struct(decoders) if decoders else None
    return None


def _class_name(value: Any, names: Sequence[str]) -> Any:
    """The name of a class by its number; None for -1, which `datasets` writes where there is no label."""
    if not isinstance(value, int) or isinstance(value, bool):
        return value
    return names[value] if 0 <= value < len(names) else None if value == -1 else value


def _json_value(value: Any) -> Any:
    """A value stored as JSON text; text that is no JSON stays as it is."""
    try:
        return parse_json(value) if isinstance(value, str) else value
    except ValueError:
        return value


def _over_list(inner: Decode) -> Decode:
    """For lists; a `Sequence` of structs is stored as a struct of lists and becomes a list of structs."""

    def decode(value: Any) -> Any:
        if isinstance(value, dict) and all(isinstance(column, list) for column in value.values()):
            value = [dict(zip(value, row, strict=False)) for row in zip(*value.values(), strict=False)]
        return [inner(item) for item in value] if isinstance(value, list) else value

    return decode


def _over_struct(decoders: dict[str, Decode]) -> Decode:
    def decode(value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        return {name: decoders[name](item) if name in decoders else item for name, item in value.items()}

    return decode
