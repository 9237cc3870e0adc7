"""Optimizer steps: micro-batches that fit into memory, their losses, and one update."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mllm_tailor.core.device import seed_everything
from mllm_tailor.core.errors import RunError
from mllm_tailor.models import Length, LoadedModel
from mllm_tailor.training.batches import Batch, MicroBatch, Prefetcher, to_device
from mllm_tailor.training.distributed import all_reduce_sum, rank, world_size
from mllm_tailor.training.modality_freezing import FrozenByModality, frozen
from mllm_tailor.training.objectives.base import Objective
from mllm_tailor.training.optim.registry import OptimizerStep, StepResult
from mllm_tailor.training.precision import autocast
from mllm_tailor.training.sampler import BatchSchedule, micro_batches, step_seed
from mllm_tailor.training.sharding import is_sharded
from mllm_tailor.training.state import Progress
from mllm_tailor.training.vision_cache import as_inputs

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class MicroBatchPlanner:
    """Divides the steps of a schedule into micro-batches."""

    schedule: BatchSchedule
    objective: Objective
    lengths: Sequence[Length]  # of the objective's samples
    max_samples: int | None  # of a micro-batch; None: as many as the token budget allows
    accumulates: bool  # False: a step is a single micro-batch
    padding: int | None  # tokens allowed per sample

    def micro_batches(self, step: int, progress: Progress) -> list[MicroBatch]:
        """The micro-batches of a step, none for a step after the last."""
        if step >= self.schedule.steps:
            return []
        samples = self.schedule.samples(step)
        groups = micro_batches(
            samples,
            [self.tokens(index) for index in samples],
            max_samples=(progress.max_samples or self.max_samples) if self.accumulates else len(samples),
            token_budget=progress.token_budget,
            max_padding=self.padding,
        )
        epoch = self.schedule.epoch(step)
        return [MicroBatch(self.objective.expand_indices(group), epoch) for group in groups]

    def tokens(self, index: int) -> int:
        """Tokens of everything that is encoded for a sample."""
        return sum(self.lengths[member].tokens for member in self.objective.expand_indices([index]))

    def step_tokens(self, step: int) -> int:
        """Tokens of a step."""
        return sum(self.tokens(index) for index in self.schedule.samples(step))

    def loss_weight(self, step: int) -> float:
        """What the summed losses of a step are divided by."""
        return sum(self.objective.loss_weight(index, self.lengths) for index in self.schedule.samples(step))

    def largest(self, step: int, progress: Progress) -> int:
        """Samples in the largest micro-batch of a step, as an epoch counts them."""
        per_sample = len(self.objective.expand_indices([0]))
        return max(len(micro_batch.samples) for micro_batch in self.micro_batches(step, progress)) // per_sample


class StepRunner:
    """Runs the steps of a training on this process's share of their micro-batches."""

    def __init__(
        self,
        model: LoadedModel,
        planner: MicroBatchPlanner,
        optimizer: OptimizerStep,
        batches: Prefetcher,
        frozen_weights: FrozenByModality,
        *,
        seed: int,
        bf16: bool,
    ) -> None:
        self.model, self.planner, self.optimizer, self.batches = model, planner, optimizer, batches
        self.objective = planner.objective
        self.frozen_weights = frozen_weights
        self.seed, self.bf16 = seed, bf16

    def run(self, progress: Progress, factor: float) -> tuple[StepResult, Progress]:
        """The next step; when the GPU runs out of memory, again in smaller micro-batches, which give the same sum.

        `factor` is the share of the peak learning rate. The progress returned has the limits that were found to fit.

        Raises:
            RunError: when a single sample does not fit.
        """
        step = progress.step
        while True:
            try:
                result = self._update(progress, factor)
                self.objective.end_step()
                return result, progress
            except torch.OutOfMemoryError as error:
                largest = self.planner.largest(step, progress)
                if largest == 1 or world_size() > 1 or not self.optimizer.accumulates:
                    raise RunError(
                        "the GPU's memory does not suffice for one sample — use fewer tiles (model.tiles.max), "
                        "train.gradient_checkpointing=true, method qlora, or a smaller model"
                    ) from error
                progress = replace(progress, max_samples=largest // 2)
                logger.warning("Out of GPU memory: continuing with micro-batches of %d samples", largest // 2)
            torch.cuda.empty_cache()  # outside the handler, whose exception still holds the tensors

    def _update(self, progress: Progress, factor: float) -> StepResult:
        def run(use_loss: Callable[[Tensor], None]) -> float:
            return self._run_micro_batches(progress, use_loss)

        return self.optimizer.step(run, factor, step_seed(self.seed, progress.step))

    def _run_micro_batches(self, progress: Progress, use_loss: Callable[[Tensor], None]) -> float:
        """Call `use_loss` with each micro-batch's share of the mean loss; returns the mean over all processes."""
        step, device = progress.step, self.model.device
        seed_everything(step_seed(self.seed, step, rank()))
        weight = self.planner.loss_weight(step)
        planned = self.planner.micro_batches(step, progress)
        current, upcoming = self._own(planned), self._own(self.planner.micro_batches(step + 1, progress))
        counted = len(planned[rank() :: world_size()])
        total = torch.zeros((), device=device, dtype=torch.float64)
        with autocast(device, bf16=self.bf16):  # replies are sampled while frozen weights are stored in bf16
            self.objective.start_step(step, self.planner.schedule.samples(step), step_seed(self.seed, step))
        if self.objective.needs_two_passes:
            with torch.no_grad(), autocast(device, bf16=self.bf16):
                for micro_batch, batch in self._on_device(current, current):
                    self.objective.precompute(batch, micro_batch.samples)
        with frozen(self._frozen_in(step)):
            for number, (micro_batch, batch) in enumerate(self._on_device(current, upcoming)):
                with autocast(device, bf16=self.bf16):
                    loss = self.objective.loss(batch, micro_batch.samples) / weight
                if number >= counted:
                    loss = loss * 0.0
                use_loss(loss)
                total += loss.detach()
        return all_reduce_sum(float(total), device)

    def _own(self, planned: list[MicroBatch]) -> list[MicroBatch]:
        """This process's share of a step's micro-batches.

        Sharded processes gather the weights together and must run equally many passes: those with one micro-batch less
        run the first of the step once more, which does not count.
        """
        own = planned[rank() :: world_size()]
        if is_sharded(self.model.model) and len(own) < len(planned[:: world_size()]):
            own.append(planned[0])
        return own

    def _frozen_in(self, step: int) -> Sequence[torch.nn.Parameter]:
        if not self.frozen_weights:
            return ()
        schedule = self.planner.schedule
        return self.frozen_weights.get(schedule.modalities[schedule.samples(step)[0]], ())

    def _on_device(self, current: list[MicroBatch], upcoming: list[MicroBatch]) -> Iterator[tuple[MicroBatch, Batch]]:
        """Micro-batches with their tensors; the first of `upcoming` are prepared meanwhile."""
        for micro_batch, batch in zip(current, self.batches.batches(current, upcoming), strict=True):
            yield micro_batch, as_inputs(to_device(batch, self.model.device))
