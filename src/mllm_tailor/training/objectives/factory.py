"""Objectives by name, and which of them a recipe asks for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mllm_tailor.core.errors import RecipeError
from mllm_tailor.core.registry import Entry, Registry
from mllm_tailor.methods import MethodSet
from mllm_tailor.recipe import Train
from mllm_tailor.training.objectives.base import Objective, ObjectiveContext


@dataclass(frozen=True)
class ObjectiveEntry(Entry):
    """A registered objective: a callable that takes an `ObjectiveContext`."""

    setting: str = ""  # of the recipe, which asks for it
    data_parallel: bool = False  # whether several processes may share its steps


HERE = "mllm_tailor.training.objectives"
TABLE = {
    "cross_entropy": ObjectiveEntry(
        f"{HERE}.cross_entropy:CrossEntropy", "cross-entropy of the answers' tokens", data_parallel=True
    ),
    "contrastive": ObjectiveEntry(
        f"{HERE}.contrastive:ContrastiveObjective", "images and texts that belong together", "task.match"
    ),
    "preference": ObjectiveEntry(
        f"{HERE}.preference:make_preference", "labels preferred to the model's wrong answers", "train.prefer"
    ),
    "reward": ObjectiveEntry(f"{HERE}.reward:RewardObjective", "the score of sampled replies", "train.reward"),
    "logits": ObjectiveEntry(
        f"{HERE}.distillation:LogitDistillation", "labels and a teacher's logits", "train.distill"
    ),
    "replies": ObjectiveEntry(
        f"{HERE}.on_policy:OnPolicyDistillation", "a teacher's logits on the model's own replies", "train.distill"
    ),
    "vision": ObjectiveEntry(
        f"{HERE}.distillation:VisionDistillation", "hidden states of a teacher's vision tower", "train.distill"
    ),
    "metric": ObjectiveEntry(f"{HERE}.metric:MetricObjective", "the task's own metric", "method.objective: metric"),
}
OBJECTIVES = Registry("objective", TABLE, group="mllm_tailor.objectives")
DEFAULT = "cross_entropy"


def requested_objectives(train: Train, method_options: Mapping[str, Any], *, compares: bool) -> list[str]:
    """Every objective the settings ask for beside the default; `compares`: the model embeds and writes nothing."""
    own = method_options.get("objective")
    return [
        *(["contrastive"] if compares else []),
        *(["preference"] if train.prefer is not None else []),
        *(["reward"] if train.reward is not None else []),
        *([train.distill.of] if train.distill is not None else []),
        *([str(own)] if own in OBJECTIVES else []),
    ]


def make_objective(context: ObjectiveContext) -> Objective:
    """The objective the settings ask for."""
    requested = requested_objectives(context.settings, context.options, compares=context.model.family.compares)
    objective: Objective = OBJECTIVES.load(next(iter(requested), DEFAULT))(context)
    return objective


def check_objective(method: MethodSet, train: Train, task_name: str) -> None:
    """Refuse objectives that exclude each other, before any model is loaded.

    Raises:
        RecipeError: naming the setting and an alternative.
    """
    requested = _requested(method, train, task_name)
    settings = list(map(_setting, requested))
    if len(settings) > 1:
        raise RecipeError(
            f"`{settings[0]}` and `{settings[1]}` are two objectives — keep one, or make two stages of them"
        )
    if settings and train.loss == "all":
        raise RecipeError(f"`train.loss: all` does not go with `{settings[0]}` — leave it out")
    if requested in (["reward"], ["replies"]) and "mezo" in (method.optimizer, train.optimizer):
        raise RecipeError(
            f"`{settings[0]}` samples replies and needs gradients, which mezo does not have — use "
            "`method.objective: metric`, or another optimizer"
        )
    if requested == ["vision"] and set(method.parts) != {"vision"}:
        raise RecipeError("`train.distill.of: vision` trains nothing but the vision tower — set method.parts: [vision]")


def check_turns(method: MethodSet, train: Train, task_name: str) -> None:
    """Refuse an objective that learns from a single answer where conversations have further turns.

    Raises:
        RecipeError: naming both settings.
    """
    if requested := _requested(method, train, task_name):
        raise RecipeError(f"`data.transcription_turns` does not go with `{_setting(requested[0])}` — set it to false")


def is_data_parallel(method: MethodSet, train: Train, task_name: str) -> bool:
    """Whether several processes may share the steps of the objective these settings ask for."""
    requested = _requested(method, train, task_name)
    return all(name in TABLE and TABLE[name].data_parallel for name in requested)


def _requested(method: MethodSet, train: Train, task_name: str) -> list[str]:
    """`requested_objectives` of a recipe, whose model is not opened yet."""
    return requested_objectives(train, method.optimizer_options, compares=task_name == "match")


def _setting(objective: str) -> str:
    """The setting that asks for an objective."""
    return TABLE[objective].setting if objective in TABLE else f"method.objective: {objective}"
