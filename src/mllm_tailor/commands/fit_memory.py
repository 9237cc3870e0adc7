"""`tailor check --fit`: the first of several ever less demanding recipes whose training fits into memory."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from mllm_tailor.commands.console import command, show, show_json
from mllm_tailor.core.device import current_memory, free_memory, pick_device
from mllm_tailor.core.errors import RecipeError
from mllm_tailor.core.io import human_bytes, human_time
from mllm_tailor.core.terminal import Table
from mllm_tailor.recipe import read_recipe
from mllm_tailor.run.budget import read_budget
from mllm_tailor.run.cost_estimate import estimate_cost
from mllm_tailor.run.dataset import Splits, prepare
from mllm_tailor.run.resolve import ResolvedRun, resolve, resolve_saved
from mllm_tailor.training import ONE_PASS

SHARE = 0.9  # of the free memory: other programs need some too


@dataclass(frozen=True)
class Trial:
    """Changes to a recipe, and what training would then need; without figures, not even one sample fits."""

    changes: tuple[str, ...]
    fits: bool
    peak_bytes: int | None = None
    training_seconds: float | None = None


def fit_recipe(path: Path, overrides: list[str], memory: str | None) -> bool:
    """Estimate ever less demanding settings until one fits; print all of them and the command that uses it.

    `memory` is an amount such as `8GB`; by default most of what is free on the device now.

    Raises:
        RecipeError: for a recipe with stages: each is estimated alone.
    """
    recipe = read_recipe(path, overrides)
    if recipe.stages:
        raise RecipeError("`--fit` looks at one training — run it on a recipe of one stage at a time")
    available = _available_bytes(recipe.model.device, memory)
    run = resolve(recipe)
    splits, _ = prepare(run, exclude_faulty=True, decode=False)
    trials: list[Trial] = []
    for changes in milder(run):
        changed = read_recipe(path, [*overrides, *changes])
        model = changed.model.model_copy(update={"system": run.model.system})
        changed = changed.model_copy(update={"task": run.recipe.task, "model": model})
        trials.append(_try(resolve_saved(changed), splits, changes, available))
        if trials[-1].fits:
            break
    chosen = trials[-1] if trials[-1].fits else None
    words = command("run", path, *overrides, *chosen.changes) if chosen else None
    show(_table(trials, available))
    if words is None:
        show(("None of these fits", "red"), " — take a smaller model, or a machine with more memory.")
    else:
        show(("Next:", "bold green"), f" {words}")
    show_json({"available_bytes": available, "trials": [asdict(trial) for trial in trials], "command": words})
    return words is not None


def _try(run: ResolvedRun, splits: Splits, changes: Sequence[str], available: int) -> Trial:
    gc.collect()  # the model of the trial before
    try:
        estimate = estimate_cost(run, splits, 0.0)
    except torch.OutOfMemoryError:
        return Trial(tuple(changes), fits=False)
    return Trial(tuple(changes), estimate.peak_bytes <= available, estimate.peak_bytes, estimate.training_seconds)


def _table(trials: Sequence[Trial], available: int) -> Table:
    table = Table(f"What fits into {human_bytes(available)}", "settings", "peak memory", "training", "")
    for trial in trials:
        # each trial keeps the changes above it
        settings = f"… {trial.changes[-1]}" if trial.changes else "as in the recipe"
        if trial.peak_bytes is None or trial.training_seconds is None:
            table.add_row(settings, "more than there is")
        else:
            cost = (human_bytes(trial.peak_bytes), human_time(trial.training_seconds))
            table.add_row(settings, *cost, "fits" if trial.fits else "")
    return table


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


def _available_bytes(wanted: str | None, memory: str | None) -> int:
    if memory is not None:
        budget = read_budget(memory)
        if budget.unit != "memory":
            raise RecipeError(f"`{memory}` is no amount of memory — write 8GB or 500MB")
        return int(budget.amount)
    device = pick_device(wanted)
    return int(SHARE * free_memory(device)) + current_memory(device)
