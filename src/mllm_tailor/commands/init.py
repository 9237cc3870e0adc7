"""`tailor init`: look at labelled data, show what was found, write a recipe."""

from __future__ import annotations

from pathlib import Path

from mllm_tailor.commands.console import command, show
from mllm_tailor.core.errors import RecipeError
from mllm_tailor.core.io import write_atomic
from mllm_tailor.core.terminal import Table
from mllm_tailor.data import propose_recipe, read_samples, summarise


def write_recipe(folder: Path, out: Path, *, force: bool) -> None:
    """Write the proposed recipe.

    Raises:
        RecipeError: when `out` exists and `force` does not say to replace it.
    """
    if out.exists() and not force:
        raise RecipeError(f"{out} exists — pass --force to replace it, or --out to write elsewhere")
    dataset = read_samples(folder)
    rows = summarise(dataset)
    title = f"{folder}: {len(dataset.samples)} samples, layout {dataset.layout}"
    table = Table(title, *rows[0], numbers=False)
    for row in rows:
        table.add_row(*map(str, row.values()))
    show(table)
    write_atomic(out, propose_recipe(folder))
    show(f"Wrote {out}. Next: {command('check', out)}")
