"""`tailor review`: a run reads new files, and what needs an eye goes into a review."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mllm_tailor.core.errors import DataError
from mllm_tailor.data.reviews.documents import make_document
from mllm_tailor.data.reviews.labels import is_audited, rank
from mllm_tailor.data.reviews.store import ReviewStore
from mllm_tailor.generation import read_inputs
from mllm_tailor.run.fingerprints import read_fingerprints
from mllm_tailor.run.new_files import predict_to_file, predictor_of_run
from mllm_tailor.run.run_dir import RunFolder, open_run

PREDICTIONS = "predictions.jsonl"


@dataclass(frozen=True)
class Added:
    """What became of files that were given to a review."""

    doubtful: int
    audited: int
    accepted: int
    known: int  # documents that somebody has decided about already: they keep their reading
    held_out: tuple[str, ...]  # files that the run holds out: what is decided about them can never be learned
    unread: tuple[str, ...]  # why a file is no part of the review


def add_files(run: Path, paths: Sequence[Path | str], database: Path, audit: float) -> Added:
    """Read files with a run's model and add them to its review. Interrupted, the same call continues.

    Raises:
        RunError: when the run is unfinished.
        DataError: when the task has no form, or the review is one of another task.
    """
    folder = open_run(run)
    store = ReviewStore.begin(database, folder.recipe().task)
    samples = read_inputs(paths)
    predictor = predictor_of_run(run).with_boxes()
    rows = {str(row["id"]): row for row in predict_to_file(database.with_name(PREDICTIONS), predictor, samples)}
    counts = {"doubtful": 0, "audit": 0, "accepted": 0, "known": 0}
    held_out, unread = [], []
    reserved = held_out_contents(folder)
    for sample in samples:
        row = rows[sample.id]
        try:
            if not sample.media or "problem" in sample.extra:
                raise DataError(str(row.get("problem") or sample.extra.get("problem") or f"{sample.id}: no file"))
            document = make_document(sample, row, run.name, store.folder)
        except DataError as error:
            unread.append(str(error))
            continue
        if any(file.sha256 in reserved for item in document.media for file in item.files):
            held_out.append(document.file)
            continue
        kind, worth = rank(document, store.schema)
        if kind == "accepted" and is_audited(document.sha256, audit):
            kind = "audit"
        counts[kind if store.add(document, kind, worth) else "known"] += 1
    return Added(
        doubtful=counts["doubtful"],
        audited=counts["audit"],
        accepted=counts["accepted"],
        known=counts["known"],
        held_out=tuple(held_out),
        unread=tuple(unread),
    )


def held_out_contents(folder: RunFolder) -> frozenset[str]:
    """Checksums of the files that a run holds out."""
    rows = read_fingerprints(folder)
    files = {path for row in rows if row.get("split") == "held_out" for path in row["media"]}
    return frozenset(row["sha256"] for row in rows if row.get("file") in files)
