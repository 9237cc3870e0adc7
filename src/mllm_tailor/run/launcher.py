"""Several processes for one training on a processor: small products use cores better so than by threads.

The others are started with the recipe and the samples, open the model themselves, and take their share of each step's
passes; what they compute is summed (`training.processes`), so the training is the same as alone, to the rounding.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import socket
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch

from mllm_tailor.core.conversation import Conversation
from mllm_tailor.core.device import seed_everything, threads
from mllm_tailor.core.errors import RecipeError, RunError
from mllm_tailor.run.cost_estimate import CostEstimate, single_process_reason
from mllm_tailor.run.dataset import Splits
from mllm_tailor.run.predict import open_for_training
from mllm_tailor.run.resolve import ResolvedRun
from mllm_tailor.run.run_dir import RunFolder
from mllm_tailor.training import train
from mllm_tailor.training.distributed import leave

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class WorkerArgs:
    """What another process has to know."""

    run: ResolvedRun
    samples: tuple[Conversation, ...]
    scored: bool  # whether there is a dev part: then all wait while the first process scores it
    folder: Path
    features: Path | None
    threads: int


def choose_process_count(run: ResolvedRun, forecast: CostEstimate | None) -> int:
    """How many processes train: what the recipe says, or else what was foreseen.

    Raises:
        RecipeError: where the recipe asks for several and its objective or optimizer needs one.
    """
    wanted = run.recipe.train.processes
    if wanted == "auto":
        return forecast.processes if forecast is not None else 1
    why = single_process_reason(run.recipe, run.method)
    if why and wanted > 1:
        raise RecipeError(f"train.processes: {wanted}, but {why} — leave it out")
    return wanted


@contextmanager
def launch_workers(count: int, run: ResolvedRun, splits: Splits, folder: RunFolder) -> Iterator[None]:
    """While entered, `train` shares its steps with `count` - 1 other processes, which do the same meanwhile.

    Raises:
        RunError: when another process ends too soon; what it said is in the run's folder.
    """
    if count == 1:
        yield
        return
    each = max(1, torch.get_num_threads() // count)
    work = WorkerArgs(run, splits.learned, bool(splits.dev), folder.path, folder.features, each)
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port()), "WORLD_SIZE": str(count)}
    address["OMP_NUM_THREADS"] = str(each)  # else accelerate sets its own number, and says so
    others: list[BaseProcess] = []
    before = dict(os.environ)
    leave()
    try:
        logger.info("%d processes train together, threads of each: %d", count, each)
        _gather([_start(_place(rank, address), work, others) for rank in range(1, count)], others)
        os.environ.update(_place(0, address))
        with threads(each):
            yield
    except RuntimeError as error:
        if wait([process.sentinel for process in others], timeout=5):  # it breaks our connection before it is gone
            raise RunError(
                "one of the processes that train together ended (what it said: "
                f"{folder.path}/process_*.log) — run the same command again to go on from the last checkpoint, "
                "with train.processes=1 if memory was short"
            ) from error
        raise
    finally:
        leave()
        _join_workers(others)
        os.environ.clear()
        os.environ.update(before)
    for file in folder.path.glob("process_*.log"):
        file.unlink()


def _start(place: dict[str, str], work: WorkerArgs, others: list[BaseProcess]) -> Connection:
    """Start one other process; what comes back speaks when it is ready."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_worker_main, args=(place, work, theirs), daemon=True)
    process.start()
    theirs.close()
    others.append(process)
    return ours


def _gather(ready: Sequence[Connection], others: Sequence[BaseProcess]) -> None:
    """Wait until all have opened their models."""
    for process, line in zip(others, ready, strict=True):
        wait([process.sentinel, line])
        try:
            line.recv()
        except EOFError:
            process.join()
            raise RuntimeError("a process ended before it was ready") from None


def _worker_main(place: dict[str, str], work: WorkerArgs, ready: Connection) -> None:
    """One of the other processes: the same training, its words kept in a file."""
    with (work.folder / f"process_{place['RANK']}.log").open("w") as words:
        for stream in (sys.stdout, sys.stderr):
            os.dup2(words.fileno(), stream.fileno())
        os.environ.update(place)
        seed_everything(work.run.recipe.seed)
        model, method = open_for_training(work.run), work.run.method
        method.apply(model)
        ready.send(True)
        evaluate = dict if work.scored else None
        with threads(work.threads):
            train(model, method, work.samples, work.run.recipe, work.folder, evaluate=evaluate, features=work.features)


def _place(rank: int, address: dict[str, str]) -> dict[str, str]:
    """What torch reads of its place among the processes."""
    return address | {"RANK": str(rank), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": address["WORLD_SIZE"]}


def _free_port() -> int:
    with socket.socket() as line:
        line.bind(("127.0.0.1", 0))
        return int(line.getsockname()[1])


def _join_workers(others: Sequence[BaseProcess]) -> None:
    """They end by themselves when the training has, or when they notice that nobody answers any more."""
    for process in others:
        process.join(timeout=10)
        if process.is_alive():
            process.kill()
            process.join()
