"""`tailor methods`: every word a recipe may use, with a line each."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from mllm_tailor.core.registry import Registry
from mllm_tailor.data import LAYOUTS
from mllm_tailor.methods import METHODS
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
