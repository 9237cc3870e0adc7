"""The fingerprints of a run's data as they were written: of every label row and media file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from mllm_tailor.core.errors import RunError
from mllm_tailor.core.io import fingerprint, read_jsonl
from mllm_tailor.core.sample import Media
from mllm_tailor.run.data_record import plain, read_held_out
from mllm_tailor.run.run_dir import RunFolder

Row = Mapping[str, Any]


def read_fingerprints(folder: RunFolder) -> list[Row]:
    """The rows of data_fingerprints.jsonl; none where the run has not begun.

    Raises:
        RunError: for a row of another shape.
    """
    if not folder.fingerprints.is_file():
        return []
    rows = []
    for number, row in read_jsonl(folder.fingerprints):
        if not _is_row(row):
            raise RunError(
                f"{folder.fingerprints}:{number}: not a fingerprint — the file is damaged: begin anew (--fresh)"
            )
        rows.append(row)
    return rows


def _is_row(row: Any) -> bool:
    if not isinstance(row, dict) or not isinstance(row.get("sha256"), str):
        return False
    return isinstance(row.get("id"), str) or (isinstance(row.get("file"), str) and "stamp" in row)


def held_out_contents(folder: RunFolder) -> dict[str, str]:
    """A fingerprint of every held-out sample, by id: what it asks, its labels and the bytes of its files.

    It does not depend on where the files lie, so that runs of two machines can be compared.
    """
    sums = {row["file"]: row["sha256"] for row in read_fingerprints(folder) if "file" in row}
    contents = {}
    for sample in read_held_out(folder).samples:
        stated = plain(replace(sample, media=(), extra={}, source="", group=None, split=None))
        media = [
            [item.kind, item.span, item.page, [sums.get(str(path), path.name) for path in paths_of(item)]]
            for item in sample.media
        ]
        contents[sample.id] = fingerprint(stated, media)
    return contents


def paths_of(media: Media) -> list[Path]:
    return [*dict.fromkeys(path for path in (media.path, *media.views) if path is not None)]
