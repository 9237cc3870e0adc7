"""The training loop. Each optimizer step is a pure function of the weights and state the step before left."""

from __future__ import annotations

import logging
import math
import shutil
import sys
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from mllm_tailor.core.conversation import Conversation
from mllm_tailor.core.device import current_memory, peak_memory
from mllm_tailor.core.errors import RunError
from mllm_tailor.core.lazy_sequence import LazySequence
from mllm_tailor.core.machine import release_freed_memory
from mllm_tailor.core.progress import track
from mllm_tailor.models import Length, LoadedModel, measure_length
from mllm_tailor.models.patches.fused_layers import fused_layers
from mllm_tailor.training.batches import Prefetcher
from mllm_tailor.training.checkpoint_manager import CheckpointManager, samples_fingerprint
from mllm_tailor.training.config import TrainingConfig, TrainingEvent, TrainingHooks
from mllm_tailor.training.distributed import (
    all_reduce_sum,
    any_rank,
    barrier,
    broadcast_parameters,
    init_process_group,
    rank,
    world_size,
)
from mllm_tailor.training.evaluation import DevEvaluator
from mllm_tailor.training.interrupt import Interrupted, StopOnSignal
from mllm_tailor.training.log import SilentLog, TrainingLog
from mllm_tailor.training.memory import max_padding, prepare_memory
from mllm_tailor.training.modality_freezing import frozen_by_modality
from mllm_tailor.training.objectives.base import Objective, ObjectiveContext
from mllm_tailor.training.objectives.factory import make_objective
from mllm_tailor.training.optim.registry import (
    OptimizerConfig,
    OptimizerStep,
    StepResult,
    check_settings,
    make_optimizer_step,
    make_param_groups,
)
from mllm_tailor.training.optim.schedule import rate_factor
from mllm_tailor.training.packed_lengths import PackedLengths
from mllm_tailor.training.precision import frozen_in_bf16
from mllm_tailor.training.sampler import BatchSchedule, StreamWindow, chunked, make_batch_schedule, step_seed
from mllm_tailor.training.sharding import gathered, is_sharded, shard
from mllm_tailor.training.state import Progress, TimeBudget, TrainResult
from mllm_tailor.training.step_runner import MicroBatchPlanner, StepRunner
from mllm_tailor.training.trainable import learning_rates, trained_weights, tuning_method_of
from mllm_tailor.training.vision_cache import make_batch_source

logger = logging.getLogger(__name__)

PREPARED = 8  # samples per batch while an objective prepares itself


def train(
    model: LoadedModel,
    samples: Sequence[Conversation],
    config: TrainingConfig,
    folder: Path,
    hooks: TrainingHooks = TrainingHooks(),  # noqa: B008 (frozen)
) -> TrainResult:
    """Train the weights that a method made trainable in `model`, on phrased and labelled samples.

    A training that was interrupted continues from its last checkpoint. `log.jsonl`, `tensorboard/`, `checkpoints/` and,
    at the end, `adapter/` are written into `folder`. With `hooks.evaluate`, the weights of the best dev score are kept,
    otherwise those of the last step.

    Raises:
        Interrupted: after Ctrl-C, with everything saved.
        RunError: when the loss is no longer a number, memory does not suffice, or the disk is full.
    """
    init_process_group(model.device)
    with frozen_in_bf16(model, bf16=config.uses_bf16(model.device)):
        training = Training(model, samples, config, folder, hooks)
        try:
            return training.run()
        finally:
            training.batches.close()


class Training:
    """A training in progress, composed of schedule, batches, step runner, evaluator and checkpoints."""

    def __init__(
        self,
        model: LoadedModel,
        samples: Sequence[Conversation],
        config: TrainingConfig,
        folder: Path,
        hooks: TrainingHooks,
    ) -> None:
        self.model, self.config, self.folder, self.hooks = model, config, folder, hooks
        self.method = tuning_method_of(model)
        settings, bf16 = config.train, config.uses_bf16(model.device)
        context = ObjectiveContext(
            model, samples, settings, config.dtype, bf16, hooks.objective_inputs, self.method.optimizer_options
        )
        objective = make_objective(context)
        self.schedule = _schedule(objective, config)
        self.time_budget = TimeBudget(self.schedule.steps, settings.max_minutes, settings.max_cpu_minutes)
        tiled = replace(model, tiles=settings.tiles or model.tiles)
        measured = (measure_length(sample, tiled) for sample in track(objective.samples, "Measuring samples"))
        lengths = PackedLengths(replace(size, tokens=size.tokens + objective.reserved_tokens) for size in measured)
        self.progress = Progress(token_budget=prepare_memory(model, settings, max(size.tokens for size in lengths)))
        self.saved: Progress | None = None  # what the newest checkpoint holds
        self.batches = self._make_batches(objective, tiled)
        if settings.shard == "fsdp" and world_size() > 1:
            self._shard(objective.samples)
        frozen_weights = frozen_by_modality(model, settings.modality_parts, self.schedule.modalities)
        self.peak_learning_rate = self.method.peak_learning_rate(settings.learning_rate)
        optimizer = self._make_optimizer(objective.extra_parameters())
        self.checkpoints = CheckpointManager(
            folder, model, optimizer, objective, keep=settings.keep_checkpoints,
            fingerprint=f"{config.fingerprint} {samples_fingerprint(objective.samples)}",
        )  # fmt: skip
        self.planner = _planner(self.schedule, objective, lengths, optimizer, settings.micro_batch_size)
        self.steps = StepRunner(
            model, self.planner, optimizer, self.batches, frozen_weights, seed=config.seed, bf16=bf16
        )
        self.evaluator = DevEvaluator(
            model, hooks.evaluate, self.schedule.ends(settings.evaluate_every),
            lower_is_better=hooks.lower_is_better, bf16=bf16,
        )  # fmt: skip

    @property
    def cache(self) -> Path:
        """The folder of what is computed once and only needed until the end of this training."""
        return self.folder / "cache"

    def _shard(self, samples: Sequence[Conversation]) -> None:
        """Shard the model; a part that some samples do not use is gathered with the rest."""
        network, parts = self.model.model, self.model.family.parts
        broadcast_parameters(trained_weights(self.model).values())
        used = ("language", "vision") if all(sample.modality == "image" for sample in samples) else ("language",)
        shard(network, self.model.device, tuple(f"{name}." for part in used for name in parts.get(part, ())))

    def _make_optimizer(self, extra: dict[str, nn.Parameter]) -> OptimizerStep:
        settings, method = self.config.train, self.method
        rates = learning_rates(self.model, settings.learning_rate) | dict.fromkeys(extra, self.peak_learning_rate)
        groups = make_param_groups(trained_weights(self.model) | extra, rates, settings.weight_decay)
        check_settings(settings, method.optimizer)
        config = OptimizerConfig(groups, settings.max_grad_norm, self.model.model, method.optimizer_options)
        return make_optimizer_step(method.optimizer or settings.optimizer, config)

    def _make_batches(self, objective: Objective, tiled: LoadedModel) -> Prefetcher:
        """Batches in the background; what objective and vision cache compute once is computed here."""
        with fused_layers(self.model.model):
            source = make_batch_source(tiled, objective.samples, self.config, self.config.features or self.cache)
        started = time.process_time()
        objective.prepare(source, self.cache, chunked(len(objective.samples), PREPARED))
        spent = self.hooks.objective_inputs.cpu_seconds + time.process_time() - started
        self.progress = replace(self.progress, prepared_cpu_seconds=all_reduce_sum(spent, self.model.device))
        return Prefetcher(source, workers=1 if self.model.device.type == "cpu" else 4)

    def run(self) -> TrainResult:
        """All remaining steps, then the adapter."""
        release_freed_memory()  # of the vision pass, which would add to the memory of the steps
        self.progress = self.checkpoints.resume(self.progress)
        broadcast_parameters(trained_weights(self.model).values())
        if self.progress.step:
            self.saved = self.progress
            logger.info("Resuming after step %d of %d", self.progress.step, self.schedule.steps)
        network = self.model.model
        fused = nullcontext() if is_sharded(network) else fused_layers(network)
        with StopOnSignal() as signal, self._open_log() as log, fused:
            try:
                self._loop(signal, log)
            except KeyboardInterrupt:
                if not signal.busy:  # within a step the weights are half updated; the last checkpoint is intact
                    self._save()
                raise Interrupted(
                    f"stopped after step {self.progress.step} of {self.schedule.steps}; checkpoints are in "
                    f"{self.checkpoints.checkpoints} — run the same command again to resume"
                ) from None
        return self._finish()

    def _loop(self, signal: StopOnSignal, log: TrainingLog | SilentLog) -> None:
        saved, device = time.monotonic(), self.model.device
        while True:
            ended = self._ended()
            due = self.evaluator.due(self.progress, ended=ended)
            if due:
                self._evaluate(log)
            late = time.monotonic() - saved > 60 * self.config.train.checkpoint_every
            if due or ended or any_rank(device, condition=late):
                self._save()
                saved = time.monotonic()
            if ended:
                return
            signal.busy = True
            self._step(log)
            signal.busy = False
            if any_rank(device, condition=signal.requested):
                raise KeyboardInterrupt

    def _ended(self) -> bool:
        done = self.progress.step >= self.schedule.steps
        return any_rank(self.model.device, condition=done or self.time_budget.spent(self.progress))

    def _open_log(self) -> TrainingLog | SilentLog:
        if rank() > 0:
            return SilentLog()
        return TrainingLog(self.folder, self.schedule.steps, self.progress, self.config.train.trackers)

    def _step(self, log: TrainingLog | SilentLog) -> None:
        step, device, settings = self.progress.step, self.model.device, self.config.train
        position = self.time_budget.schedule_step(self.progress, self._mean_seconds())
        factor = rate_factor(position, self.schedule.steps, settings.warmup_ratio, settings.schedule)
        started, cpu_started = time.perf_counter(), time.process_time()
        self.method.begin_step(self.model, step, step_seed(self.config.seed, step))
        result, self.progress = self.steps.run(self.progress, factor)
        self.method.end_step(self.model, int(position), self.schedule.steps)
        if not math.isfinite(result.loss):
            raise RunError(
                f"step {step + 1}: the loss is {result.loss} — lower train.learning_rate or set train.max_grad_norm; "
                f"the last checkpoint is in {self.checkpoints.checkpoints}"
            )
        seconds = time.perf_counter() - started
        samples, tokens = len(self.schedule.samples(step)), self.planner.step_tokens(step)
        cpu_seconds = all_reduce_sum(time.process_time() - cpu_started, device)
        self.progress = self.progress.after_step(
            samples=samples, tokens=tokens, seconds=seconds, cpu_seconds=cpu_seconds
        )
        row = self._row(result, factor) | {
            "samples_per_second": round(samples / seconds, 4),
            "tokens_per_second": round(tokens / seconds, 2),
        }
        log.step(row)
        self._notify("step", row)

    def _mean_seconds(self) -> float:
        """Seconds in steps so far, the same on every process where they decide about the schedule."""
        if not self.time_budget.limited:
            return self.progress.seconds
        return all_reduce_sum(self.progress.seconds, self.model.device) / world_size()

    def _row(self, result: StepResult, factor: float) -> dict[str, Any]:
        """The line of a step in log.jsonl."""
        progress = self.progress
        return {
            "step": progress.step,
            "epoch": round(progress.step / self.schedule.steps_per_epoch, 4),
            "loss": result.loss,
            "learning_rate": self.peak_learning_rate * factor,
            "gradient_norm": result.gradient_norm,
            "memory": current_memory(self.model.device),
            "seconds": round(progress.seconds, 3),
            "seconds_left": round(self.time_budget.seconds_left(progress), 1),
            **self.planner.objective.log_values(),
        }

    def _evaluate(self, log: TrainingLog | SilentLog) -> None:
        self.progress, scores = self.evaluator.run(self.progress, self.checkpoints)
        if scores:
            log.dev(self.progress.step, scores)
            self._notify("evaluate", scores)

    def _save(self) -> None:
        if self.progress == self.saved:  # a training that had ended is resumed: its checkpoint stays as it is
            return
        if is_sharded(self.model.model):
            self.checkpoints.save_sharded(self.progress)
        elif rank() == 0:
            self.checkpoints.save(self.progress)
        barrier()
        self.saved = self.progress
        self._notify("checkpoint")

    def _notify(self, kind: Any, values: Any = None) -> None:
        if self.hooks.on_event is not None:
            self.hooks.on_event(TrainingEvent(kind, self.progress.step, self.schedule.steps, values or {}))

    def _finish(self) -> TrainResult:
        with gathered(self.model.model):
            if rank() == 0:
                self.checkpoints.finish(self.progress)
                shutil.rmtree(self.cache, ignore_errors=True)
        barrier()
        self.model.model.eval()
        peak = peak_memory(self.model.device)
        if self.model.device.type == "cpu":  # all processes share one memory
            peak = round(all_reduce_sum(peak, self.model.device))
        return TrainResult.of(self.progress, self.schedule, peak, self.folder)


def _schedule(objective: Objective, config: TrainingConfig) -> BatchSchedule:
    counted = objective.samples[: objective.num_samples]
    modalities = [sys.intern(sample.modality) for sample in counted]
    window = StreamWindow() if isinstance(objective.samples, LazySequence) else None
    return make_batch_schedule(modalities, config.train, config.seed, updates=objective.updates, window=window)


def _planner(
    schedule: BatchSchedule,
    objective: Objective,
    lengths: Sequence[Length],
    optimizer: OptimizerStep,
    max_samples: int | None,
) -> MicroBatchPlanner:
    padding = max_padding(objective.model.device)
    return MicroBatchPlanner(schedule, objective, lengths, max_samples, optimizer.accumulates, padding)
