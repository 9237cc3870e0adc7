"""What happens in a run, for those who show or record it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mllm_tailor.run.epoch_summary import Share
from mllm_tailor.run.run_dir import RunFolder
from mllm_tailor.run.scores import RunScores
from mllm_tailor.scoring import Forgetting


@dataclass(frozen=True)
class StageStarted:
    """A stage of a recipe begins or is taken up again."""

    number: int  # from 1
    count: int
    name: str


@dataclass(frozen=True)
class FoldStarted:
    """A training of a cross-validation begins or is taken up again; the last one is of the final model."""

    number: int  # from 1
    count: int


@dataclass(frozen=True)
class EpochPlanned:
    """The samples were measured; training has not begun."""

    shares: Sequence[Share]


@dataclass(frozen=True)
class RunScored:
    """A run's predictions were scored and its report was written."""

    folder: RunFolder
    scores: RunScores


@dataclass(frozen=True)
class StageEnded:
    """A stage has ended; every stage's held-out samples are scored with the model of now."""

    forgetting: Forgetting


RunEvent = StageStarted | FoldStarted | EpochPlanned | RunScored | StageEnded
Notify = Callable[[RunEvent], None]


def ignore(event: RunEvent) -> None:
    """Do nothing with it."""
