"""What a training makes small. The loop asks one `Objective` for every pass's loss and for what it is divided by."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from mllm_tailor.core.conversation import Conversation
from mllm_tailor.core.errors import RecipeError, RunError
from mllm_tailor.methods import MethodSet
from mllm_tailor.models import Length, LoadedModel
from mllm_tailor.recipe import Recipe
from mllm_tailor.training.batches import Batch, BatchSource
from mllm_tailor.training.objectives.cross_entropy import answer_loss
from mllm_tailor.training.trainable import set_train_mode


@dataclass(frozen=True)
class ObjectiveInputs:
    """What only the run can give a training."""

    measure: Callable[[Sequence[Conversation]], float] | None = None  # samples -> the task's metric, 0 to 1, 1 is best
    rejected: Mapping[str, str] | None = None  # id of a sample -> a wrong answer to it


class Objective:
    """The usual one: cross-entropy of the answers, a mean over the step's labelled tokens."""

    needs_two_passes = False  # whether `look` must see all passes of a step before `loss` is asked for the first

    def __init__(self, model: LoadedModel, samples: Sequence[Conversation], recipe: Recipe) -> None:
        self.model, self.recipe = model, recipe
        self.samples: Sequence[Conversation] = samples  # what is encoded
        self.count = len(samples)  # what an epoch consists of: the first so many

    def expand_indices(self, numbers: Sequence[int]) -> tuple[int, ...]:
        """The samples encoded for a pass over `numbers`."""
        return tuple(numbers)

    def loss_weight(self, number: int, lengths: Sequence[Length]) -> float:
        """The weight of one sample in the step's mean."""
        length = lengths[number]
        return length.supervised if self.recipe.train.loss == "answer" else length.tokens - 1

    def weights(self) -> dict[str, nn.Parameter]:
        """Weights of the objective's own that are trained, and thrown away in the end."""
        return {}

    def prepare(self, feed: BatchSource, folder: Path, groups: Sequence[tuple[int, ...]]) -> None:
        """Compute once, from the weights as they are before the first step, what is needed in all steps."""

    def start_step(self) -> None:
        """Called before the passes of a step, and again where they are run again."""

    def precompute(self, batch: Batch, members: tuple[int, ...]) -> None:
        """See a pass before the first loss of its step, without gradients."""

    def loss(self, batch: Batch, members: tuple[int, ...]) -> Tensor:
        """The pass's loss, summed over its units, with gradients."""
        return answer_loss(self.model.model, batch)[0]


class MetricObjective(Objective):
    """1 - the task's own metric on the model's own replies. It has no gradient, and MeZO needs none (section 2.1)."""

    def __init__(
        self, model: LoadedModel, samples: Sequence[Conversation], recipe: Recipe, objective_inputs: ObjectiveInputs
    ) -> None:
        super().__init__(model, samples, recipe)
        if objective_inputs.measure is None:
            raise RunError("`method.objective: metric` needs a run, which knows how replies are scored — `tailor run`")
        self.measure = objective_inputs.measure

    def loss_weight(self, number: int, lengths: Sequence[Length]) -> float:
        """Every sample weighs the same."""
        return 1.0

    def loss(self, batch: Batch, members: tuple[int, ...]) -> Tensor:
        """The metric's distance from its best, summed over the samples."""
        with torch.no_grad():
            score = self.measure([self.samples[number] for number in members])
        return torch.tensor(len(members) * (1.0 - score), device=self.model.device)


def check_objective(method: MethodSet, recipe: Recipe) -> None:
    """Refuse objectives that do not go together, before any model is opened.

    Raises:
        RecipeError: naming the setting and an alternative.
    """
    settings, said = recipe.train, []
    if settings.prefer is not None:
        said.append("train.prefer")
    if settings.distill is not None:
        said.append("train.distill")
    if method.optimizer_options.get("objective") == "metric":
        said.append("method.objective: metric")
    if recipe.task_name == "match":
        said.append("task.match")
    if len(said) > 1:
        raise RecipeError(f"`{said[0]}` and `{said[1]}` are two objectives — keep one, or make two stages of them")
    if said and settings.loss == "all":
        raise RecipeError(f"`train.loss: all` does not go with `{said[0]}` — leave it out")
    vision = settings.distill is not None and settings.distill.of == "vision"
    if vision and set(method.parts) != {"vision"}:
        raise RecipeError("`train.distill.of: vision` moves nothing but the vision tower — set method.parts: [vision]")


def make_objective(
    model: LoadedModel,
    method: MethodSet,
    samples: Sequence[Conversation],
    recipe: Recipe,
    objective_inputs: ObjectiveInputs,
) -> Objective:
    """The objective the recipe asks for."""
    from mllm_tailor.training.objectives.contrastive import ContrastiveObjective
    from mllm_tailor.training.objectives.distillation import LogitDistillation, VisionDistillation
    from mllm_tailor.training.objectives.dpo import DPO

    settings = recipe.train
    if model.family.compares:
        return ContrastiveObjective(model, samples, recipe)
    if settings.prefer is not None:
        return DPO(model, samples, recipe, objective_inputs.rejected)
    if settings.distill is not None:
        return (LogitDistillation if settings.distill.of == "logits" else VisionDistillation)(model, samples, recipe)
    if method.optimizer_options.get("objective") == "metric":
        return MetricObjective(model, samples, recipe, objective_inputs)
    return Objective(model, samples, recipe)


def eval_no_grad(model: LoadedModel, work: Callable[[], None]) -> None:
    """Run `work` without gradients and dropout; training modes are put back."""
    model.model.eval()
    with torch.no_grad():
        work()
    set_train_mode(model)
