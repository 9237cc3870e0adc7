"""Predictions in parts: a folder of JSONL files, each written whole by one of several workers.

A row is known by what was read (the content of its files and the question) and by the file's name. A part is named
after its rows, so that a part that two workers made, because one of them was thought dead, is one file. A second call
makes only the rows that are missing.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mllm_tailor.core.errors import DataError, RunError
from mllm_tailor.core.io import fingerprint, read_json, read_jsonl, sha256, write_json, write_jsonl
from mllm_tailor.core.sample import Media, Prediction, Sample
from mllm_tailor.run.new_files import Predict, prediction_row

logger = logging.getLogger(__name__)
SETTINGS = "settings.json"  # in the folder: what model and settings the parts are of
PATTERN = "part-*.jsonl"


@dataclass(frozen=True)
class KeyedSample:
    """A sample and the hash of what is read of it."""

    sample: Sample
    key: str

    @property
    def name(self) -> Name:
        """What its row is known by."""
        return self.key, str(self.sample.extra.get("file") or self.sample.id), self.sample.id


Name = tuple[str, str, str]  # hash, file (or id, where there is none) and id
Block = tuple[KeyedSample, ...]


def with_key(sample: Sample) -> KeyedSample:
    """Read the sample's files once for their hashes. A file that cannot be read has the hash of its name."""
    earlier = [[turn.role, turn.text] for turn in sample.history]
    asked = [sample.prompt, list(sample.options), sample.system, earlier, list(sample.positions)]
    media = [[item.kind, item.page, item.span, _contents(item)] for item in sample.media]
    return KeyedSample(sample, fingerprint(asked, media, sample.extra.get("problem")))


def _contents(media: Media) -> list[str]:
    if media.data is not None:
        return [fingerprint(media.data)]
    paths = media.views or ((media.path,) if media.path is not None else ())
    return [sha256(path) if path.is_file() else str(path) for path in paths]


def begin(out: Path, key: str) -> None:
    """Make the folder of the parts, which are all of one model and its settings.

    Raises:
        RunError: when it is a file, or holds something else.
    """
    if out.exists() and not out.is_dir():
        raise RunError(f"{out}: parts go into a folder, and this is none — name another one with --out")
    settings = out / SETTINGS
    if settings.is_file():
        if read_json(settings).get("key") != key:
            raise RunError(f"{out}: predictions of another model or other settings — name another folder with --out")
    elif out.is_dir() and any(out.iterdir()):
        raise RunError(f"{out}: is not empty and holds no predictions in parts — name another folder with --out")
    else:
        write_json(settings, {"key": key})


def keep_present(
    out: Path, samples: Iterable[KeyedSample], on_change: Callable[[Path], object] = lambda _: None
) -> set[Name]:
    """The rows that need not be made again, by name.

    Rows with a problem, which are tried again, and rows of files that have changed leave their parts, whose paths
    `on_change` is given. Rows of files that are not among the samples stay.

    Raises:
        DataError: for a damaged part.
    """
    wanted = {sample.name for sample in samples}
    files = {name[1] for name in wanted}
    kept: set[Name] = set()
    for part in sorted(out.glob(PATTERN)):
        rows, stay = [], []
        for row in _rows(part):
            rows.append(row)
            name = (row["sha256"], str(row.get("file") or row["id"]), row["id"])
            replaced = name[1] in files and (name not in wanted or "problem" in row)
            if not replaced and name not in kept:
                kept.add(name)
                stay.append(row)
        if len(stay) < len(rows):
            logger.info("%s: %d rows are made again", part, len(rows) - len(stay))
            if stay:
                write_jsonl(part, stay)
            else:
                part.unlink()
            on_change(part)
    return kept


def _rows(part: Path) -> Iterator[dict[str, Any]]:
    try:
        for _, row in read_jsonl(part):
            if not isinstance(row, Mapping) or not {"id", "sha256"} <= row.keys():
                raise DataError(f"{part}: not a part of predictions")
            yield dict(row)
    except DataError as error:
        raise DataError(f"{error} — remove this file; its rows are made again") from error


def in_blocks(samples: Sequence[KeyedSample], size: int) -> list[Block]:
    """Blocks of at most `size` samples, in order."""
    return [tuple(samples[start : start + size]) for start in range(0, len(samples), size)]


def part_of(out: Path, block: Block) -> Path:
    """The file of a block, named after its rows."""
    return out / f"part-{fingerprint([item.name for item in block])[:16]}.jsonl"


def predict_part(out: Path, block: Block, predict: Predict) -> list[dict[str, Any]]:
    """Read a block and write its part; returns the rows with a problem."""
    keys = {item.sample.id: item for item in block}
    predictions: dict[str, Prediction] = {}

    def keep(prediction: Prediction) -> None:
        predictions[prediction.id] = prediction

    predict([item.sample for item in block], keep)
    rows = [
        {**prediction_row(item.sample, predictions[sample_id]), "sha256": item.key} for sample_id, item in keys.items()
    ]
    write_jsonl(part_of(out, block), rows)
    return [row for row in rows if "problem" in row]
