"""InternVL's meta JSON: `{name: {"root": …, "annotation": ….jsonl, "repeat_time": …}}`, rows as LLaVA writes them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mllm_tailor.core.errors import DataError
from mllm_tailor.core.io import read_json
from mllm_tailor.core.sample import Sample
from mllm_tailor.data.issues import DataIssue
from mllm_tailor.data.jsonl import build, jsonl_rows
from mllm_tailor.data.keys import unread_keys
from mllm_tailor.data.layouts.base import Folder, LabelFile, Layout
from mllm_tailor.data.layouts.llava import samples_of
from mllm_tailor.media.source import inside

SET_KEYS = ("root", "annotation", "repeat_time", "length", "data_augment")


def _files(folder: Folder) -> list[LabelFile]:
    return [file for file in folder.label_files(".json") if _is_meta(file.first)]


def _is_meta(values: dict[str, Any]) -> bool:
    return bool(values) and all(isinstance(entry, dict) and "annotation" in entry for entry in values.values())


def detect(folder: Folder) -> bool:
    """Whether a JSON file's entries all name an `annotation`."""
    return bool(_files(folder))


def read(folder: Folder) -> Iterator[Sample | DataIssue]:
    """Every set the meta file names, each row once: `repeat_time` weighs training and is no part of the data."""
    for file in (label_file.path for label_file in _files(folder)):
        try:
            entries = read_json(file)
        except DataError as error:
            yield DataIssue.of(error, str(file))
            continue
        for name, entry in entries.items():
            yield from _read_set(file, name, entry)


def _read_set(file: Path, name: str, entry: dict[str, Any]) -> Iterator[Sample | DataIssue]:
    source = f"{file}:{name}"
    try:
        annotation, root = _places(file, entry, source)
    except DataError as error:
        yield DataIssue.of(error, source)
        return
    yield from unread_keys(entry, SET_KEYS, source, "set", "set the same in the recipe, or take it out")
    if entry.get("repeat_time", 1) != 1:
        repeat = entry["repeat_time"]
        yield DataIssue(source, f"`repeat_time` {repeat} is not applied", "every row is read once", severity="warning")
    if entry.get("data_augment"):
        yield DataIssue(source, "`data_augment` is not applied", "set train.augment", severity="warning")
    yield from build(jsonl_rows(annotation), lambda row: samples_of(row, (root,)))


def _places(file: Path, entry: dict[str, Any], source: str) -> tuple[Path, Path]:
    """The annotation file and the folder of the media, relative to the meta file or, as InternVL's own scripts have it,
    to the working directory.

    Raises:
        DataError: naming the set, when neither holds the annotation file.
    """
    named, root = _text(entry, "annotation", source), _text(entry, "root", source)
    for base in (file.parent, Path.cwd()):
        annotation = inside(base, named, source)
        if annotation.is_file():
            return annotation, inside(base, root, source)
    raise DataError(
        f"{source}: no annotation file {named} — paths are relative to the meta file, or to where you start `tailor`"
    )


def _text(entry: dict[str, Any], key: str, source: str) -> str:
    value = entry.get(key, "." if key == "root" else None)
    if not isinstance(value, str):
        raise DataError(f"{source}: `{key}` should be a path — fix the meta file")
    return value or "."


def _all_files(folder: Folder) -> list[LabelFile]:
    """The meta files and the files of rows beside them that they name."""
    metas = _files(folder)
    named = [(meta.path.parent / str(entry["annotation"])) for meta in metas for entry in meta.first.values()]
    return [*metas, *map(LabelFile, named)]


LAYOUT = Layout(detect, read, _all_files)
