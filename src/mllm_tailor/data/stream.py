"""Samples of a data set that is larger than memory: read once, kept in a file, and read again when they are needed.

Any layout can be streamed: its reader yields one sample after the other. Each becomes a line of a file, and media that
came inside a row become files named by their SHA-256. While they are written, 16 bytes a sample stay in memory;
afterwards the operating system maps the file.
"""

from __future__ import annotations

import hashlib
import json
import mmap
from array import array
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import TypeAdapter

from mllm_tailor.core.errors import DataError
from mllm_tailor.core.io import atomic_folder, write_atomic, write_json
from mllm_tailor.core.lazy_sequence import LazySequence
from mllm_tailor.core.remote import local
from mllm_tailor.core.sample import Media, Sample
from mllm_tailor.data.damaged_files import damaged_files
from mllm_tailor.data.detect import detect
from mllm_tailor.data.issues import DataIssue
from mllm_tailor.data.layouts import LAYOUTS
from mllm_tailor.data.layouts.base import Folder, Layout

SUFFIXES = (".parquet", ".arrow", ".tar", ".tar.gz", ".tgz")  # of files with media inside rows
LARGE = 2 * 2**30  # bytes of them; no share of the free memory, so that a run that is continued decides alike
SAMPLE: TypeAdapter[Sample] = TypeAdapter(Sample)
ROWS, STARTS, FACTS, MEDIA = "samples.jsonl", "starts.bin", "stream.json", "media"


def write_stream(
    path: str | Path,
    folder: Path,
    layout: str | None = None,
    on_issue: Callable[[DataIssue], object] | None = None,
    media_root: str | Path | None = None,
) -> LazySequence[Sample]:
    """Read a data set once into `folder`; rows that cannot be used are given to `on_issue`.

    Raises:
        DataError: for a row that cannot be used, where there is no `on_issue`; for a data set without samples or with
            an id that two rows share.
    """
    source = Folder(local(path), local(media_root) if media_root is not None else None)
    name = layout or detect(source)[0]
    with atomic_folder(folder) as partial:
        digest, ids, starts = hashlib.sha256(), array("Q"), array("Q")
        with (partial / ROWS).open("wb") as rows:
            for sample in _samples(LAYOUTS.load(name), source, on_issue):
                line = _line(sample, partial / MEDIA, folder / MEDIA)
                digest.update(line)
                ids.append(int.from_bytes(hashlib.blake2b(sample.id.encode(), digest_size=8).digest()))
                starts.append(rows.tell())
                rows.write(line)
            starts.append(rows.tell())
        if not ids:
            raise DataError(f"{path}: no readable sample — check the files")
        if len(np.unique(np.frombuffer(ids, np.uint64))) < len(ids):
            raise DataError(f"{path}: several samples have the same id — give each row an id of its own to stream them")
        with (partial / STARTS).open("wb") as file:
            starts.tofile(file)
        write_json(partial / FACTS, {"layout": name, "samples": len(ids), "sha256": digest.hexdigest()})
    return open_stream(folder)


def _samples(reader: Layout, source: Folder, on_issue: Callable[[DataIssue], object] | None) -> Iterator[Sample]:
    for item in chain(reader.read(source), damaged_files(source, reader)):
        if isinstance(item, Sample):
            yield item
        elif on_issue is not None:
            on_issue(item)
        elif item.severity == "error":
            raise DataError(str(item))


def open_stream(folder: Path) -> LazySequence[Sample]:
    """The samples that `write_stream` wrote.

    Raises:
        DataError: when the folder is damaged.
    """
    try:
        facts = json.loads((folder / FACTS).read_text(encoding="utf-8"))
        length, key = int(facts["samples"]), str(facts["sha256"])
        rows, starts = _mapped(folder / ROWS), memoryview(_mapped(folder / STARTS)).cast("Q")
    except (OSError, ValueError, KeyError) as error:
        reason = f"no whole stream of samples ({error})"
        raise DataError(f"{folder}: {reason} — remove the folder to write it again") from error
    if len(starts) != length + 1 or starts[length] != len(rows):
        raise DataError(f"{folder}: the stream of samples is cut off — remove the folder to write it again")
    return LazySequence(length, lambda index: SAMPLE.validate_json(rows[starts[index] : starts[index + 1]]), key)


def _mapped(path: Path) -> mmap.mmap:
    with path.open("rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def holds_media(path: Path) -> bool:
    """Whether the files of a data set that hold media inside rows are too large for memory."""
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return sum(file.stat().st_size for file in files if file.name.lower().endswith(SUFFIXES)) > LARGE


def with_media_in(folder: Path, sample: Sample, final: Path | None = None) -> Sample:
    """The sample with its media as files of `folder`, which will be called `final`."""
    if all(media.data is None for media in sample.media):
        return sample
    return replace(sample, media=tuple(_as_file(media, folder, final or folder) for media in sample.media))


def _line(sample: Sample, folder: Path, final: Path) -> bytes:
    """The sample as a line of JSON, its media as files that will lie in `final`."""
    values: dict[str, Any] = SAMPLE.dump_python(with_media_in(folder, sample, final), mode="json")
    return json.dumps(values, ensure_ascii=False).encode() + b"\n"


def _as_file(media: Media, folder: Path, final: Path) -> Media:
    if media.data is None:
        return media
    name = hashlib.sha256(media.data).hexdigest()
    target = folder / name[:2] / name
    if not target.is_file():
        target.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(target, media.data)
    return replace(media, path=final / name[:2] / name, data=None)
