"""Settings of one training and the hooks through which its caller takes part."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from mllm_tailor.core.conversation import Conversation
from mllm_tailor.core.device import computes_in_bf16
from mllm_tailor.core.io import fingerprint
from mllm_tailor.recipe import Recipe, Train

# Settings that may change between a checkpoint and its resumption: they decide when to save, score or stop, and how the
# work is shared out, but not what a step computes.
FREE_TO_CHANGE = {
    "checkpoint_every",
    "keep_checkpoints",
    "max_minutes",
    "max_cpu_minutes",
    "evaluate_every",
    "processes",
    "shard",
    "trackers",
}

Evaluate = Callable[[], Mapping[str, float]]


@dataclass(frozen=True)
class TrainingConfig:
    """What determines the steps of a training, beside the model and the samples."""

    train: Train
    seed: int
    dtype: str  # as in the recipe's `model.dtype`
    fingerprint: str  # hash of every setting that determines the steps; a checkpoint is resumed under the same only
    features: Path | None = None  # folder of vision features shared by several trainings; None: deleted at the end

    @classmethod
    def from_recipe(cls, recipe: Recipe, features: Path | None = None) -> TrainingConfig:
        """The part of a recipe that a training needs."""
        model = recipe.model.model_dump(mode="json", exclude={"device"})
        train = recipe.train.model_dump(mode="json", exclude=FREE_TO_CHANGE)
        key = fingerprint(recipe.seed, recipe.method, model, train)
        return cls(recipe.train, recipe.seed, recipe.model.dtype, key, features)

    def uses_bf16(self, device: torch.device) -> bool:
        """Whether products are computed in bf16 on this device."""
        return computes_in_bf16(self.dtype, device)


@dataclass(frozen=True)
class TrainingEvent:
    """Something that happened in a training, for progress displays and callbacks."""

    kind: Literal["step", "evaluate", "checkpoint"]
    step: int  # optimizer steps done
    steps: int  # optimizer steps in all
    values: Mapping[str, Any] = field(default_factory=dict)  # a step's row of log.jsonl, an evaluation's scores


@dataclass(frozen=True)
class Rollout:
    """A sampled reply and its reward."""

    tokens: list[int]  # what follows the prompt, the end of the turn included where the model chose it
    chosen: list[int]  # indices of the tokens that were sampled; the others were forced by the schema
    reward: float
    truncated: bool = False  # at the limit of its tokens
    watched: dict[str, float] = field(default_factory=dict)  # what the reward does not see, by name


SampleReplies = Callable[[Sequence[Conversation], int], list[list[Rollout]]]  # labelled conversations, a seed


@dataclass(frozen=True)
class ObjectiveInputs:
    """What some objectives need and only the run can compute."""

    measure: Callable[[Sequence[Conversation]], float] | None = (
        None  # the task's metric on generated replies, 0 to 1 (best)
    )
    rejected: Mapping[str, str] | None = None  # sample id -> a wrong answer to it
    sample_replies: SampleReplies | None = None  # a group of replies to each conversation, with their rewards
    rewarded: frozenset[str] | None = None  # ids of the samples that are scored; None: all
    longest_reply: int = 256  # tokens of a sampled reply, at most
    cpu_seconds: float = 0.0  # that the above took; part of `train.max_cpu_minutes`


@dataclass(frozen=True)
class TrainingHooks:
    """What the caller of a training contributes."""

    # Scores of the present weights on the dev split, the first of which decides. Called in every process at the same
    # step, so that they can share the work; what it returns counts on rank 0 only.
    evaluate: Evaluate | None = None
    lower_is_better: bool = False  # of that first score
    on_event: Callable[[TrainingEvent], None] | None = None
    objective_inputs: ObjectiveInputs = field(default_factory=ObjectiveInputs)
