"""Scores on the dev split during training; the best one decides which weights are kept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from mllm_tailor.models import LoadedModel
from mllm_tailor.training.checkpoint_manager import CheckpointManager
from mllm_tailor.training.config import Evaluate
from mllm_tailor.training.distributed import rank
from mllm_tailor.training.precision import autocast
from mllm_tailor.training.sharding import gathered
from mllm_tailor.training.state import Progress
from mllm_tailor.training.trainable import set_train_mode


class DevEvaluator:
    """Decides when to evaluate, evaluates in all processes, and keeps the weights of rank 0's best scores."""

    def __init__(
        self, model: LoadedModel, evaluate: Evaluate | None, due_steps: frozenset[int], *, lower_is_better: bool,
        bf16: bool,
    ) -> None:  # fmt: skip
        """`due_steps`: numbers of finished steps after which the dev split is scored."""
        self.model, self.evaluate, self.due_steps = model, evaluate, due_steps
        self.sign = -1 if lower_is_better else 1
        self.bf16 = bf16

    def due(self, progress: Progress, *, ended: bool) -> bool:
        """Whether the dev split is to be scored now."""
        step = progress.step
        wanted = self.evaluate is not None and 0 < step != progress.evaluated_step
        return wanted and (step in self.due_steps or ended)

    def run(self, progress: Progress, checkpoints: CheckpointManager) -> tuple[Progress, Mapping[str, float]]:
        """The progress after the evaluation, and the scores (none on other ranks than the first)."""
        scores: dict[str, float] = {}
        with gathered(self.model.model):
            evaluated = self._scores()
            if rank() == 0:
                scores = evaluated
                first = next(iter(scores.values()))
                best = progress.best_score
                if best is None or self.sign * first > self.sign * best:
                    progress = replace(progress, best_step=progress.step, best_score=first)
                    checkpoints.save_best(progress)
        return replace(progress, evaluated_step=progress.step), scores

    def _scores(self) -> dict[str, float]:
        assert self.evaluate is not None
        network = self.model.model
        network.eval()
        formats = {weight.dtype for weight in network.parameters() if weight.is_floating_point()}
        with autocast(self.model.device, bf16=self.bf16 and len(formats) > 1):
            scores = dict(self.evaluate())
        set_train_mode(self.model)
        return scores
