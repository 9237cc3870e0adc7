"""`tailor check --fit`: the first of a few milder recipes whose training fits into the memory there is."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path

import torch

from mllm_tailor.commands.console import command, show
from mllm_tailor.core.device import current_memory, free_memory, pick_device
from mllm_tailor.core.errors import RecipeError
from mllm_tailor.core.io import human_bytes, human_time
from mllm_tailor.core.terminal import Table
from mllm_tailor.recipe import read_recipe
from mllm_tailor.run.budget import read_budget
from mllm_tailor.run.cost_estimate import CostEstimate, estimate_cost
from mllm_tailor.run.dataset import Splits, prepare
from mllm_tailor.run.resolve import ResolvedRun, resolve
from mllm_tailor.training import ONE_PASS

SHARE = 0.9  # of the free memory: other programs breathe too


def fit_recipe(path: Path, overrides: list[str], memory: str | None) -> bool:
    """Rehearse milder and milder settings until one fits; print all, and the command that uses it.

    `memory` is an amount such as `8GB`; by default most of what is free on the device now.

    Raises:
        RecipeError: for a recipe with stages, each of which is to be asked about alone.
    """
    recipe = read_recipe(path, overrides)
    if recipe.stages:
        raise RecipeError("`--fit` looks at one training — run it on a recipe of one stage at a time")
    room = _room(recipe.model.device, memory)
    table = Table(f"What fits into {human_bytes(room)}", "settings", "peak memory", "training", "")
    chosen, run = None, resolve(recipe)
    splits, _ = prepare(run, exclude_faulty=True, decode=False)
    for changes in milder(run):
        changed = read_recipe(path, [*overrides, *changes]).model_copy(update={"task": run.recipe.task})
        found = _estimate_cost(resolve(changed), splits)
        fits = found is not None and found.peak_bytes <= room
        cost = _cost(found)
        added = f"… {changes[-1]}" if changes else "as in the recipe"  # each line keeps the changes above it
        table.add_row(added, *cost, "fits" if fits else "")
        if fits:
            chosen = changes
            break
    show(table)
    if chosen is None:
        show(("None of these fits", "red"), " — take a smaller model, or a machine with more memory.")
        return False
    show(("Next:", "bold green"), f" {command('run', path, *overrides, *chosen)}")
    return True


def milder(run: ResolvedRun) -> Iterator[list[str]]:
    """Changes to a recipe, each with less memory than the one before: what costs only time comes first."""
    changes: list[str] = []
    yield changes
    recipe, optimizer = run.recipe, run.method.optimizer
    if recipe.train.micro_batch_size != 1 and recipe.train.batch_size > 1 and optimizer not in ONE_PASS:
        changes = [*changes, "train.micro_batch_size=1"]
        yield changes
    if recipe.train.gradient_checkpointing is not True and optimizer != "mezo":
        changes = [*changes, "train.gradient_checkpointing=true"]
        yield changes
    if recipe.train.optimizer == "adamw" and optimizer is None:
        changes = [*changes, "train.optimizer=adamw_8bit"]
        yield changes
    if recipe.method["name"] == "lora":
        changes = [*changes, "method.name=qlora"]
        yield changes
    most = recipe.model.tiles.max if recipe.model.tiles else 1
    while most > 1:
        most //= 2
        yield [*changes, f"model.tiles.max={most}"]


def _room(wanted: str | None, memory: str | None) -> int:
    if memory is not None:
        budget = read_budget(memory)
        if budget.unit != "memory":
            raise RecipeError(f"`{memory}` is no amount of memory — write 8GB or 500MB")
        return int(budget.amount)
    device = pick_device(wanted)
    return int(SHARE * free_memory(device)) + current_memory(device)


def _estimate_cost(run: ResolvedRun, splits: Splits) -> CostEstimate | None:
    """The forecast, or None where not even one sample fits."""
    gc.collect()  # the model of the trial before
    try:
        return estimate_cost(run, splits, 0.0)
    except torch.OutOfMemoryError:
        return None


def _cost(found: CostEstimate | None) -> tuple[str, str]:
    if found is None:
        return "more than there is", ""
    return human_bytes(found.peak_bytes), human_time(found.training_seconds)
