"""The interface of a training objective: the loss of a micro-batch, and the weight by which a step averages it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mllm_tailor.core.conversation import Conversation
from mllm_tailor.models import Length, LoadedModel
from mllm_tailor.recipe import Train
from mllm_tailor.training.batches import Batch, BatchSource
from mllm_tailor.training.config import ObjectiveInputs
from mllm_tailor.training.trainable import set_train_mode


@dataclass(frozen=True)
class ObjectiveContext:
    """What an objective is made from."""

    model: LoadedModel
    samples: Sequence[Conversation]  # phrased and labelled
    settings: Train
    dtype: str = "auto"  # in which further models, such as a teacher, are loaded
    bf16: bool = False  # whether products are computed in bf16
    inputs: ObjectiveInputs = field(default_factory=ObjectiveInputs)
    options: Mapping[str, Any] = field(default_factory=dict)  # settings of a method that brings its own objective


class Objective(ABC):
    """What a training minimises: the sum of `loss` over a step's micro-batches, divided by the sum of `loss_weight`."""

    needs_two_passes = False  # whether `precompute` sees all micro-batches of a step before the first `loss`
    reserved_tokens = 0  # by which a step may lengthen each sample
    updates = 1  # consecutive steps on the same samples

    def __init__(self, model: LoadedModel, samples: Sequence[Conversation]) -> None:
        self.model = model
        self.samples = samples  # everything that is encoded
        self.num_samples = len(samples)  # an epoch consists of the first so many

    @abstractmethod
    def loss(self, batch: Batch, indices: tuple[int, ...]) -> Tensor:
        """The loss of a micro-batch (scalar, with gradients), summed over whatever `loss_weight` counts."""

    @abstractmethod
    def loss_weight(self, index: int, lengths: Sequence[Length]) -> float:
        """The weight of one sample in the step's mean; `lengths` are those of all `samples`."""

    def expand_indices(self, indices: Sequence[int]) -> tuple[int, ...]:
        """The indices of everything that is encoded for a micro-batch of the samples `indices`."""
        return tuple(indices)

    def extra_parameters(self) -> dict[str, nn.Parameter]:
        """Parameters of the objective itself, which are trained and discarded at the end."""
        return {}

    def prepare(self, source: BatchSource, folder: Path, chunks: Sequence[tuple[int, ...]]) -> None:  # noqa: B027
        """Compute once, with the weights before the first step, what all steps need; `folder` keeps it for a resume."""

    def start_step(self, step: int, indices: Sequence[int], seed: int) -> None:  # noqa: B027 - few need these
        """Called before the micro-batches of a step (from 0) on these samples, and again when they are run again."""

    def end_step(self) -> None:  # noqa: B027
        """Called once after a step's last micro-batch."""

    def log_values(self) -> dict[str, float]:
        """What the log shows of the last step beside its loss."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """Plain values that a checkpoint must hold for a resumed training to continue bit for bit."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:  # noqa: B027
        """Restore what `state_dict` returned."""

    def precompute(self, batch: Batch, indices: tuple[int, ...]) -> None:  # noqa: B027
        """See a micro-batch, without gradients, before the first loss of its step."""


@contextmanager
def eval_no_grad(model: LoadedModel) -> Iterator[None]:
    """Within, the model computes without gradients and dropout; afterwards its training modes are restored."""
    model.model.eval()
    with torch.no_grad():
        yield
    set_train_mode(model)
