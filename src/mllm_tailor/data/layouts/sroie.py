"""SROIE as found: a folder of pictures beside a folder with one label file each (JSON, or `key: value` lines)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mllm_tailor.core.errors import DataError
from mllm_tailor.core.io import MAX_LINE_BYTES, read_limited
from mllm_tailor.core.sample import Sample
from mllm_tailor.core.strict_json import is_text, parse_json
from mllm_tailor.data.columns import SPLIT_COLUMNS, group_key
from mllm_tailor.data.issues import DataIssue
from mllm_tailor.data.json_rows import split_of
from mllm_tailor.data.jsonl import Row, jsonl_rows, kind_of
from mllm_tailor.data.layouts.base import Folder, Layout
from mllm_tailor.media.open import pages_of
from mllm_tailor.media.source import inside, media_kind

MEDIA_NAMES = ("images", "img")
LABEL_NAMES = ("entities", "key", "annotations")
LABEL_SUFFIXES = (".json", ".txt")


def _pair(folder: Path) -> tuple[Path, Path] | None:
    """The folder of pictures and the folder of labels, if both are there."""
    media = next((folder / name for name in MEDIA_NAMES if (folder / name).is_dir()), None)
    labels = next((folder / name for name in LABEL_NAMES if (folder / name).is_dir()), None)
    return (media, labels) if media and labels else None


def _splits(path: Path) -> list[tuple[Path, str | None]]:
    """The folders that hold such a pair: `path` itself, or its `train`, `test`, ... folders."""
    if not path.is_dir():
        return []
    if _pair(path):
        return [(path, None)]
    return [(inner, split_of(inner.name)) for inner in sorted(path.iterdir()) if split_of(inner.name) and _pair(inner)]


def detect(folder: Folder) -> bool:
    """Whether pictures and labels lie in two folders side by side."""
    return bool(_splits(folder.path))


def read(folder: Folder) -> Iterator[Sample | DataIssue]:
    """Pictures in order of name, each with its labels; one without the other is a fault."""
    for inner, split in _splits(folder.path):
        pair = _pair(inner)
        assert pair is not None, "only folders with a pair are listed"
        yield from _read_pair(inner, *pair, split)


def _read_pair(folder: Path, media: Path, labels: Path, part: str | None) -> Iterator[Sample | DataIssue]:
    beside, faults = _metadata(folder)
    yield from faults
    pictures = {file.stem: file for file in sorted(media.iterdir()) if media_kind(file)}
    files = {file.stem: file for file in sorted(labels.iterdir()) if file.suffix.lower() in LABEL_SUFFIXES}
    for stem in sorted(pictures.keys() | files.keys()):
        if not is_text(stem):
            yield DataIssue(f"{media}/{stem!a}:1", "its file name is not UTF-8 text", "rename the file")
        elif stem not in files:
            yield DataIssue(f"{pictures[stem]}:1", f"no label file in {labels.name}", "add its label, or move it away")
        elif stem not in pictures:
            yield DataIssue(
                f"{files[stem]}:1", f"no picture in {media.name} for this label", "restore it, or remove it"
            )
        else:
            yield _sample(folder, pictures[stem], files[stem], beside.get(stem, {}), part)


def _sample(
    folder: Path, picture: Path, label: Path, beside: Mapping[str, Any], part: str | None
) -> Sample | DataIssue:
    source = f"{label}:1"
    try:
        path = inside(folder, str(picture.relative_to(folder)), source)
        media = pages_of(path, media_kind(picture) or "image")
        fields = _labels(label, source)
    except DataError as error:
        return DataIssue.of(error, source)
    split = next((str(beside[name]) for name in SPLIT_COLUMNS if isinstance(beside.get(name), str)), part)
    extra = {name: value for name, value in beside.items() if name not in ("file_name", "id", *LABEL_NAMES)}
    group = group_key(beside.get("group"))
    return Sample(picture.stem, media, fields=fields, group=group, split=split, source=source, extra=extra)


def _labels(file: Path, source: str) -> dict[str, Any]:
    try:
        text = read_limited(file, MAX_LINE_BYTES).decode("utf-8-sig").strip()
        if not text:
            raise DataError(f"{source}: the label file is empty — fill it in, or remove it with its picture")
        value = parse_json(text) if file.suffix.lower() == ".json" or text[0] in "{[" else _lines(text, source)
    except UnicodeDecodeError:
        raise DataError(f"{source}: not UTF-8 text — save the file as UTF-8") from None
    except OSError as error:
        raise DataError(f"{source}: cannot be read ({error.strerror}) — check its permissions") from None
    except ValueError as error:
        raise DataError(f"{source}: not valid JSON ({error}) — fix the label") from None
    if not isinstance(value, dict):
        raise DataError(f"{source}: a label is an object such as {{…}}, found {kind_of(value)} — fix the label")
    return value


def _lines(text: str, source: str) -> dict[str, str]:
    """Labels written as `key: value`, one a line."""
    fields: dict[str, str] = {}
    for number, line in enumerate(filter(str.strip, text.splitlines()), 1):
        key, colon, value = line.partition(":")
        if not colon or key.strip() in fields:
            raise DataError(f"{source}: label line {number} is not a new `key: value` — fix the label")
        fields[key.strip()] = value.strip()
    return fields


def _metadata(folder: Path) -> tuple[dict[str, dict[str, Any]], list[DataIssue]]:
    """What a `metadata.jsonl` beside the folders knows of each picture (its part, its transcript), by stem."""
    file = folder / "metadata.jsonl"
    rows = list(jsonl_rows(file)) if file.is_file() else []
    known = [row.values for row in rows if isinstance(row, Row)]
    beside = {Path(values["file_name"]).stem: values for values in known if isinstance(values.get("file_name"), str)}
    return beside, [row for row in rows if isinstance(row, DataIssue)]


LAYOUT = Layout(detect, read, beside=("metadata.jsonl",))
