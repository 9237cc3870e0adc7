"""`tailor init`: look at labelled data, show what was found, write a recipe."""

from __future__ import annotations

from pathlib import Path

from rich.table import Table

from mllm_tailor.core.errors import RecipeError
from mllm_tailor.core.io import write_atomic
from mllm_tailor.core.progress import console
from mllm_tailor.data import propose_recipe, read_samples, summarise
from mllm_tailor.reporting.tables import plain


def write_recipe(folder: Path, out: Path, *, force: bool) -> None:
    """Write the proposed recipe.

    Raises:
        RecipeError: when `out` exists and `force` does not say to replace it.
    """
    if out.exists() and not force:
        raise RecipeError(f"{out} exists — pass --force to replace it, or --out to write elsewhere")
    dataset = read_samples(folder)
    table = Table(title=f"{folder}: {len(dataset.samples)} samples, layout {dataset.layout}", title_justify="left")
    rows = summarise(dataset)
    for name in rows[0]:
        table.add_column(name)
    for row in rows:
        table.add_row(*(plain(str(value)) for value in row.values()))
    console.print(table)
    write_atomic(out, propose_recipe(folder))
    console.print(f"Wrote {out}. Next: tailor check {out}")
