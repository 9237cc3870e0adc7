"""Which trainings can be sharded."""

from __future__ import annotations

from mllm_tailor.core.errors import RecipeError
from mllm_tailor.methods import MethodSet
from mllm_tailor.methods.base import TuningMethod
from mllm_tailor.recipe import Train
from mllm_tailor.recipe.optimizer_table import TABLE


def check_sharding(method: MethodSet, train: Train) -> None:
    """Refuse what slices of weights cannot do, before any model is loaded.

    Raises:
        RecipeError: naming the setting and an alternative.
    """
    if train.shard == "none":
        return
    optimizer = method.optimizer or train.optimizer
    if not TABLE[optimizer].shardable:
        others = ", ".join(name for name, entry in TABLE.items() if entry.shardable)
        raise RecipeError(f"`train.shard`: {optimizer} does not work on slices of weights — use {others}")
    for assignment in method.assignments:
        kind = type(assignment.tuning_method)
        if (kind.begin_step, kind.end_step) != (TuningMethod.begin_step, TuningMethod.end_step):
            raise RecipeError(
                f"`train.shard`: {assignment.tuning_method.name} changes weights between steps, which are then in "
                "slices — use lora, qlora or full"
            )
    if train.modality_parts:
        raise RecipeError("`train.shard` does not go with `train.modality_parts` — leave one of them out")
