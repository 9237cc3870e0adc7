"""Data-parallel training: one process per GPU; or per CPU core, which is faster than threads for small products.

Other processes get the recipe and the samples, load the model themselves and compute their share of each step's
micro-batches and of the predictions on the dev split. Gradients are summed (`training.distributed`), so the result
equals that of one process up to rounding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import torch

from mllm_tailor.core.conversation import Conversation
from mllm_tailor.core.device import seed_everything
from mllm_tailor.core.errors import RecipeError
from mllm_tailor.core.sample import Prediction, Sample
from mllm_tailor.generation import VisionFeatureCache
from mllm_tailor.models import LoadedModel
from mllm_tailor.run.cost_estimate import CostEstimate, single_process_reason
from mllm_tailor.run.dataset import Splits
from mllm_tailor.run.peers import Peers, present_peers
from mllm_tailor.run.predict import Keep, generate, open_for_training
from mllm_tailor.run.prediction_exchange import PredictionExchange, make_share, media_groups
from mllm_tailor.run.resolve import ResolvedRun
from mllm_tailor.run.run_dir import RunFolder
from mllm_tailor.run.scores import score_replies
from mllm_tailor.run.worker_processes import Team, rank_device, share_work
from mllm_tailor.training import TrainingConfig, TrainingHooks, train


@dataclass(frozen=True)
class TrainingWork:
    """A training, as `worker_processes.Work`."""

    run: ResolvedRun
    samples: tuple[Conversation, ...]
    dev: tuple[Sample, ...]
    folder: Path
    features: Path | None
    verb: str = "train"
    gpu_collectives: bool = True

    def open(self, device: torch.device) -> LoadedModel:
        """The model as rank 0 trains it."""
        seed_everything(self.run.recipe.seed)
        model = open_for_training(self.run.with_model(device=str(device)))
        self.run.method.apply(model)
        return model

    def do(self, model: LoadedModel, team: Team) -> None:
        """The same training, with this process's share of every step."""
        cache = VisionFeatureCache(folder=self.features)
        hooks = TrainingHooks(evaluate=DevEvaluation(self.run, model, self.dev, cache, team) if self.dev else None)
        train(model, self.samples, TrainingConfig.from_recipe(self.run.recipe, self.features), self.folder, hooks)


class DevEvaluation:
    """Scores of the present weights on the dev split, of which each process of a training predicts a share."""

    def __init__(
        self, run: ResolvedRun, model: LoadedModel, dev: tuple[Sample, ...], cache: VisionFeatureCache, team: Team
    ) -> None:
        self.run, self.model, self.dev, self.cache, self.team = run.reading_once(), model, dev, cache, team
        groups = media_groups(run.task, dev)[team.rank :: team.world_size]
        self.share = [sample for group in groups for sample in group]
        self._round = 0

    def __call__(self) -> Mapping[str, float]:
        """The scores on rank 0; nothing on others, which hand it their predictions."""
        if self.team.world_size == 1:
            return self._score(self._predict())
        mode = self.run.mode
        self._round += 1
        exchange = PredictionExchange(self.team, f"dev-{self._round}")
        if self.team.rank > 0:
            make_share(exchange, lambda: self._predict(lambda prediction: exchange.send(prediction, mode)))
            return {}
        try:
            return self._score([*self._predict(), *(prediction for _, prediction in exchange.rest())])
        except KeyboardInterrupt:
            exchange.stop()
            raise

    def _score(self, predictions: Sequence[Prediction]) -> Mapping[str, float]:
        by_id = {prediction.id: prediction for prediction in predictions}
        return score_replies(self.run, self.dev, [by_id[sample.id] for sample in self.dev])

    def _predict(self, on_done: Keep | None = None) -> list[Prediction]:
        return generate(self.run.mode, self.model, self.run, self.share, on_done=on_done, cache=self.cache)


def choose_process_count(run: ResolvedRun, estimate: CostEstimate | None) -> int:
    """How many processes train: those started together, or as the recipe says, or as the cost estimate advises.

    Raises:
        RecipeError: for several, where the objective or optimizer needs one or the recipe names a single GPU.
    """
    if (peers := present_peers()) is not None:
        _check_peers(run, peers)
        return peers.world_size
    wanted = run.recipe.train.processes
    if wanted == "auto":
        return estimate.processes if estimate is not None else 1
    reason = single_process_reason(run)
    if reason and wanted > 1:
        raise RecipeError(f"train.processes: {wanted}, but {reason} — leave it out")
    last = rank_device(run, wanted - 1)
    if last.type == "cuda" and (last.index or 0) >= torch.cuda.device_count():
        raise RecipeError(
            f"train.processes: {wanted}, but each needs a GPU and {last} is absent — write at most "
            f"{wanted - 1 - (last.index or 0) + torch.cuda.device_count()}"
        )
    return wanted


def _check_peers(run: ResolvedRun, peers: Peers) -> None:
    if reason := single_process_reason(run):
        raise RecipeError(f"{peers.world_size} processes were started together, but {reason} — start one")
    if torch.device(run.model.device or "cpu").index is not None:
        raise RecipeError(
            f"model.device: {run.model.device} is one GPU, but {peers.world_size} processes were started together, "
            "each with its own — write cuda"
        )


def launch_workers(
    world_size: int, run: ResolvedRun, splits: Splits, folder: RunFolder
) -> AbstractContextManager[Team]:
    """Within, `train` shares its steps and a `DevEvaluation` its predictions with `world_size` - 1 other processes.

    Raises:
        RunError: when another process ends too soon; the output of a worker process is in the run folder.
    """
    return share_work(world_size, TrainingWork(run, splits.learned, splits.dev, folder.path, folder.features))
