"""A run knows its data: fingerprints of every label row and file, and what to do when they are no longer the same."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mllm_tailor.core.errors import RunError
from mllm_tailor.core.io import fingerprint, sha256, write_jsonl
from mllm_tailor.core.manifest import forget, record, was_recorded
from mllm_tailor.core.sample import Sample
from mllm_tailor.core.summed_rows import write_rows
from mllm_tailor.run.data_record import plain
from mllm_tailor.run.dataset import Splits
from mllm_tailor.run.fingerprints import Row, paths_of, read_fingerprints
from mllm_tailor.run.run_dir import RunFolder, read_predictions

logger = logging.getLogger(__name__)
SHOWN = 20
WAYS_ON = "\nRestore them, or pass --accept-changes to compute again what followed from them, or --fresh to begin anew."
LEARNED = ("train", "dev", "mixed")  # splits that decide what the adapter becomes


@dataclass(frozen=True)
class Change:
    """Something of the data that is not as it was when the run began."""

    split: str
    id: str
    source: str  # file and row, or the file of an image, video or recording
    what: str


# --- Fingerprints ----------------------------------------------------------------------------------------------------


def fingerprint_data(splits: Splits, known: Iterable[Row] = ()) -> list[dict[str, Any]]:
    """A row for every sample that takes part and one for every file, each with its SHA-256.

    The bytes of a file are read again only where size or times differ from those of its row in `known`.
    """
    rows, files = [], dict[str, str]()
    for split, samples in _samples(splits):
        for sample in samples:
            media = [str(path) for item in sample.media for path in paths_of(item)]
            files |= dict.fromkeys(media, "media")
            rows.append(
                {
                    "split": split,
                    "id": sample.id,
                    "source": sample.source,
                    "sha256": fingerprint(_content(sample)),
                    "media": media,
                }
            )
            label_file = Path(sample.source.rpartition(":")[0] or sample.source)
            if label_file.is_file():
                files.setdefault(str(label_file.absolute()), "labels")
    earlier = {row["file"]: row for row in known if "file" in row}
    return [*rows, *(_file_row(path, kind, earlier.get(path)) for path, kind in files.items())]


def _samples(splits: Splits) -> Iterator[tuple[str, Sequence[Sample]]]:
    yield "train", splits.train
    yield "dev", splits.dev
    yield "held_out", splits.held_out
    mixed = {conversation.id: conversation.sample for conversation in splits.mixed_samples}
    yield "mixed", list(mixed.values())


def _content(sample: Sample) -> dict[str, Any]:
    """What a sample states, its media as they are named; which group and row it has may change with other rows."""
    values = plain(replace(sample, media=()))
    values["media"] = [
        sorted(str(path) for path in paths_of(item)) or [fingerprint(item.data)] for item in sample.media
    ]
    return {key: value for key, value in values.items() if key not in ("source", "group", "split")}


def _file_row(path: str, kind: str, known: Row | None) -> dict[str, Any]:
    status = Path(path).stat()
    stamp = [status.st_size, status.st_mtime_ns, status.st_ctime_ns]
    same = known is not None and known["stamp"] == stamp
    checksum = known["sha256"] if known is not None and same else sha256(Path(path))
    return {"file": path, "kind": kind, "stamp": stamp, "sha256": checksum}


# --- Changes ---------------------------------------------------------------------------------------------------------


def find_changes(before: Sequence[Row], now: Sequence[Row]) -> list[Change]:
    """What differs between two lists of `fingerprint_data`, sample by sample."""
    files = [{row["file"]: row["sha256"] for row in rows if "file" in row} for rows in (before, now)]
    samples = [{row["id"]: row for row in rows if "id" in row} for rows in (before, now)]
    changes: list[Change] = []
    for identifier in {**samples[0], **samples[1]}:
        old, new = (rows.get(identifier) for rows in samples)
        changes += _sample_changes(identifier, old, new, files)
    return changes


def _sample_changes(
    identifier: str, old: Row | None, new: Row | None, files: Sequence[Mapping[str, str]]
) -> Iterator[Change]:
    if old is None or new is None:
        row = old or new
        assert row is not None, "one of the two has it"
        yield Change(row["split"], identifier, row["source"], "removed" if new is None else "added")
        return
    if old["split"] != new["split"]:
        yield Change(old["split"], identifier, new["source"], f"moved to the split {new['split']}")
        yield Change(new["split"], identifier, new["source"], f"moved from the split {old['split']}")
    if old["sha256"] != new["sha256"]:
        yield Change(new["split"], identifier, new["source"], "label or question edited")
    for path in new["media"]:
        if path in files[0] and files[0][path] != files[1].get(path):
            yield Change(new["split"], identifier, path, "file replaced")


def made_from_other_data(folders: Sequence[RunFolder], rows: Iterable[Row]) -> list[RunFolder]:
    """The folders among these whose samples or media files are not as these rows of `fingerprint_data` state."""
    known = _contents(rows)
    return [folder for folder in folders if not _contents(read_fingerprints(folder)).items() <= known.items()]


def _contents(rows: Iterable[Row]) -> dict[str, str]:
    """The checksum of every label row, by id, and of every media file, by path."""
    return {
        f"id {row['id']}" if "id" in row else f"file {row['file']}": row["sha256"]
        for row in rows
        if row.get("kind") != "labels"
    }


def same_held_out(folder: RunFolder, splits: Splits) -> bool:
    """Whether another run held out the same samples, with the same content."""
    before = read_fingerprints(folder)
    changes = find_changes(before, fingerprint_data(splits, before))
    return bool(before) and not any(change.split == "held_out" for change in changes)


def changed_files(folder: RunFolder) -> list[str]:
    """A line for every file that the run read and that is gone or not the same; unchanged times are trusted."""
    lines = []
    rows = [row for row in read_fingerprints(folder) if "file" in row]
    if rows and not any(Path(row["file"]).exists() for row in rows):
        return [f"{Path(rows[0]['file']).parent}: none of the {len(rows)} files is where it was"]
    for row in rows:
        path = Path(row["file"])
        if not path.is_file():
            lines.append(f"{path}: no longer there")
        elif _file_row(row["file"], row["kind"], row)["sha256"] != row["sha256"]:
            lines.append(f"{path}: {'edited' if row['kind'] == 'labels' else 'replaced'}")
    return lines


def refuse_replaced(folder: RunFolder) -> None:
    """See that no media file was replaced while the run was reading it; one that is gone was read before.

    Raises:
        RunError: naming the files and the ways forward.
    """
    rows = [row for row in read_fingerprints(folder) if row.get("kind") == "media" and Path(row["file"]).is_file()]
    replaced = [row["file"] for row in rows if _file_row(row["file"], "media", row)["sha256"] != row["sha256"]]
    if replaced:
        shown = [f"  {path}: replaced" for path in replaced[:SHOWN]]
        raise RunError(f"{folder.path}: files changed while the run was reading them:\n" + "\n".join(shown) + WAYS_ON)


def unchanged(folder: RunFolder, samples: Sequence[Sample]) -> list[Sample]:
    """The samples whose files are as they were when the run read them; others are logged, since replies would differ.

    Raises:
        RunError: when none is left.
    """
    known = {row["file"]: row for row in read_fingerprints(folder) if "file" in row}
    kept, lines = [], []
    for sample in samples:
        paths = [path for media in sample.media for path in paths_of(media)]
        gone = [path for path in paths if not path.is_file()]
        rows = [(path, known[str(path)]) for path in paths if path not in gone and str(path) in known]
        replaced = [path for path, row in rows if _file_row(row["file"], row["kind"], row)["sha256"] != row["sha256"]]
        lines += [f"  {path}: no longer there" for path in gone] + [f"  {path}: replaced" for path in replaced]
        if not gone and not replaced:
            kept.append(sample)
    if lines and not kept:
        raise RunError(
            f"{folder.path}: the files of the held-out samples changed since the run read them — restore them"
        )
    if lines:
        logger.warning("Left out, since their files changed after the run had read them:")
        logger.warning(
            "%s", "\n".join([*lines[:SHOWN], *([f"  … and {len(lines) - SHOWN} more"] * (len(lines) > SHOWN))])
        )
    return kept


# --- What follows ----------------------------------------------------------------------------------------------------


def reconcile(folder: RunFolder, splits: Splits, *, accept: bool = False) -> list[Change]:
    """Record the fingerprints of a new run; of a run that is continued, see that what was used is still the same.

    Changes of splits that were not used yet are logged, and the run goes on with the data as they are. With `accept`,
    it also does where a split was used: everything computed from what changed is removed, to be computed again.
    Returns the changes.

    Raises:
        RunError: naming the changes in a split that was used, and the ways forward.
    """
    before = read_fingerprints(folder)
    if not before and was_recorded(folder.path, folder.fingerprints):
        raise RunError(f"{folder.fingerprints}: missing or empty — put it back, or begin anew with --fresh")
    now = fingerprint_data(splits, before)
    changes = find_changes(before, now) if before else []
    used = [change for change in changes if is_used(folder, change.split)]
    if used and not accept:
        raise RunError(f"{folder.path}: the data changed after the run had used them:\n{list_changes(used)}{WAYS_ON}")
    if changes:
        logger.warning("The data changed since the run began; it continues with them as they are:")
        logger.warning("%s", list_changes(changes))
        discard(folder, changes)
    if changes or not before:
        forget(folder.path, folder.fingerprints)
        write_jsonl(folder.fingerprints, now)
        record(folder.path, folder.fingerprints)
    return changes


def list_changes(changes: Sequence[Change]) -> str:
    """A line for each of the first changes."""
    lines = [f"  {change.source}: {change.id} ({change.split.replace('_', '-')}): {change.what}" for change in changes]
    rest = [f"  … and {len(lines) - SHOWN} more"] if len(lines) > SHOWN else []
    return "\n".join([*lines[:SHOWN], *rest])


def is_used(folder: RunFolder, split: str) -> bool:
    """Whether anything that the run or one of its folds holds was computed from this split."""
    if any(is_used(fold, name) for fold in folder.folds for name in ("train", "held_out")):
        return True  # a sample of the run is held out by one fold and trained on by the others
    if split == "held_out":
        return any(folder.predictions("*").parent.glob("*.jsonl"))
    return any(path.exists() for path in _from_training(folder)) or any(folder.checkpoints.glob("step-*"))


def _from_training(folder: RunFolder) -> list[Path]:
    """What follows from training samples: all but checkpoints, whose folder may be empty."""
    baselines = sorted(folder.predictions("*").parent.glob("baseline_*.jsonl"))
    return [folder.training, folder.adapter, folder.codebook, folder.predictions("training_before"), *baselines]


def discard(folder: RunFolder, changes: Sequence[Change]) -> None:
    """Remove whatever was computed from what changed."""
    predictions = sorted(folder.predictions("*").parent.glob("*.jsonl"))
    gone = [folder.ledger, folder.held_out, folder.data, folder.scores, folder.report, folder.reply_rows]
    gone += [path for path in predictions if path.stem.startswith("baseline_")]
    if any(change.split in LEARNED for change in changes):
        gone += [*_from_training(folder), folder.checkpoints, folder.cost_estimate, folder.log, folder.merged]
        gone += [folder.dev, folder.calibration]
        gone += [folder.path / "cache", *sorted(folder.path.glob("merged-*"))]
        gone += [path for path in predictions if path.stem.startswith("tuned_")]
        if folder.codebook.is_file():  # the base model reads recordings by it
            gone += [path for path in predictions if path.stem.startswith("base_")]
    remove(folder, gone)
    ids = {change.id for change in changes if change.split == "held_out"}
    drop_predictions(folder, ids, *sorted(folder.predictions("*").parent.glob("*.jsonl")))


def drop_predictions(folder: RunFolder, ids: set[str], *paths: Path) -> None:
    """Remove the predictions of these samples from the files, so that they are predicted again."""
    for path in paths if ids else ():
        rows = read_predictions(path)
        kept = [row.row() for row in rows if row.id not in ids]
        if len(kept) < len(rows):
            forget(folder.path, path)
            write_rows(path, kept)


def remove(folder: RunFolder, paths: Sequence[Path]) -> None:
    """Remove files and folders of a run, and their checksums."""
    forget(folder.path, *paths)
    for path in paths:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
