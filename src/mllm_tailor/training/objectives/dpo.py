"""Direct preference optimisation (Rafailov et al. 2023, 2305.18290, equation 7), as a stage after tuning.

`-log sigmoid(b [(log p(y+) - log q(y+)) - (log p(y-) - log q(y-))])`: p is the model, q the reference (the model before
the first step), y+ the label and y- a wrong answer of the model itself. log q is computed once and kept on disk.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import logsigmoid

from mllm_tailor.core.errors import RunError
from mllm_tailor.core.io import atomic_file
from mllm_tailor.core.progress import track
from mllm_tailor.models import NO_LOSS, Length
from mllm_tailor.training.batches import Batch, BatchSource, to_device
from mllm_tailor.training.objectives.base import Objective, ObjectiveContext, eval_no_grad
from mllm_tailor.training.objectives.cross_entropy import answer_log_probabilities
from mllm_tailor.training.precision import autocast
from mllm_tailor.training.vision_cache import as_inputs


def preference_loss(chosen: Tensor, rejected: Tensor, beta: float) -> Tensor:
    """Summed over pairs; `chosen` and `rejected` are (pairs,) of log p - log q."""
    return -logsigmoid(beta * (chosen - rejected)).sum()


class DPO(Objective):
    """Pairs of a chosen and a rejected answer; both are in the same micro-batch."""

    def __init__(self, context: ObjectiveContext) -> None:
        answers = context.inputs.rejected or {}
        chosen = [sample for sample in context.samples if sample.id in answers]
        if not chosen:
            raise RunError(
                "`train.prefer`: the model answers every training sample correctly, so there is nothing to prefer — "
                "leave the stage out, or give it more data"
            )
        rejected = [
            replace(item, sample=replace(item.sample, id=f"{item.id}#wrong"), answer=answers[item.id])
            for item in chosen
        ]
        super().__init__(context.model, [*chosen, *rejected])
        assert context.settings.prefer is not None
        self.settings = context.settings.prefer
        self.bf16 = context.bf16
        self.num_samples = len(chosen)
        self.reference = torch.zeros(len(self.samples))  # log q of every answer

    def expand_indices(self, indices: Sequence[int]) -> tuple[int, ...]:
        """The chosen answers, then the rejected ones."""
        return (*indices, *(index + self.num_samples for index in indices))

    def loss_weight(self, index: int, lengths: Sequence[Length]) -> float:
        """Every pair weighs the same."""
        return 1.0

    def prepare(self, source: BatchSource, folder: Path, chunks: Sequence[tuple[int, ...]]) -> None:
        """Compute log q of all answers, or read it from the file of an earlier call."""
        file = folder / "reference.safetensors"
        if file.exists():
            self.reference = load_file(file)["log_probabilities"]
            return
        device = self.model.device
        with eval_no_grad(self.model):
            for indices in track(chunks, "Computing reference log-probabilities"):
                batch = as_inputs(to_device(source.batch(indices, 0), device))
                with autocast(device, bf16=self.bf16):
                    self.reference[list(indices)] = answer_log_probabilities(self.model.model, batch).cpu()
        with atomic_file(file) as partial:
            save_file({"log_probabilities": self.reference}, partial)

    def loss(self, batch: Batch, indices: tuple[int, ...]) -> Tensor:
        """Summed over the pairs."""
        log_probabilities = answer_log_probabilities(self.model.model, batch)
        ratios = log_probabilities - self.reference[list(indices)].to(log_probabilities.device)
        chosen, rejected = ratios.chunk(2)
        loss = preference_loss(chosen, rejected, self.settings.beta)
        if self.settings.answer_weight:
            lengths = (batch["labels"][: len(chosen)] != NO_LOSS).sum(dim=1)
            loss = loss - self.settings.answer_weight * (log_probabilities[: len(chosen)] / lengths).sum()
        return loss
