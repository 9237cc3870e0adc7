"""The files of a training: checkpoints to resume from, the best weights, the finished adapter."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mllm_tailor.core.conversation import Conversation, as_conversation
from mllm_tailor.core.errors import DataError, RunError
from mllm_tailor.core.io import atomic_folder, fingerprint
from mllm_tailor.core.lazy_sequence import LazySequence
from mllm_tailor.methods import trainable_state_dict
from mllm_tailor.models import LoadedModel
from mllm_tailor.training.checkpoint import (
    Checkpoint,
    checkpoint_name,
    clear_unfinished,
    load_verified,
    read_newest,
    save_verified,
    write_checkpoint,
)
from mllm_tailor.training.distributed import rank
from mllm_tailor.training.objectives.base import Objective
from mllm_tailor.training.optim.registry import OptimizerStep
from mllm_tailor.training.sharded_checkpoint import read_shards, separate, write_shards
from mllm_tailor.training.sharding import like
from mllm_tailor.training.state import Progress
from mllm_tailor.training.trainable import tuning_method_of

logger = logging.getLogger(__name__)


class CheckpointManager:
    """Saves and restores a training: the method's weights, those of the objective, and the state of both."""

    def __init__(
        self, folder: Path, model: LoadedModel, optimizer: OptimizerStep, objective: Objective, *, keep: int,
        fingerprint: str,
    ) -> None:  # fmt: skip
        """`keep`: checkpoints kept; `fingerprint`: of everything that must be the same for a resume."""
        self.model, self.optimizer, self.objective = model, optimizer, objective
        self.extra = objective.extra_parameters()
        self.method = tuning_method_of(model)
        self.keep, self.fingerprint = keep, fingerprint
        self.folder, self.checkpoints = folder, folder / "checkpoints"
        self.best = self.checkpoints / "best"

    def save(self, progress: Progress) -> None:
        """Write a checkpoint from which `resume` continues bit for bit."""
        groups, values = self._state(progress)
        write_checkpoint(self.checkpoints, Checkpoint(progress.step, groups, values), self.keep)

    def save_sharded(self, progress: Progress) -> None:
        """The same of a sharded model: every process writes its slices (collective)."""
        groups, values = self._state(progress)
        sliced, whole = separate(groups)
        shards = write_shards(self.checkpoints, checkpoint_name(progress.step), sliced)
        if rank() == 0:
            write_checkpoint(self.checkpoints, Checkpoint(progress.step, whole, values, shards), self.keep)

    def _state(self, progress: Progress) -> tuple[dict[str, Mapping[str, Tensor]], dict[str, Any]]:
        """Everything that a checkpoint holds: groups of tensors, and plain values."""
        tensors, numbers = self.optimizer.state()
        values = {
            "progress": asdict(progress),
            "optimizer": numbers,
            "method": self.method.state_dict(self.model),
            "objective": self.objective.state_dict(),
            "fingerprint": self.fingerprint,
        }
        return {"weights": self._weights(), "optimizer": tensors}, values

    def resume(self, fresh: Progress) -> Progress:
        """Load the newest intact checkpoint into model and optimizer; `fresh` when there is none.

        Raises:
            RunError: when the checkpoint belongs to other samples or settings.
        """
        clear_unfinished(self.checkpoints)
        checkpoint = read_newest(self.checkpoints)
        if checkpoint is None:
            return fresh
        if checkpoint.values["fingerprint"] != self.fingerprint:
            raise RunError(
                f"{self.checkpoints}: these checkpoints belong to other samples or settings — "
                "restore them, or train into a new folder (name=..., or --fresh)"
            )
        tensors = {group: dict(named) for group, named in checkpoint.tensors.items()}
        if checkpoint.shards is not None:
            present = self._weights()
            for group, named in read_shards(checkpoint.shards, lambda _, name: present[name.split("|")[0]]).items():
                tensors[group] |= named
        self._load(tensors["weights"])
        self.optimizer.restore(tensors["optimizer"], checkpoint.values["optimizer"])
        self.method.load_state_dict(self.model, checkpoint.values["method"])
        self.objective.load_state_dict(checkpoint.values["objective"])
        return Progress(**checkpoint.values["progress"])

    def save_best(self, progress: Progress) -> None:
        """Keep the present weights as the best so far."""
        self.checkpoints.mkdir(parents=True, exist_ok=True)
        weights = {"weights": self._weights()}
        save_verified(self.best, Checkpoint(progress.step, weights, {"score": progress.best_score}))

    def finish(self, progress: Progress) -> None:
        """Restore the best weights and write them as the adapter."""
        if progress.best_step not in (None, progress.step):
            try:
                self._load(load_verified(self.best).tensors["weights"])
            except DataError as error:
                logger.warning("%s: the weights of the last step are kept instead of the best ones", error)
        with atomic_folder(self.folder / "adapter") as partial:
            self.method.save(self.model, partial)

    def _weights(self) -> Mapping[str, Tensor]:
        return trainable_state_dict(self.model) | self.extra

    @torch.no_grad()
    def _load(self, tensors: Mapping[str, Tensor]) -> None:
        present = self._weights()
        if present.keys() != tensors.keys():
            raise RunError(f"{self.checkpoints}: other weights than this method trains — train into a new folder")
        for name, tensor in tensors.items():
            present[name].copy_(like(tensor, present[name]))


def samples_fingerprint(samples: Sequence[Conversation]) -> str:
    """A hash of what the samples teach."""
    if isinstance(samples, LazySequence):
        return samples.fingerprint
    return fingerprint(
        [
            [sample.id, sample.prompt, sample.answer, sample.system, *sample.further]
            for sample in map(as_conversation, samples)
        ]
    )
