"""The task's metric as the objective of a method without gradients (MeZO, Malladi et al. 2023, section 2.1)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mllm_tailor.core.errors import RunError
from mllm_tailor.models import Length
from mllm_tailor.training.batches import Batch
from mllm_tailor.training.objectives.base import Objective, ObjectiveContext


class MetricObjective(Objective):
    """1 - the metric of the model's own generated replies."""

    def __init__(self, context: ObjectiveContext) -> None:
        super().__init__(context.model, context.samples)
        if context.inputs.measure is None:
            raise RunError("`method.objective: metric` needs a run, which scores generated replies — use `tailor run`")
        self.measure = context.inputs.measure

    def loss_weight(self, index: int, lengths: Sequence[Length]) -> float:
        """Every sample weighs the same."""
        return 1.0

    def loss(self, batch: Batch, indices: tuple[int, ...]) -> Tensor:
        """The metric's distance from its best value, summed over the samples."""
        with torch.no_grad():
            score = self.measure([self.samples[index] for index in indices])
        return torch.tensor(len(indices) * (1.0 - score), device=self.model.device)
