"""Rows of named columns, one of which names the file: JSON lines and lists, tables, Parquet and saved data sets."""

from __future__ import annotations

from mllm_tailor.data.columns import MEDIA_COLUMNS, samples_of
from mllm_tailor.data.layouts.base import Folder, LabelFile, Layout, files_layout

FILE_COLUMNS = frozenset(name for group in MEDIA_COLUMNS for name in group)
METADATA_STEM = "metadata"  # the file that Hugging Face's image folders name so is meant where there are others


def _layout(*suffixes: str) -> Layout:
    def files(folder: Folder) -> list[LabelFile]:
        label_files = folder.label_files(*suffixes)
        named = [file for file in label_files if file.path.stem.lower() == METADATA_STEM and file.first]
        return named or [
            file
            for file in label_files
            if FILE_COLUMNS & set(file.first) or (not file.first and file.suffix == ".arrow")
        ]

    return files_layout(files, samples_of)


METADATA = _layout(".jsonl", ".ndjson")
JSON = _layout(".json")
CSV = _layout(".csv", ".tsv")
PARQUET = _layout(".parquet")
HUGGING_FACE = _layout(".arrow")
