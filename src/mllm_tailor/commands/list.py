"""`tailor methods`: every word a recipe may use, with a line each."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from mllm_tailor.core.registry import Registry
from mllm_tailor.data import LAYOUTS
from mllm_tailor.methods import METHODS
from mllm_tailor.models import FAMILIES
from mllm_tailor.models.families import NOT_HERE
from mllm_tailor.scoring import METRICS
from mllm_tailor.tasks import TASKS
from mllm_tailor.training import OPTIMIZERS

TABLES: dict[str, Registry] = {
    "Methods (method: {name: ...})": METHODS,
    "Optimizers (train: {optimizer: ...})": OPTIMIZERS,
    "Tasks (task: {...: ...})": TASKS,
    "Metrics (score: [...])": METRICS,
    "Layouts (data: {layout: ...}, usually recognised)": LAYOUTS,
}


def list_words() -> None:
    """Print the registries."""
    console = Console(highlight=False)
    for title, registry in TABLES.items():
        table = Table(title=title, title_justify="left", show_header=False, box=None, padding=(0, 2))
        for name in registry:
            table.add_row(f"[bold]{name}[/]", registry.summary(name))
        console.print(table)
        console.print()


def list_models() -> None:
    """Print the model families."""
    console = Console(highlight=False)
    table = Table(title="Model families (model: embedded, a folder or a hub id)", title_justify="left", box=None)
    for column in ("model_type", "models", *next(iter(FAMILIES.values())).supports, "note"):
        table.add_column(column, justify="left", style="bold" if column == "model_type" else "")
    for family in FAMILIES.values():
        table.add_row(family.name, family.title, *family.supports.values(), family.note)
    console.print(table)
    for name, reason in NOT_HERE.items():
        console.print(f"Not here: {name}, which {reason}.")
    console.print("Another family is opened by looking at it, with a warning that names what was guessed.")
    console.print("vLLM: it serves the LoRA adapter as it is, or the merged folder (by its own list; not run here).")
