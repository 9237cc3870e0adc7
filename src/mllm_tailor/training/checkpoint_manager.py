"""What a training keeps on disk: checkpoints to go on from, the best weights, the finished adapter."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from mllm_tailor.core.conversation import Conversation
from mllm_tailor.core.errors import DataError, RunError
from mllm_tailor.core.io import atomic_folder, fingerprint
from mllm_tailor.core.progress import console
from mllm_tailor.methods import MethodSet, trainable_state_dict
from mllm_tailor.models import LoadedModel
from mllm_tailor.recipe import Recipe
from mllm_tailor.training.checkpoint import (
    Checkpoint,
    clear_unfinished,
    load_verified,
    read_newest,
    save_verified,
    write_checkpoint,
)
from mllm_tailor.training.optim.registry import OptimizerStep
from mllm_tailor.training.state import Progress


class CheckpointManager:
    """The files of one training."""

    def __init__(
        self,
        model: LoadedModel,
        method: MethodSet,
        optimizer: OptimizerStep,
        recipe: Recipe,
        samples: Sequence[Conversation],
        folder: Path,
        extra: Mapping[str, Tensor] | None = None,
    ) -> None:
        """`extra`: tensors beside the model's own that training changes and needs to go on."""
        self.model, self.method, self.optimizer, self.keep = model, method, optimizer, recipe.train.keep_checkpoints
        self.extra = dict(extra or {})
        self.folder, self.checkpoints, self.cache = folder, folder / "checkpoints", folder / "cache"
        self.best = self.checkpoints / "best"
        self.fingerprint = _fingerprint(recipe, samples)

    def save(self, progress: Progress) -> None:
        """A checkpoint from which `resume` goes on bit for bit."""
        tensors, numbers = self.optimizer.state()
        values = {
            "progress": asdict(progress),
            "optimizer": numbers,
            "method": self.method.state_dict(self.model),
            "fingerprint": self.fingerprint,
        }
        groups = {"weights": self._weights(), "optimizer": tensors}
        write_checkpoint(self.checkpoints, Checkpoint(progress.step, groups, values), self.keep)

    def resume(self, fresh: Progress) -> Progress:
        """Put the newest whole checkpoint into model and optimizer; `fresh` when there is none.

        Raises:
            RunError: when the checkpoint belongs to other samples or settings.
        """
        clear_unfinished(self.checkpoints)
        found = read_newest(self.checkpoints)
        if found is None:
            return fresh
        if found.values["fingerprint"] != self.fingerprint:
            raise RunError(
                f"{self.checkpoints}: these checkpoints belong to other samples or settings — "
                "restore them, or train into a new folder (name=..., or --fresh)"
            )
        self._put(found.tensors["weights"])
        self.optimizer.restore(found.tensors["optimizer"], found.values["optimizer"])
        self.method.load_state_dict(self.model, found.values["method"])
        return Progress(**found.values["progress"])

    def keep_best(self, progress: Progress) -> None:
        """Keep the weights of now as the best so far."""
        self.checkpoints.mkdir(parents=True, exist_ok=True)
        save_verified(
            self.best, Checkpoint(progress.step, {"weights": self._weights()}, {"score": progress.best_score})
        )

    def finish(self, progress: Progress) -> None:
        """Put the best weights back, write them as the adapter, and clear what only training needs."""
        if progress.best_step not in (None, progress.step):
            try:
                self._put(load_verified(self.best).tensors["weights"])
            except DataError as error:
                console.print(f"[yellow]{error}: the weights of the last step are kept instead of the best")
        with atomic_folder(self.folder / "adapter") as partial:
            self.method.save(self.model, partial)
        shutil.rmtree(self.cache, ignore_errors=True)

    def _weights(self) -> Mapping[str, Tensor]:
        return trainable_state_dict(self.model) | self.extra

    @torch.no_grad()
    def _put(self, tensors: Mapping[str, Tensor]) -> None:
        present = self._weights()
        if present.keys() != tensors.keys():
            raise RunError(f"{self.checkpoints}: other weights than this method trains — train into a new folder")
        for name, tensor in tensors.items():
            present[name].copy_(tensor)


def _fingerprint(recipe: Recipe, samples: Sequence[Conversation]) -> str:
    """What must be the same for a training to go on: samples, method, model and everything that steers the steps."""
    elsewhere = {"checkpoint_every", "keep_checkpoints", "max_minutes", "evaluate_every", "processes"}
    steering = recipe.train.model_dump(mode="json", exclude=elsewhere)
    model = recipe.model.model_dump(mode="json", exclude={"device"})
    told = [[sample.id, sample.prompt, sample.answer, sample.system] for sample in samples]
    return fingerprint(recipe.seed, recipe.method, model, steering, told)
