"""`tailor init`: look at labelled data, show what was found, write a recipe."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from mllm_tailor.commands.console import command, show, show_json
from mllm_tailor.core.errors import RecipeError
from mllm_tailor.core.io import write_atomic
from mllm_tailor.core.terminal import Table
from mllm_tailor.data import DataIssue, Dataset, list_issues, propose_recipe, read_samples, summarise

NOTES_SHOWN = 10
FILES_LOOKED_FOR = 200  # the first files of the data set; `tailor check` looks for all


def write_recipe(folder: Path | str, out: Path, *, force: bool) -> None:
    """Write the proposed recipe. Rows that cannot be read are shown and keep no recipe from being written.

    Raises:
        RecipeError: when `out` exists and `force` does not say to replace it.
        DataError: when no row can be read, or none is labelled.
    """
    if out.exists() and not force:
        raise RecipeError(f"{out} exists — pass --force to replace it, or --out to write elsewhere")
    issues: list[DataIssue] = []
    dataset = read_samples(folder, on_issue=issues.append)
    text = propose_recipe(dataset, issues)
    _show(dataset, issues)
    write_atomic(out, text)
    show(f"Wrote {out}. Next: {command('check', out)}")
    document = {"data": str(folder), "samples": len(dataset.samples), "layout": dataset.layout}
    document |= {"fields": summarise(dataset), "issues": [asdict(issue) for issue in issues]}
    show_json(document | {"recipe": str(out)})


def _show(dataset: Dataset, issues: list[DataIssue]) -> None:
    rows = summarise(dataset)
    title = f"{dataset.path}: {len(dataset.samples)} samples, layout {dataset.layout}"
    table = Table(title, *rows[0], numbers=False)
    for row in rows:
        table.add_row(*map(str, row.values()))
    show(table)
    errors = [issue for issue in issues if issue.severity == "error"]
    if errors:
        show(f"Rows that cannot be read: {len(errors)}\n{list_issues(errors)}")
    for note in dataset.notes[:NOTES_SHOWN]:
        show(f"Note: {note}")
    if len(dataset.notes) > NOTES_SHOWN:
        show(f"… and {len(dataset.notes) - NOTES_SHOWN} more notes; `tailor check` lists all")
    missing = _missing_files(dataset)
    if missing:
        show(f"Files that are not there: {len(missing)}, of the {_looked_at(dataset)}\n{list_issues(missing)}")


def _looked_at(dataset: Dataset) -> str:
    count = len(dataset.samples)
    if count > FILES_LOOKED_FOR:
        return f"first {FILES_LOOKED_FOR} of {count:,} samples"
    return "one sample" if count == 1 else f"{count} samples"


def _missing_files(dataset: Dataset) -> list[DataIssue]:
    """The first samples whose files do not exist."""
    return [
        DataIssue(sample.source, f"{media.path}: no such file", "check the path in this row, or restore the file")
        for sample in dataset.samples[:FILES_LOOKED_FOR]
        for media in sample.media
        if media.path is not None and not media.path.exists()
    ]
