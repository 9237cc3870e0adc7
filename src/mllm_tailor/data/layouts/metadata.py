"""A folder with `metadata.jsonl` (`file_name` plus fields, or donut's `ground_truth`), or any such JSONL."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from mllm_tailor.core.sample import Sample
from mllm_tailor.data.columns import media_columns, samples_of
from mllm_tailor.data.issues import DataIssue
from mllm_tailor.data.jsonl import build, first_object, jsonl_rows
from mllm_tailor.data.layouts.base import Layout, label_files, roots_of


def _files(path: Path) -> list[tuple[Path, str | None]]:
    """`metadata.jsonl` files where there are any, else every JSONL file whose first row names a file."""
    files = label_files(path, ".jsonl", ".ndjson")
    named = [found for found in files if found[0].stem == "metadata"]
    return named or [(file, part) for file, part in files if media_columns(first_object(file))]


def detect(path: Path) -> bool:
    """Whether there is such a file."""
    return bool(_files(path))


def read(path: Path) -> Iterator[Sample | DataIssue]:
    """One sample a row (donut's `gt_parses` give several)."""
    for file, part in _files(path):
        roots = roots_of(file, path)
        yield from build(jsonl_rows(file, part), lambda row, roots=roots: samples_of(row, roots))  # type: ignore[misc]


LAYOUT = Layout(detect, read)
