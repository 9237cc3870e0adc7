"""How far a training is, and what it came to in the end."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from mllm_tailor.core.io import read_jsonl
from mllm_tailor.training.sampler import BatchSchedule


@dataclass(frozen=True)
class Progress:
    """What a checkpoint notes beside tensors."""

    step: int = 0  # optimizer steps done
    samples: int = 0
    tokens: int = 0
    seconds: float = 0.0  # spent in steps, evaluations left out
    processor_seconds: float = 0.0  # of them, of all threads; what a busy machine leaves comparable
    evaluated_step: int | None = None  # the last step after which the dev part was scored
    best_step: int | None = None
    best_score: float | None = None
    budget: int = 0  # tokens of one forward pass
    most: int | None = None  # samples of one forward pass, after memory ran out

    def after_step(self, samples: int, tokens: int, seconds: float, processor_seconds: float) -> Progress:
        """One step further."""
        return replace(
            self,
            step=self.step + 1,
            samples=self.samples + samples,
            tokens=self.tokens + tokens,
            seconds=self.seconds + seconds,
            processor_seconds=self.processor_seconds + processor_seconds,
        )


@dataclass(frozen=True)
class TrainResult:
    """What a training cost and came to."""

    steps: int
    epochs: float
    samples: int
    seconds: float
    processor_seconds: float
    samples_per_second: float
    tokens_per_second: float
    peak_bytes: int
    best_step: int | None  # None: the last step's weights were kept
    best_score: float | None
    complete: bool  # False: the budget of minutes ended it
    losses: list[float] = field(default_factory=list)  # one a step

    @classmethod
    def of(cls, progress: Progress, course: BatchSchedule, peak_bytes: int, folder: Path) -> TrainResult:
        """From the last progress and the log."""
        seconds = max(progress.seconds, 1e-9)
        return cls(
            steps=progress.step,
            epochs=progress.step / course.steps_per_epoch,
            samples=progress.samples,
            seconds=progress.seconds,
            processor_seconds=progress.processor_seconds,
            samples_per_second=progress.samples / seconds,
            tokens_per_second=progress.tokens / seconds,
            peak_bytes=peak_bytes,
            best_step=progress.best_step,
            best_score=progress.best_score,
            complete=progress.step >= course.steps,
            losses=[row["loss"] for _, row in read_jsonl(folder / "log.jsonl") if "loss" in row],
        )

    def row(self) -> dict[str, Any]:
        """Plain values for training.json; the losses are in log.jsonl."""
        return {key: value for key, value in asdict(self).items() if key != "losses"}
