"""`tailor audit`: labels that may be wrong, ranked, and the decisions about them."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from pathlib import Path

from mllm_tailor.commands.console import command, show, show_json
from mllm_tailor.core.errors import RecipeError
from mllm_tailor.core.terminal import Table
from mllm_tailor.recipe import read_recipe
from mllm_tailor.reporting.audit_page import AuditPage, make_card, write_audit_page
from mllm_tailor.run.audit import AuditOptions, AuditResult, apply_decisions, audit, existing_run
from mllm_tailor.run.cross_fit import CrossFit
from mllm_tailor.run.report import picture
from mllm_tailor.run.resolve import resolve
from mllm_tailor.scoring.text import as_text

SHOWN = 10  # labels in the terminal
LONGEST = 60  # characters of a value there


def audit_recipe(
    path: Path,
    overrides: list[str],
    *,
    readings: Sequence[Path],
    folds: int | None,
    minutes: float,
    shown: int,
    decode: bool,
) -> None:
    """Rank the labels of a recipe's data, print the first, write the list and the page.

    Raises:
        TailorError: when the recipe, its data or the readings cannot be read.
    """
    if folds is not None and folds < 2:
        raise RecipeError(f"--folds {folds}: at least 2, so that no sample is read by a model that learned it")
    run = resolve(read_recipe(path, overrides))
    given = tuple(readings)
    if not given and (finished := existing_run(run)) is not None:
        given = (finished,)
    cross_fit = CrossFit(folds, minutes) if folds is not None else None
    result = audit(run, AuditOptions(given, cross_fit, decode))
    apply = command("audit", path, *overrides, "--apply", "decisions.jsonl")
    _write_page(result, run.name, apply, shown)
    _show(result, apply)


def apply_to_recipe(path: Path, overrides: list[str], decisions: Path) -> None:
    """Add decisions to those of the audit, and print how a run takes them up.

    Raises:
        DataError: when a decision does not fit the data.
    """
    folder, everyone, corrected = apply_decisions(resolve(read_recipe(path, overrides)), decisions)
    kept = sum(decision.decision == "keep" for decision in everyone)
    table = Table("Labels that the decisions replace", "sample", "field", "label", "is replaced by", numbers=False)
    for item in corrected:
        table.add_row(item.id, item.field, _short(item.before), _short(item.after))
    if corrected:
        show(table)
    show(f"{len(everyone)} decisions in {folder.decisions}: {len(everyone) - kept} fixed, {kept} kept.")
    if len(everyone) > kept:
        setting = f"data.corrections={folder.decisions}"
        show(
            "Label files stay as they are. A run with this setting uses the fixed labels and names them in its ledger:"
        )
        show(f"  {command('run', path, *overrides, setting)}")
    show_json(
        {
            "decisions": str(folder.decisions),
            "kept": kept,
            "fixed": [{"id": i.id, "field": i.field, "label": i.before, "value": i.after} for i in corrected],
        }
    )


def _write_page(result: AuditResult, name: str, apply: str, shown: int) -> None:
    cards = []
    images: dict[str, bytes | None] = {}
    for suspect in result.suspects[:shown]:
        if suspect.id not in images:
            images[suspect.id] = picture(result.samples[suspect.id])
        cards.append(make_card(suspect, result.labels[suspect.id], images[suspect.id]))
    page = AuditPage(
        name=name,
        made=f"{datetime.datetime.now():%Y-%m-%d %H:%M}",
        samples=len(result.samples),
        values=result.values,
        suspects=len(result.suspects),
        decided=result.decided,
        sources=result.sources,
        apply=apply,
        cards=cards,
    )
    write_audit_page(page, result.folder.page)


def _show(result: AuditResult, apply: str) -> None:
    title = f"{len(result.suspects)} of {result.values} labels have evidence against them; the first"
    table = Table(title, "suspicion", "sample", "field", "label", "why", numbers=False)
    for suspect in result.suspects[:SHOWN]:
        first = suspect.evidence[0]
        more = f" (and {len(suspect.evidence) - 1} more)" if len(suspect.evidence) > 1 else ""
        table.add_row(
            f"{suspect.suspicion:.2f}", suspect.id, suspect.field, _short(suspect.label), f"{first.reason}{more}"
        )
    if result.suspects:
        show(table)
    else:
        show(f"Nothing speaks against any of {result.values} labels.")
    show("Evidence: " + "; ".join(f"{name} ({count} samples)" for name, count in result.sources.items()))
    if result.decided:
        show(f"{result.decided} labels decided earlier are left out ({result.folder.decisions}).")
    if result.unreadable:
        show(f"{len(result.unreadable)} rows are no labelled samples; `tailor check` explains them.")
    show(f"Decide: open {result.folder.page}; then {apply}")
    show_json(
        {
            "page": str(result.folder.page),
            "rows": str(result.folder.rows),
            "samples": len(result.samples),
            "values": result.values,
            "evidence": dict(result.sources),
            "suspects": [suspect.row() for suspect in result.suspects],
        }
    )


def _short(value: object) -> str:
    text = as_text(value)
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"
