"""`tailor methods` and `tailor models`: every name that a recipe may use, with a line each."""

from __future__ import annotations

from dataclasses import dataclass

from rich.text import Text

from mllm_tailor.commands.console import show, show_json
from mllm_tailor.core.registry import Registry
from mllm_tailor.core.terminal import Table
from mllm_tailor.data import LAYOUTS
from mllm_tailor.recipe.method_table import METHODS
from mllm_tailor.recipe.optimizer_table import OPTIMIZERS
from mllm_tailor.scoring import METRICS
from mllm_tailor.tasks import TASKS


@dataclass(frozen=True)
class Listing:
    """One registry, how a recipe names its entries, and its key in JSON."""

    key: str
    usage: str
    registry: Registry

    def table(self) -> Table:
        """A row for each name."""
        table = Table(f"{self.key.capitalize()} ({self.usage})", "", "", numbers=False)
        for name in self.registry:
            table.add_row(Text(name, "bold"), self.registry.summary(name))
        return table


LISTINGS = (
    Listing("methods", "method: {name: ...}", METHODS),
    Listing("optimizers", "train: {optimizer: ...}", OPTIMIZERS),
    Listing("tasks", "task: {...: ...}", TASKS),
    Listing("metrics", "score: [...]", METRICS),
    Listing("layouts", "data: {layout: ...}, usually recognised", LAYOUTS),
)


def list_words() -> None:
    """Print the registries."""
    for listing in LISTINGS:
        show(listing.table())
    show_json({item.key: {name: item.registry.summary(name) for name in item.registry} for item in LISTINGS})


def list_models() -> None:
    """Print the model families: what goes in, and what can be done with them."""
    from mllm_tailor.models.families import FAMILIES, NOT_HERE

    columns = ("model_type", "models", "input", "QLoRA", "merge", "vLLM")
    table = Table("Model families (model: embedded, a folder or a hub id)", *columns, numbers=False)
    for family in FAMILIES.values():
        supports = family.supports
        table.add_row(family.name, family.title, ", ".join(family.media), *(supports[name] for name in columns[3:]))
    show(table)
    for family in FAMILIES.values():
        if family.note:
            show(f"{family.name}: {family.note}")
    for name, reason in NOT_HERE.items():
        show(f"Not supported: {name}, which {reason}.")
    show("A model of another family is opened by its structure, with a warning that names what was assumed.")
    show("vLLM serves the LoRA adapter as it is, or the merged folder (by vLLM's own list; not run here).")
    families = {
        family.name: {"models": family.title, "input": list(family.media), **family.supports, "note": family.note}
        for family in FAMILIES.values()
    }
    show_json({"families": families, "not_supported": dict(NOT_HERE)})
