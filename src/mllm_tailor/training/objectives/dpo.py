"""Direct preference optimisation (Rafailov et al. 2023, 2305.18290, equation 7), as a stage after tuning.

`-log sigmoid(b [(log p(y+) - log q(y+)) - (log p(y-) - log q(y-))])`: p is the model, q the model as the stage began,
y+ the label and y- a wrong reading of the model's own. q is computed once and kept beside the checkpoints.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import logsigmoid

from mllm_tailor.core.conversation import Conversation
from mllm_tailor.core.device import computes_in_bf16
from mllm_tailor.core.errors import RunError
from mllm_tailor.core.io import atomic_file
from mllm_tailor.core.progress import track
from mllm_tailor.models import NO_LOSS, Length, LoadedModel
from mllm_tailor.recipe import Recipe
from mllm_tailor.training.batches import Batch, BatchSource, to_device
from mllm_tailor.training.objectives.base import Objective, eval_no_grad
from mllm_tailor.training.objectives.cross_entropy import answer_log_probabilities
from mllm_tailor.training.precision import computing
from mllm_tailor.training.vision_cache import as_inputs


def preference_loss(right: Tensor, wrong: Tensor, beta: float) -> Tensor:
    """Summed over pairs; `right` and `wrong` are (pairs,) of log p - log q."""
    return -logsigmoid(beta * (right - wrong)).sum()


class DPO(Objective):
    """Pairs of a right and a wrong answer; both are in the same pass."""

    def __init__(
        self, model: LoadedModel, samples: Sequence[Conversation], recipe: Recipe, rejected: Mapping[str, str] | None
    ) -> None:
        right = [sample for sample in samples if sample.id in (rejected or {})]
        if not right or rejected is None:
            raise RunError(
                "`train.prefer`: the model reads no training sample wrong, so there is nothing to prefer — leave the "
                "stage out, or give it more data"
            )
        wrong = [
            replace(item, sample=replace(item.sample, id=f"{item.id}#wrong"), answer=rejected[item.id])
            for item in right
        ]
        super().__init__(model, [*right, *wrong], recipe)
        assert recipe.train.prefer is not None
        self.settings = recipe.train.prefer
        self.count = len(right)
        self.reference = torch.zeros(len(self.samples))

    def expand_indices(self, numbers: Sequence[int]) -> tuple[int, ...]:
        """The right answers, then the wrong ones."""
        return (*numbers, *(number + self.count for number in numbers))

    def loss_weight(self, number: int, lengths: Sequence[Length]) -> float:
        """Every pair weighs the same."""
        return 1.0

    def prepare(self, feed: BatchSource, folder: Path, groups: Sequence[tuple[int, ...]]) -> None:
        """log q of all answers, from a file if it was computed before."""
        file = folder / "reference.safetensors"
        if file.exists():
            self.reference = load_file(file)["log_probabilities"]
            return
        bf16 = computes_in_bf16(self.recipe.model.dtype, self.model.device)

        def read() -> None:
            for members in track(groups, "Reading right and wrong answers once"):
                batch = as_inputs(to_device(feed.batch(members, 0), self.model.device))
                with computing(self.model.device, bf16):
                    self.reference[list(members)] = answer_log_probabilities(self.model.model, batch).cpu()

        eval_no_grad(self.model, read)
        folder.mkdir(parents=True, exist_ok=True)
        with atomic_file(file) as partial:
            save_file({"log_probabilities": self.reference}, partial)

    def loss(self, batch: Batch, members: tuple[int, ...]) -> Tensor:
        """Of a pass's pairs."""
        said = answer_log_probabilities(self.model.model, batch)
        gained = said - self.reference[list(members)].to(said.device)
        right, wrong = gained.chunk(2)
        found = preference_loss(right, wrong, self.settings.beta)
        if self.settings.answer_weight:
            lengths = (batch["labels"][: len(right)] != NO_LOSS).sum(dim=1)
            found = found - self.settings.answer_weight * (said[: len(right)] / lengths).sum()
        return found
