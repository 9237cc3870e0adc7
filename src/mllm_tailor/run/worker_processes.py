"""Processes that share work with this one: worker processes of this machine, or those started together with it.

Each loads the model itself and does its part; what that is, a `Work` defines. On a CPU, N processes of one thread are
faster than one process of N threads for small products; on GPUs each process has its own.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.queues import SimpleQueue
from pathlib import Path
from typing import Protocol

import torch
from torch.distributed import FileStore, PrefixStore, Store
from torch.multiprocessing.spawn import ProcessContext, ProcessExitedException, ProcessRaisedException, spawn

from mllm_tailor.core.device import pick_device, threads
from mllm_tailor.core.errors import RunError
from mllm_tailor.core.interrupts import deaf_children, end_with_parent
from mllm_tailor.models import LoadedModel
from mllm_tailor.run.peers import Peers, present_peers
from mllm_tailor.run.resolve import ResolvedRun
from mllm_tailor.training.distributed import destroy_process_group, join_process_group

logger = logging.getLogger(__name__)

EXIT_SECONDS = 10  # that workers get to end by themselves before they are killed
FAIL_SECONDS = 5  # after a broken connection, in which a failed worker is gone


@dataclass(frozen=True)
class Team:
    """This process among those that share some work. They form a process group of torch.distributed."""

    rank: int = 0
    world_size: int = 1
    store: Store | None = None  # what the processes tell each other beside the group's collectives; None: alone


ALONE = Team()


class Work(Protocol):
    """What the processes share. It is pickled, sent to every process but rank 0, and done there."""

    @property
    def run(self) -> ResolvedRun:
        """The run that it belongs to."""

    @property
    def folder(self) -> Path:
        """Where the output of worker processes is written."""

    @property
    def verb(self) -> str:
        """What the processes do together, for messages."""

    @property
    def gpu_collectives(self) -> bool:
        """Whether the processes exchange tensors of their GPUs."""

    def open(self, device: torch.device) -> LoadedModel:
        """The model as rank 0 has it."""

    def do(self, model: LoadedModel, team: Team) -> None:
        """The part of a process other than rank 0."""


@dataclass(frozen=True)
class Meeting:
    """Where the processes of one machine meet, and what each may use."""

    rendezvous: Path  # a file
    world_size: int
    threads: int

    def join(self, work: Work, device: torch.device, rank: int) -> Team:
        """Join the process group."""
        store = FileStore(str(self.rendezvous), self.world_size)
        join_process_group(_group_device(work, device), PrefixStore("group", store), rank, self.world_size)
        return Team(rank, self.world_size, PrefixStore("work", store))


@contextmanager
def share_work(world_size: int, work: Work, meanwhile: Callable[[], bool] = lambda: False) -> Iterator[Team]:
    """Within, `world_size` - 1 other processes do their part of `work`. Yields rank 0's place among them.

    `meanwhile` is called while worker processes start: it does a little of rank 0's part, if any is left, and returns
    whether it did.

    Raises:
        RunError: when another process ends too soon.
    """
    if world_size == 1:
        yield ALONE
        return
    if (peers := present_peers()) is not None:
        logger.info("%d processes %s together", world_size, work.verb)
        device = pick_device(work.run.model.device)
        with peers.lead(_group_device(work, device), (device.type, work)) as store:
            yield Team(0, world_size, store)
        return
    with _spawned(world_size, work, meanwhile) as team:
        yield team


def work_along(peers: Peers) -> None:
    """Do this process's part of whatever rank 0 shares, until its run has ended."""
    while True:
        with peers.follow() as shared:
            if shared is None:
                return
            (device, work), store = shared
            work.do(work.open(pick_device(device)), Team(peers.rank, peers.world_size, store))


def rank_device(run: ResolvedRun, rank: int) -> torch.device:
    """The device of a process of this machine: the CPU, or the `rank`-th GPU, counted from the recipe's."""
    device = pick_device(run.model.device)
    return device if device.type == "cpu" else torch.device(device.type, (device.index or 0) + rank)


def _group_device(work: Work, device: torch.device) -> torch.device:
    return device if work.gpu_collectives else torch.device("cpu")


@contextmanager
def _spawned(world_size: int, work: Work, meanwhile: Callable[[], bool]) -> Iterator[Team]:
    """Within, `world_size` - 1 processes of this machine do their part."""
    per_process = max(1, torch.get_num_threads() // world_size)
    logger.info("%d processes %s together, %d threads each", world_size, work.verb, per_process)
    with tempfile.TemporaryDirectory(prefix="tailor-") as place:
        meeting = Meeting(Path(place) / "rendezvous", world_size, per_process)
        ready = multiprocessing.get_context("spawn").SimpleQueue()
        with deaf_children():
            workers = spawn(_worker_main, (work, meeting, ready), nprocs=world_size - 1, join=False, daemon=True)
        try:
            _wait_until_ready(workers, ready, meanwhile)
            team = meeting.join(work, rank_device(work.run, 0), 0)
            with threads(per_process):
                yield team
        except (RuntimeError, ProcessExitedException, ProcessRaisedException) as error:
            if _has_failed(workers):
                raise RunError(
                    f"one of the processes that {work.verb} together ended (its output: "
                    f"{work.folder}/process_*.log) — run the same command again to resume: checkpoints and predictions "
                    "are kept; with train.processes=1 if memory was short"
                ) from error
            raise
        finally:
            destroy_process_group()
            _join_workers(workers)
    for file in work.folder.glob("process_*.log"):
        file.unlink()


def _worker_main(index: int, work: Work, meeting: Meeting, ready: SimpleQueue[int]) -> None:
    """A worker process: its part of the work, its output in a file."""
    rank = index + 1
    end_with_parent()
    with (work.folder / f"process_{rank}.log").open("w", encoding="utf-8") as output:
        for stream in (sys.stdout, sys.stderr):
            os.dup2(output.fileno(), stream.fileno())
        try:
            device = rank_device(work.run, rank)
            model = work.open(device)
            ready.put(rank)
            team = meeting.join(work, device, rank)
            with threads(meeting.threads):
                work.do(model, team)
        except BaseException:
            traceback.print_exc()  # into the file; spawn reports it to rank 0 only when that joins
            raise


def _wait_until_ready(workers: ProcessContext, ready: SimpleQueue[int], meanwhile: Callable[[], bool]) -> None:
    """Wait until all workers have loaded their models; raises what `join` raises when one has failed."""
    for _ in workers.processes:
        while ready.empty():
            workers.join(timeout=0 if meanwhile() else 0.1)
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
    """Workers end when the work has, or when they notice that the others are gone; others are killed."""
    for process in workers.processes:
        process.join(timeout=EXIT_SECONDS)
        if process.is_alive():
            process.kill()
            process.join()
