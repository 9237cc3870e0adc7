"""`tailor review`: new files read by a run, confirmed and corrected by people, exported as labels."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path

from mllm_tailor.commands.console import command, show, show_json
from mllm_tailor.core.errors import RunError
from mllm_tailor.core.io import write_jsonl
from mllm_tailor.core.optional import need
from mllm_tailor.data.reviews.export import decision_rows, export_labels
from mllm_tailor.data.reviews.label_studio import export_tasks, import_annotations
from mllm_tailor.data.reviews.labels import count_audit
from mllm_tailor.data.reviews.store import DATABASE, ReviewStore
from mllm_tailor.scoring.accept import error_interval

SHOWN = 10


def review_run(
    run: Path,
    paths: Sequence[Path | str],
    *,
    database: Path | None,
    audit: float,
    host: str,
    port: int,
    export: Path | None,
    annotations: Path | None,
) -> None:
    """Read files, add what needs an eye to the review, then serve its page; or take over annotations, or export.

    Raises:
        RunError: for an unfinished run, or a page that is open to other machines without a key.
        DataError: for a review that is missing or damaged.
    """
    database = database or run.with_name(f"{run.name}-review") / DATABASE  # beside the run, like its audit
    exchange = export is not None or annotations is not None
    if not exchange:
        for module in ("fastapi", "uvicorn", "prometheus_client"):
            need(module, "serve", "`tailor review`", RunError)
    if paths:
        _add(run, paths, database, audit)
    store = ReviewStore(database)
    if exchange:
        _exchange(store, annotations, export)
    else:
        _serve(run, store, audit, host, port)


def _add(run: Path, paths: Sequence[Path | str], database: Path, audit: float) -> None:
    from mllm_tailor.run.review import add_files  # loads torch, which the page alone does not need

    added = add_files(run, paths, database, audit)
    show(
        f"{added.doubtful} documents have values to look at, {added.accepted} need no eye, {added.audited} more are "
        f"looked at to audit that"
        + (f"; {added.known} were decided about before and keep their reading" if added.known else "")
    )
    _list([f"{file}: held out by {run}, so it is no part of the review" for file in added.held_out])
    _list(list(added.unread))


def _list(lines: Sequence[str]) -> None:
    for line in lines[:SHOWN]:
        show(f"  {line}")
    if len(lines) > SHOWN:
        show(f"  … and {len(lines) - SHOWN} more")


def _exchange(store: ReviewStore, annotations: Path | None, export: Path | None) -> None:
    result: dict[str, object] = {"database": str(store.path)}
    if annotations is not None:
        imported = import_annotations(store, annotations)
        show(f"{imported.finished} annotated tasks taken as decisions, {imported.unannotated} without an annotation")
        _list(imported.left)
        result["imported"] = dataclasses.asdict(imported)
    if export is not None and export.suffix.lower() == ".json":
        count = export_tasks(store, export)
        show(f"{count} tasks in {export}, their labelling interface in label_config.xml beside it")
        result["tasks"] = str(export)
    elif export is not None:
        count = export_labels(store, export)
        decisions = export.with_suffix(".decisions.jsonl")
        write_jsonl(decisions, decision_rows(store))
        show(
            f"{count} labelled documents in {export}, their files in documents beside it, every decision in {decisions}"
        )
        result |= {"labels": str(export), "decisions": str(decisions)}
    _show_audit(store)
    facts = {"progress": dataclasses.asdict(store.progress()), "audit": dataclasses.asdict(count_audit(store))}
    show_json(result | facts)


def _show_audit(store: ReviewStore) -> None:
    """Whether the promise of accepted values holds, as far as the audit can tell."""
    audit = count_audit(store)
    if audit.values:
        low, high = (100 * end for end in error_interval(audit.wrong, audit.values))
        share = 100 * audit.wrong / audit.values
        interval = f"{share:.1f} %, 95 % interval {low:.1f} to {high:.1f}"
        show(f"Audit: {audit.wrong} of {audit.values} accepted values were wrong ({interval})")


def _serve(run: Path, store: ReviewStore, audit: float, host: str, port: int) -> None:
    from mllm_tailor.review.server import serve_review
    from mllm_tailor.serving.settings import KEY_VARIABLE, ServeSettings

    key = os.environ.get(KEY_VARIABLE) or None
    settings = ServeSettings(host=host, port=port, key=key)
    progress = store.progress()
    again = command("run", "RECIPE", "--with", store.path)

    def ready() -> None:
        show(f"{progress.waiting} documents wait, {progress.done} are finished. Ctrl-C ends; every decision is kept.")
        show(f"http://{host}:{port}/" + ("?key=…  (the key is in TAILOR_API_KEY)" if key else ""))

    try:
        serve_review(store.path, settings, audit=audit, name=run.name, next_step=again, on_ready=ready)
    finally:  # Ctrl-C is how the page ends
        done = store.progress()
        show(f"{done.done} documents finished, {done.confirmed} values confirmed, {done.corrected} corrected.")
        _show_audit(store)
        if done.done:
            show(f"Tune again with them: {again}")
