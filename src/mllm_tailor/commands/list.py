"""`tailor methods`: every word a recipe may use, with a line each."""

from __future__ import annotations

from rich.text import Text

from mllm_tailor.commands.console import show
from mllm_tailor.core.registry import Registry
from mllm_tailor.core.terminal import Table
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
    for title, registry in TABLES.items():
        table = Table(title, "", "", numbers=False)
        for name in registry:
            table.add_row(Text(name, "bold"), registry.summary(name))
        show(table)
        show()


def list_models() -> None:
    """Print the model families."""
    columns = ("model_type", "models", *next(iter(FAMILIES.values())).supports, "note")
    table = Table("Model families (model: embedded, a folder or a hub id)", *columns, numbers=False)
    for family in FAMILIES.values():
        table.add_row(family.name, family.title, *family.supports.values(), family.note)
    show(table)
    for name, reason in NOT_HERE.items():
        show(f"Not here: {name}, which {reason}.")
    show("Another family is opened by looking at it, with a warning that names what was guessed.")
    show("vLLM: it serves the LoRA adapter as it is, or the merged folder (by its own list; not run here).")
