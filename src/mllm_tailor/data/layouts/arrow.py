"""Arrow tables: Hugging Face datasets saved to disk, and Parquet files; pictures as paths or `{bytes, path}`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mllm_tailor.core.sample import Sample
from mllm_tailor.data.columns import MEDIA_COLUMNS, samples_of
from mllm_tailor.data.issues import DataIssue
from mllm_tailor.data.jsonl import Row, build
from mllm_tailor.data.layouts.base import Layout, label_files, part_of, roots_of

BATCH_ROWS = 64  # rows held as Python objects at once; embedded pictures make rows large
FILE_COLUMNS = frozenset(name for group in MEDIA_COLUMNS for name in group)


def _saved_folders(path: Path) -> list[tuple[Path, str | None]]:
    """Folders `save_to_disk` wrote: the folder itself, or one for each part under `dataset_dict.json`."""
    if (path / "dataset_dict.json").is_file():
        return [(inner, inner.name) for inner in sorted(path.iterdir()) if (inner / "state.json").is_file()]
    return [(path, part_of(path.name))] if (path / "state.json").is_file() else []


def detect_saved(path: Path) -> bool:
    """Whether `save_to_disk` wrote this folder."""
    return path.is_dir() and bool(_saved_folders(path))


def read_saved(path: Path) -> Iterator[Sample | DataIssue]:
    """Every row of every .arrow file, in order."""
    for folder, part in _saved_folders(path):
        for file in sorted(folder.glob("*.arrow")):
            yield from _read(file, _stream_batches(file), part, path)


def detect_parquet(path: Path) -> bool:
    """Whether there are Parquet files with a file column."""
    return any(FILE_COLUMNS & set(_column_names(file)) for file, _ in label_files(path, ".parquet"))


def read_parquet(path: Path) -> Iterator[Sample | DataIssue]:
    """Every row of every Parquet file, in order."""
    for file, part in label_files(path, ".parquet"):
        yield from _read(file, _parquet_batches(file), part, path)


def _column_names(file: Path) -> list[str]:
    try:
        return list(pq.read_schema(file).names)
    except (OSError, pa.ArrowException):
        return []


def _stream_batches(file: Path) -> Iterator[pa.RecordBatch]:
    with pa.memory_map(str(file)) as source:
        for batch in pa.ipc.open_stream(source):
            yield from (batch.slice(start, BATCH_ROWS) for start in range(0, batch.num_rows, BATCH_ROWS))


def _parquet_batches(file: Path) -> Iterator[pa.RecordBatch]:
    with pq.ParquetFile(file) as table:
        yield from table.iter_batches(batch_size=BATCH_ROWS)


def _read(file: Path, batches: Iterator[pa.RecordBatch], part: str | None, path: Path) -> Iterator[Sample | DataIssue]:
    roots = roots_of(file, path)
    return build(_rows(file, batches, part), lambda row: samples_of(row, roots))


def _rows(file: Path, batches: Iterator[pa.RecordBatch], part: str | None) -> Iterator[Row | DataIssue]:
    number = 0
    try:
        for batch in batches:
            names = _class_names(batch.schema)
            for values in batch.to_pylist():
                number += 1
                for column, labels in names.items():
                    if isinstance(values[column], int) and 0 <= values[column] < len(labels):
                        values[column] = labels[values[column]]
                yield Row(f"{file}:{number}", values, part)
    except (OSError, ValueError, pa.ArrowException):
        yield DataIssue(f"{file}:{number + 1}", "the table is damaged or cut off here", "copy it again from its source")


def _class_names(schema: pa.Schema) -> dict[str, list[str]]:
    """Names of the numbered classes of each column, which Hugging Face keeps beside the schema."""
    try:
        features: Any = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return {
            column: [str(name) for name in feature["names"]]
            for column, feature in features.items()
            if isinstance(feature, dict) and feature.get("_type") == "ClassLabel" and column in schema.names
        }
    except (KeyError, ValueError, TypeError, AttributeError):
        return {}  # no such note, or one we cannot read: the numbers stand for themselves


SAVED = Layout(detect_saved, read_saved)
PARQUET = Layout(detect_parquet, read_parquet)
