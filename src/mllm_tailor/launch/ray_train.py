"""One recipe on a Ray cluster, by Ray Train: it starts the processes, and starts them again when one ends."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import distributed

from mllm_tailor.core.errors import RunError
from mllm_tailor.core.optional import need
from mllm_tailor.launch.plan import LaunchPlan
from mllm_tailor.launch.ray_cluster import connect, enter, here
from mllm_tailor.recipe import Recipe, make_recipe
from mllm_tailor.run.execute import execute, resolve_stages
from mllm_tailor.run.options import Options
from mllm_tailor.run.run_dir import RunFolder
from mllm_tailor.training.distributed import TIMEOUT, destroy_process_group

logger = logging.getLogger(__name__)


def run_on_ray(
    recipe: Recipe, plan: LaunchPlan, *, least: int | None = None, address: str | None = None, options: Options
) -> RunFolder:
    """Run the recipe on `plan.processes` workers, or on as few as `least` of them while nodes are missing.

    When a worker or node ends, all workers are started again, `plan.restarts` times, and continue from the last
    checkpoint.

    Raises:
        TailorError: for what is wrong with the recipe, before any worker is started.
        RunError: when Ray is not there, or the workers have ended too often.
    """
    resolve_stages(recipe)
    connect(address)
    train = need("ray.train", "ray", "--on ray", RunError)
    torch = need("ray.train.torch", "ray", "--on ray", RunError)
    resources: dict[str, float] = {"CPU": plan.threads, **({"GPU": 1} if plan.gpus else {})}
    folder = RunFolder(Path(recipe.output) / recipe.name)
    trainer = torch.TorchTrainer(
        _work,
        train_loop_config={
            "recipe": recipe.model_dump(mode="json"),
            "options": options,
            "place": here(),
            "level": logging.getLogger("mllm_tailor").getEffectiveLevel(),
        },
        scaling_config=train.ScalingConfig(
            num_workers=plan.processes if least is None else (least, plan.processes),
            use_gpu=plan.gpus > 0,
            resources_per_worker=resources,
            placement_strategy="SPREAD",
        ),
        run_config=train.RunConfig(
            name=recipe.name,
            storage_path=str(Path(recipe.output, ".ray").resolve()),
            failure_config=train.FailureConfig(max_failures=plan.restarts),
        ),
        torch_config=torch.TorchConfig(backend="nccl" if plan.gpus else "gloo", timeout_s=int(TIMEOUT.total_seconds())),
    )
    try:
        trainer.fit()
    except train.TrainingFailedError as error:
        raise RunError(
            f"the training ended {plan.restarts + 1} times, the last time with: {_last_line(error)} — the same command "
            "continues from the last checkpoint"
        ) from error
    return folder


def _last_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


def _work(config: Mapping[str, Any]) -> None:
    """In a worker process: the whole run as rank 0, or training along."""
    import ray.train
    from ray.train.collective import broadcast_from_rank_zero

    rank = ray.train.get_context().get_world_rank()
    package = logging.getLogger("mllm_tailor")
    package.setLevel(config["level"] if rank == 0 else logging.WARNING)
    package.addHandler(logging.StreamHandler())  # Ray brings it to the terminal of the command
    destroy_process_group()  # Ray's, which is there from the first to the last: our own lasts as long as a training
    assert not distributed.is_initialized()
    enter(config["place"])
    os.environ["MASTER_PORT"] = str(broadcast_from_rank_zero(_free_port() if rank == 0 else None))
    execute(make_recipe(config["recipe"]), config["options"])


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("", 0))
        port: int = free.getsockname()[1]
        return port
