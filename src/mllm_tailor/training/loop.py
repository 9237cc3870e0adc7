"""The training loop: one optimizer step after another, each a pure function of the weights the step before left."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from mllm_tailor.core.conversation import Conversation
from mllm_tailor.core.device import (
    computes_in_bf16,
    current_memory,
    peak_memory,
    seed_everything,
)
from mllm_tailor.core.errors import RunError
from mllm_tailor.core.machine import release_freed_memory
from mllm_tailor.core.progress import console, track
from mllm_tailor.methods import MethodSet
from mllm_tailor.models import LoadedModel, measure_length
from mllm_tailor.models.patches.fused_lora import fused_lora
from mllm_tailor.recipe import Recipe
from mllm_tailor.training.batches import Batch, MicroBatch, Prefetcher, to_device
from mllm_tailor.training.checkpoint_manager import CheckpointManager
from mllm_tailor.training.distributed import all_reduce_sum, any_rank, broadcast_parameters, join, world_size
from mllm_tailor.training.interrupt import Interrupted, StopOnSignal
from mllm_tailor.training.log import SilentLog, TrainingLog
from mllm_tailor.training.memory import most_padding, prepare_memory
from mllm_tailor.training.modality_freezing import frozen, frozen_by_modality
from mllm_tailor.training.objectives.base import ObjectiveInputs, make_objective
from mllm_tailor.training.optim.registry import (
    OptimizerConfig,
    StepResult,
    check_settings,
    make_optimizer_step,
    make_param_groups,
)
from mllm_tailor.training.optim.schedule import rate_factor
from mllm_tailor.training.precision import computing, frozen_in_bf16
from mllm_tailor.training.sampler import chunked, make_batch_schedule, micro_batches, step_seed
from mllm_tailor.training.state import Progress, TrainResult
from mllm_tailor.training.trainable import learning_rates, set_train_mode, trained_weights
from mllm_tailor.training.vision_cache import as_inputs, make_batch_source

PREPARED = 8  # samples side by side while an objective prepares itself
Evaluate = Callable[[], Mapping[str, float]]


def train(
    model: LoadedModel,
    method: MethodSet,
    samples: Sequence[Conversation],
    recipe: Recipe,
    folder: Path,
    *,
    evaluate: Evaluate | None = None,
    less_is_better: bool = False,
    on_event: Callable[[str, int], None] | None = None,
    objective_inputs: ObjectiveInputs = ObjectiveInputs(),  # noqa: B008 (frozen)
    features: Path | None = None,
) -> TrainResult:
    """Train what `method` put into `model` on phrased, labelled samples; go on where an earlier call stopped.

    Writes `log.jsonl`, `tensorboard/`, `checkpoints/` and, at the end, `adapter/` into `folder`. With `evaluate`, the
    weights of the best dev score (its first number; `less_is_better` says which way) are kept; without, the last.
    `objective_inputs` are what the recipe's objective needs beside the samples; `features` is a folder in which several
    trainings keep frozen vision features, which are otherwise deleted when the training has ended.

    Raises:
        Interrupted: after Ctrl-C, with everything saved.
        RunError: when the loss is no longer a number, memory does not suffice, or the disk is full.
    """
    with frozen_in_bf16(model, computes_in_bf16(recipe.model.dtype, model.device)):
        training = Training(
            model, method, samples, recipe, folder, evaluate, less_is_better, on_event, objective_inputs, features
        )
        try:
            return training.run()
        finally:
            training.feed.close()


class Training:
    """One training: what it works on, and how far it is."""

    def __init__(
        self,
        model: LoadedModel,
        method: MethodSet,
        samples: Sequence[Conversation],
        recipe: Recipe,
        folder: Path,
        evaluate: Evaluate | None,
        less_is_better: bool,
        on_event: Callable[[str, int], None] | None,
        objective_inputs: ObjectiveInputs,
        features: Path | None = None,
    ) -> None:
        self.model, self.method, self.recipe, self.folder = model, method, recipe, folder
        self.evaluate = evaluate
        self.sign = -1 if less_is_better else 1
        self.tell = on_event or (lambda name, step: None)
        self.settings = recipe.train
        self.process = join(model.device)
        self.bf16 = computes_in_bf16(recipe.model.dtype, model.device)
        self.objective = make_objective(model, method, samples, recipe, objective_inputs)
        samples = self.objective.samples
        counted = samples[: self.objective.count]
        self.course = make_batch_schedule([sample.modality for sample in counted], recipe.train, recipe.seed)
        self.still = frozen_by_modality(model, recipe.train.modality_parts, self.course.kinds)
        self.marks = self.course.ends(recipe.train.evaluate_every)
        seeing = replace(model, tiles=recipe.train.tiles or model.tiles)
        self.lengths = [measure_length(sample, seeing) for sample in track(samples, "Measuring samples")]
        own = self.objective.weights()
        self.peak_learning_rate = method.peak_learning_rate(recipe.train.learning_rate)
        rates = learning_rates(model, recipe.train.learning_rate) | dict.fromkeys(own, self.peak_learning_rate)
        groups = make_param_groups(trained_weights(model) | own, rates, recipe.train.weight_decay)
        check_settings(recipe.train, method.optimizer)
        setup = OptimizerConfig(groups, recipe.train.max_grad_norm, model.model, method.optimizer_options)
        self.optimizer = make_optimizer_step(method.optimizer or recipe.train.optimizer, setup)
        self.progress = Progress(budget=prepare_memory(model, recipe.train, max(one.tokens for one in self.lengths)))
        self.checkpoint_manager = CheckpointManager(model, method, self.optimizer, recipe, samples, folder, own)
        feed = make_batch_source(seeing, samples, recipe, features or self.checkpoint_manager.cache, self.bf16)
        self.objective.prepare(feed, self.checkpoint_manager.cache, chunked(len(samples), PREPARED))
        self.feed = Prefetcher(feed, workers=1 if model.device.type == "cpu" else 4)

    def run(self) -> TrainResult:
        """All steps that are left, then the adapter."""
        release_freed_memory()  # of the vision pass, which the steps would come on top of
        self.progress = self.checkpoint_manager.resume(self.progress)
        broadcast_parameters(trained_weights(self.model).values())
        if self.progress.step:
            console.print(f"Going on after step {self.progress.step} of {self.course.steps}")
        with StopOnSignal() as signal, self._open_log() as log, fused_lora(self.model.model):
            try:
                self._go(signal, log)
            except KeyboardInterrupt:
                if not signal.busy:  # a step broken off leaves half-made weights; the last checkpoint is whole
                    self._save()
                raise Interrupted(
                    f"stopped after step {self.progress.step} of {self.course.steps}; checkpoints are in "
                    f"{self.checkpoint_manager.checkpoints} — run the same command again to go on"
                ) from None
        return self._finish()

    def _go(self, signal: StopOnSignal, log: TrainingLog | SilentLog) -> None:
        saved = time.monotonic()
        while True:
            ended = self._ended()
            due = self._evaluation_due(ended)
            if due:
                self._evaluate(log)
            late = time.monotonic() - saved > 60 * self.settings.checkpoint_every
            if due or ended or any_rank(late, self.model.device):
                self._save()
                saved = time.monotonic()
            if ended:
                return
            signal.busy = True
            self._step(log)
            signal.busy = False
            if any_rank(signal.wanted, self.model.device):
                raise KeyboardInterrupt

    def _open_log(self) -> TrainingLog | SilentLog:
        if not self.process.is_main_process:
            return SilentLog()
        return TrainingLog(self.folder, self.recipe.name, self.course.steps, self.progress)

    def _ended(self) -> bool:
        spent = self.settings.max_minutes is not None and self.progress.seconds >= 60 * self.settings.max_minutes
        return any_rank(spent or self.progress.step >= self.course.steps, self.model.device)

    def _evaluation_due(self, ended: bool) -> bool:
        step = self.progress.step
        wanted = self.evaluate is not None and 0 < step != self.progress.evaluated_step
        return wanted and (step in self.marks or ended)

    def _step(self, log: TrainingLog | SilentLog) -> None:
        step, place = self.progress.step, self._place()
        began, worked = time.perf_counter(), time.process_time()
        factor = rate_factor(place, self.course.steps, self.settings.warmup_ratio, self.settings.schedule)
        self.method.begin_step(self.model, step, step_seed(self.recipe.seed, step))
        taken = self._take(step, factor)
        self.method.end_step(self.model, int(place), self.course.steps)
        if not math.isfinite(taken.loss):
            raise RunError(
                f"step {step + 1}: the loss is {taken.loss} — lower train.learning_rate or set train.max_grad_norm; "
                f"the last checkpoint is in {self.checkpoint_manager.checkpoints}"
            )
        chosen = self.course.samples(step)
        tokens = sum(self._tokens(number) for number in chosen)
        seconds = time.perf_counter() - began
        worked = all_reduce_sum(time.process_time() - worked, self.model.device)
        self.progress = self.progress.after_step(len(chosen), tokens, seconds, worked)
        log.step(self._row(taken, factor, len(chosen), tokens, seconds))
        self.tell("step", self.progress.step)

    def _place(self) -> float:
        """Where on the schedule the next step lies, in steps.

        A budget of minutes too short for all steps shortens the schedule too, else it would be cut off at a high rate.
        """
        step, steps = self.progress.step, self.course.steps
        if self.settings.max_minutes is None:
            return step
        spent = all_reduce_sum(self.progress.seconds, self.model.device) / world_size()  # the same on every process
        return max(step, min(1.0, spent / (60 * self.settings.max_minutes)) * steps)

    def _seconds_left(self) -> float:
        done, minutes = self.progress, self.settings.max_minutes
        left = done.seconds / done.step * (self.course.steps - done.step)
        return left if minutes is None else min(left, max(0.0, 60 * minutes - done.seconds))

    def _row(
        self, taken: StepResult, factor: float, count: int, tokens: int, seconds: float
    ) -> dict[str, float | int | None]:
        done = self.progress
        return {
            "step": done.step,
            "epoch": round(done.step / self.course.steps_per_epoch, 4),
            "loss": taken.loss,
            "learning_rate": self.peak_learning_rate * factor,
            "gradient_norm": taken.gradient_norm,
            "samples_per_second": round(count / seconds, 4),
            "tokens_per_second": round(tokens / seconds, 2),
            "memory": current_memory(self.model.device),
            "seconds": round(done.seconds, 3),
            "seconds_left": round(self._seconds_left(), 1),
        }

    def _take(self, step: int, factor: float) -> StepResult:
        """One update; when the GPU's memory does not suffice, again in smaller passes: the same sum in other pieces."""
        while True:
            try:
                return self.optimizer.step(
                    lambda each: self._passes(step, each), factor, step_seed(self.recipe.seed, step)
                )
            except torch.OutOfMemoryError as error:
                together = len(self.objective.expand_indices([0]))
                largest = max(len(one.samples) for one in self._plan(step)) // together
                if largest == 1 or world_size() > 1 or not self.optimizer.accumulates:
                    raise RunError(
                        "the GPU's memory does not suffice for one sample — use fewer tiles (model.tiles.max), "
                        "train.gradient_checkpointing=true, method qlora, or a smaller model"
                    ) from error
                self.progress = replace(self.progress, most=largest // 2)
                console.print(f"[yellow]Out of GPU memory: going on with {largest // 2} samples a pass")
            torch.cuda.empty_cache()

    def _plan(self, step: int) -> list[MicroBatch]:
        chosen = self.course.samples(step)
        most = self.progress.most or self.settings.micro_batch_size
        if not self.optimizer.accumulates:
            most = len(chosen)
        tokens = [self._tokens(number) for number in chosen]
        padding = most_padding(self.model.device)
        passes = micro_batches(chosen, tokens, most=most, budget=self.progress.budget, padding=padding)
        return [MicroBatch(self.objective.expand_indices(one), self.course.epoch(step)) for one in passes]

    def _tokens(self, number: int) -> int:
        """Of everything a sample brings into a pass."""
        return sum(self.lengths[member].tokens for member in self.objective.expand_indices([number]))

    def _passes(self, step: int, each: Callable[[Tensor], None]) -> float:
        """Forward passes of a step on this process, each one's share of the mean loss handed to `each`."""
        rank, device = self.process.process_index, self.model.device
        seed_everything(step_seed(self.recipe.seed, step, rank))
        units = sum(self.objective.loss_weight(number, self.lengths) for number in self.course.samples(step))
        plan = self._plan(step)[rank :: world_size()]
        then = self._plan(step + 1)[rank :: world_size()] if step + 1 < self.course.steps else []
        loss = torch.zeros((), device=device, dtype=torch.float64)
        self.objective.start_step()
        if self.objective.needs_two_passes:
            with torch.no_grad(), computing(device, self.bf16):
                for one, batch in self._batches(plan, plan):
                    self.objective.precompute(batch, one.samples)
        kind = self.course.kinds[self.course.samples(step)[0]] if self.still else ""
        with frozen(self.still.get(kind, ())):
            for one, batch in self._batches(plan, then):
                with computing(device, self.bf16):
                    share = self.objective.loss(batch, one.samples) / units
                each(share)
                loss += share.detach()
        return all_reduce_sum(float(loss), device)

    def _batches(self, plan: list[MicroBatch], then: list[MicroBatch]) -> Iterator[tuple[MicroBatch, Batch]]:
        """Passes and their batches on the device; the first of `then` are begun meanwhile."""
        for one, batch in zip(plan, self.feed.take(plan, then), strict=True):
            yield one, as_inputs(to_device(batch, self.model.device))

    def _evaluate(self, log: TrainingLog | SilentLog) -> None:
        if self.evaluate is not None and self.process.is_main_process:
            self._score(self.evaluate, log)
        self.progress = replace(self.progress, evaluated_step=self.progress.step)

    def _score(self, evaluate: Evaluate, log: TrainingLog | SilentLog) -> None:
        network = self.model.model
        network.eval()
        mixed = len({weight.dtype for weight in network.parameters() if weight.is_floating_point()}) > 1
        with computing(self.model.device, self.bf16 and mixed):
            scores = dict(evaluate())
        set_train_mode(self.model)
        if not scores:
            return
        log.dev(self.progress.step, scores)
        first = next(iter(scores.values()))
        best = self.progress.best_score
        if best is None or self.sign * first > self.sign * best:
            self.progress = replace(self.progress, best_step=self.progress.step, best_score=first)
            self.checkpoint_manager.keep_best(self.progress)
        self.tell("evaluate", self.progress.step)

    def _save(self) -> None:
        if self.process.is_main_process:
            self.checkpoint_manager.save(self.progress)
        self.process.wait_for_everyone()
        self.tell("checkpoint", self.progress.step)

    def _finish(self) -> TrainResult:
        if self.process.is_main_process:
            self.checkpoint_manager.finish(self.progress)
        self.process.wait_for_everyone()
        self.model.model.eval()
        peak = peak_memory(self.model.device)
        if self.model.device.type == "cpu":  # all processes take it from one memory
            peak = round(all_reduce_sum(peak, self.model.device))
        return TrainResult.of(self.progress, self.course, peak, self.folder)
