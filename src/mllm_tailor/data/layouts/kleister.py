"""Kleister: `documents/`, and for each split an `in.tsv` of names beside an `expected.tsv` of `key=value` pairs."""

from __future__ import annotations

import lzma
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path
from typing import IO

from mllm_tailor.core.errors import DataError
from mllm_tailor.core.sample import Sample
from mllm_tailor.core.strict_json import is_text
from mllm_tailor.data.columns import locate
from mllm_tailor.data.issues import DataIssue
from mllm_tailor.data.json_rows import split_of
from mllm_tailor.data.layouts.base import Folder, Layout
from mllm_tailor.media.open import pages_of
from mllm_tailor.media.source import media_kind

DOCUMENTS, EXPECTED = "documents", "expected.tsv"
INPUTS = ("in.tsv", "in.tsv.xz")
LONGEST_LINE = 64 * 2**20  # characters; the texts of long documents stand in the line


def _splits(folder: Folder) -> list[tuple[Path, Path]]:
    """(in.tsv, expected.tsv) of every split that has both."""
    if not (folder.path / DOCUMENTS).is_dir():
        return []
    pairs = []
    for inner in (folder.path, *(folder.path / entry.name for entry in folder.listing() if entry.is_dir())):
        inputs = next((inner / name for name in INPUTS if (inner / name).is_file()), None)
        if inputs and (inner / EXPECTED).is_file():
            pairs.append((inputs, inner / EXPECTED))
    return pairs


def read(folder: Folder) -> Iterator[Sample | DataIssue]:
    """One sample a document; underscores in a value stand for spaces."""
    for inputs, expected in _splits(folder):
        split = split_of(inputs.parent.name)
        try:
            with _opened(inputs) as names, expected.open(encoding="utf-8", errors="surrogateescape") as labels:
                for number, (line, label) in enumerate(zip_longest(_lines(names), _lines(labels)), 1):
                    source = f"{expected}:{number}"
                    if line is None or label is None:
                        yield DataIssue(source, "in.tsv and expected.tsv differ in length", "copy both again")
                        break
                    yield _sample(folder, line.split("\t")[0], label, (source, split))
        except (EOFError, lzma.LZMAError, OSError):
            yield DataIssue(str(inputs), "damaged or cut off", "copy it again")


def _opened(path: Path) -> IO[str]:
    if path.suffix == ".xz":
        return lzma.open(path, "rt", encoding="utf-8", errors="surrogateescape")
    return path.open(encoding="utf-8", errors="surrogateescape")


def _lines(file: IO[str]) -> Iterator[str]:
    while line := file.readline(LONGEST_LINE):
        yield line.rstrip("\n")


def _sample(folder: Folder, name: str, label: str, where: tuple[str, str | None]) -> Sample | DataIssue:
    source, split = where
    fields: dict[str, str] = {}
    try:
        if not (is_text(name) and is_text(label)):
            raise DataError(f"{source}: not UTF-8 text — save the file as UTF-8")
        for pair in label.split():
            key, equals, value = pair.partition("=")
            if not equals:
                raise DataError(f"{source}: {pair[:80]!r} is no `key=value` — correct the label")
            value = value.replace("_", " ")
            fields[key] = f"{fields[key]}, {value}" if key in fields else value
        media = pages_of(locate(name, (folder.path / DOCUMENTS,), source), media_kind(name) or "image")
    except DataError as error:
        return DataIssue.of(error, source)
    return Sample(Path(name).stem, media, fields=fields, split=split, source=source)


LAYOUT = Layout(lambda folder: bool(_splits(folder)), read, beside=INPUTS)
