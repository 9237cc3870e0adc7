"""The progress of a training, as its checkpoints record it, and its result."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from mllm_tailor.core.io import read_jsonl
from mllm_tailor.training.sampler import BatchSchedule


@dataclass(frozen=True)
class Progress:
    """What a checkpoint records beside tensors."""

    step: int = 0  # optimizer steps done
    samples: int = 0
    tokens: int = 0
    seconds: float = 0.0  # wall time of the steps, without evaluations
    cpu_seconds: float = 0.0  # CPU time of the steps, of all threads and processes: comparable on a busy machine
    prepared_cpu_seconds: float = 0.0  # CPU time before the first step of what the objective learns from
    evaluated_step: int | None = None  # the last step after which the dev split was scored
    best_step: int | None = None
    best_score: float | None = None
    token_budget: int = 0  # tokens of a micro-batch, padding included
    max_samples: int | None = None  # samples of a micro-batch, set after the GPU ran out of memory

    def after_step(self, *, samples: int, tokens: int, seconds: float, cpu_seconds: float) -> Progress:
        """The progress one step later."""
        return replace(
            self,
            step=self.step + 1,
            samples=self.samples + samples,
            tokens=self.tokens + tokens,
            seconds=self.seconds + seconds,
            cpu_seconds=self.cpu_seconds + cpu_seconds,
        )


@dataclass(frozen=True)
class TrainResult:
    """Costs and outcome of a training."""

    steps: int
    epochs: float
    samples: int
    seconds: float
    cpu_seconds: float
    samples_per_second: float
    tokens_per_second: float
    peak_bytes: int
    best_step: int | None  # None: the weights of the last step were kept
    best_score: float | None
    complete: bool  # False: `train.max_minutes` ended it
    losses: list[float] = field(default_factory=list)  # one per step

    @classmethod
    def of(cls, progress: Progress, schedule: BatchSchedule, peak_bytes: int, folder: Path) -> TrainResult:
        """From the last progress and the log."""
        seconds = max(progress.seconds, 1e-9)
        return cls(
            steps=progress.step,
            epochs=progress.step / schedule.steps_per_epoch,
            samples=progress.samples,
            seconds=progress.seconds,
            cpu_seconds=progress.prepared_cpu_seconds + progress.cpu_seconds,
            samples_per_second=progress.samples / seconds,
            tokens_per_second=progress.tokens / seconds,
            peak_bytes=peak_bytes,
            best_step=progress.best_step,
            best_score=progress.best_score,
            complete=progress.step >= schedule.steps,
            losses=[row["loss"] for _, row in read_jsonl(folder / "log.jsonl") if "loss" in row],
        )

    def row(self) -> dict[str, Any]:
        """Plain values for training.json; the losses are in log.jsonl."""
        return {key: value for key, value in asdict(self).items() if key != "losses"}


@dataclass(frozen=True)
class TimeBudget:
    """Where a training stands on its schedule of `steps`, which a limit on wall or CPU time may shorten.

    CPU time includes what an objective computed before the first step, so that trainings by different objectives can be
    given the same.
    """

    steps: int
    max_minutes: float | None
    max_cpu_minutes: float | None = None

    @property
    def limited(self) -> bool:
        """Whether there is a limit."""
        return self.max_minutes is not None or self.max_cpu_minutes is not None

    def share_spent(self, progress: Progress, seconds: float) -> float:
        """Of the limit that is nearer, at most 1; `seconds` of wall time, the same on every process."""
        cpu_seconds = progress.prepared_cpu_seconds + progress.cpu_seconds
        limits = ((seconds, self.max_minutes), (cpu_seconds, self.max_cpu_minutes))
        return min(1.0, max((used / (60 * most) for used, most in limits if most is not None), default=0.0))

    def spent(self, progress: Progress) -> bool:
        """Whether the minutes are used up."""
        return self.limited and self.share_spent(progress, progress.seconds) >= 1

    def schedule_step(self, progress: Progress, seconds: float) -> float:
        """The position on the learning-rate schedule, in steps, after `seconds` of training.

        Where the minutes do not suffice for all steps, the schedule shortens with them; otherwise training would end
        at a high learning rate.
        """
        return max(float(progress.step), self.share_spent(progress, seconds) * self.steps)

    def seconds_left(self, progress: Progress) -> float:
        """Estimated from the mean step so far; the minutes cap it."""
        left = progress.seconds / progress.step * (self.steps - progress.step)
        share = self.share_spent(progress, progress.seconds)
        return min(left, progress.seconds * (1 - share) / share) if share else left
