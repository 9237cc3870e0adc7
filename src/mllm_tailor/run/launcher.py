"""Data-parallel training: one process per GPU; or per CPU core, which is faster than threads for small products.

Worker processes get the recipe and the samples, load the model themselves and compute their share of each step's
micro-batches. Gradients are summed (`training.distributed`), so the result equals that of one process up to rounding.
Only training is shared: everything else is done by the process that launches the workers, rank 0. Processes that were
started together from outside (`run.peers`) train in the same way.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.queues import SimpleQueue
from pathlib import Path

import torch
from torch.multiprocessing.spawn import ProcessContext, ProcessExitedException, ProcessRaisedException, spawn

from mllm_tailor.core.conversation import Conversation
from mllm_tailor.core.device import pick_device, seed_everything, threads
from mllm_tailor.core.errors import RecipeError, RunError
from mllm_tailor.core.interrupts import deaf_children
from mllm_tailor.models import LoadedModel
from mllm_tailor.run.cost_estimate import CostEstimate, single_process_reason
from mllm_tailor.run.dataset import Splits
from mllm_tailor.run.peers import Peers, present_peers
from mllm_tailor.run.predict import open_for_training
from mllm_tailor.run.resolve import ResolvedRun
from mllm_tailor.run.run_dir import RunFolder
from mllm_tailor.training import TrainingConfig, TrainingHooks, train
from mllm_tailor.training.distributed import destroy_process_group, join_process_group

logger = logging.getLogger(__name__)

EXIT_SECONDS = 10  # that workers get to end by themselves before they are killed
FAIL_SECONDS = 5  # after a broken connection, in which a failed worker is gone


@dataclass(frozen=True)
class WorkerArgs:
    """What a worker process trains."""

    run: ResolvedRun
    samples: tuple[Conversation, ...]
    evaluates: bool  # whether rank 0 scores a dev split, for which all others wait
    folder: Path
    features: Path | None


@dataclass(frozen=True)
class Meeting:
    """Where the processes of one machine meet, and what each may use."""

    rendezvous: Path  # a file
    world_size: int
    threads: int


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


@contextmanager
def launch_workers(world_size: int, run: ResolvedRun, splits: Splits, folder: RunFolder) -> Iterator[None]:
    """Within, `train` shares its steps with `world_size` - 1 worker processes that run the same training.

    Raises:
        RunError: when a worker ends too soon; its output is in the run folder.
    """
    if world_size == 1:
        yield
        return
    args = WorkerArgs(run, splits.learned, bool(splits.dev), folder.path, folder.features)
    if (peers := present_peers()) is not None:
        logger.info("%d processes train together", world_size)
        with peers.lead(pick_device(run.model.device), args):
            yield
        return
    with _spawned(world_size, args):
        yield


@contextmanager
def _spawned(world_size: int, args: WorkerArgs) -> Iterator[None]:
    """Within, `world_size` - 1 processes of this machine train along."""
    per_process = max(1, torch.get_num_threads() // world_size)
    device = rank_device(args.run, 0)
    logger.info("%d processes train together, %d threads each", world_size, per_process)
    with tempfile.TemporaryDirectory(prefix="tailor-") as place:
        rendezvous = Path(place) / "rendezvous"
        meeting = Meeting(rendezvous, world_size, per_process)
        ready = multiprocessing.get_context("spawn").SimpleQueue()
        with deaf_children():
            workers = spawn(_worker_main, (args, meeting, ready), nprocs=world_size - 1, join=False, daemon=True)
        try:
            _wait_until_ready(workers, ready)
            join_process_group(device, rendezvous, 0, world_size)
            with threads(per_process):
                yield
        except (RuntimeError, ProcessExitedException, ProcessRaisedException) as error:
            if _has_failed(workers):
                raise RunError(
                    "one of the processes that train together ended (its output: "
                    f"{args.folder}/process_*.log) — run the same command again to resume from the last checkpoint, "
                    "with train.processes=1 if memory was short"
                ) from error
            raise
        finally:
            destroy_process_group()
            _join_workers(workers)
    for file in args.folder.glob("process_*.log"):
        file.unlink()


def train_along(peers: Peers) -> None:
    """Train whenever rank 0 does, until its run has ended."""
    while True:
        with peers.follow() as training:
            if training is None:
                return
            device, args = training
            _train(_open(args, device), args)


def _worker_main(index: int, args: WorkerArgs, meeting: Meeting, ready: SimpleQueue[int]) -> None:
    """A worker process: the same training, its output in a file."""
    rank = index + 1
    with (args.folder / f"process_{rank}.log").open("w", encoding="utf-8") as output:
        for stream in (sys.stdout, sys.stderr):
            os.dup2(output.fileno(), stream.fileno())
        try:
            _join(rank, args, meeting, ready)
        except BaseException:
            traceback.print_exc()  # into the file; spawn reports it to rank 0 only when that joins
            raise


def rank_device(run: ResolvedRun, rank: int) -> torch.device:
    """The device of a process: the CPU, or the `rank`-th GPU, counted from the recipe's."""
    device = pick_device(run.model.device)
    return device if device.type == "cpu" else torch.device(device.type, (device.index or 0) + rank)


def _join(rank: int, args: WorkerArgs, meeting: Meeting, ready: SimpleQueue[int]) -> None:
    device = rank_device(args.run, rank)
    model = _open(args, device)
    ready.put(rank)
    join_process_group(device, meeting.rendezvous, rank, meeting.world_size)
    with threads(meeting.threads):
        _train(model, args)


def _open(args: WorkerArgs, device: torch.device) -> LoadedModel:
    """The model as rank 0 trains it."""
    seed_everything(args.run.recipe.seed)
    model = open_for_training(args.run.with_model(device=str(device)))
    args.run.method.apply(model)
    return model


def _train(model: LoadedModel, args: WorkerArgs) -> None:
    hooks = TrainingHooks(evaluate=dict if args.evaluates else None)
    train(model, args.samples, TrainingConfig.from_recipe(args.run.recipe, args.features), args.folder, hooks)


def _wait_until_ready(workers: ProcessContext, ready: SimpleQueue[int]) -> None:
    """Wait until all workers have loaded their models; raises what `join` raises when one has failed."""
    for _ in workers.processes:
        while ready.empty():
            workers.join(timeout=0.1)
        ready.get()


def _has_failed(workers: ProcessContext) -> bool:
    """Whether a worker has failed; its connection breaks a little before it is gone."""
    deadline = time.monotonic() + FAIL_SECONDS
    while time.monotonic() < deadline:
        if any(process.exitcode not in (None, 0) for process in workers.processes):
            return True
        time.sleep(0.05)
    return False


def _join_workers(workers: ProcessContext) -> None:
    """Workers end when the training has, or when they notice that their peers are gone; others are killed."""
    for process in workers.processes:
        process.join(timeout=EXIT_SECONDS)
        if process.is_alive():
            process.kill()
            process.join()
