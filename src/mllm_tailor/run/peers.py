"""Processes that were started together, by torchrun, Ray or a scheduler: the environment tells each its rank.

Rank 0 runs the whole recipe, the others join in whatever it shares, which may be several trainings (stages, folds). In
between they wait at a store of torch.distributed. A process group exists only while the work lasts, so that rank 0
profiles as a single process does.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
from torch import distributed
from torch.distributed import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from mllm_tailor.core.device import pick_device
from mllm_tailor.core.errors import RunError
from mllm_tailor.training.distributed import TIMEOUT, destroy_process_group, join_process_group

logger = logging.getLogger(__name__)

VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")  # as torchrun sets them
END = "end"
FAREWELL = timedelta(seconds=30)  # in which the others read that the run has ended
LOST = ("gloo", "NCCL", "Connection", "Broken pipe")  # words of a collective whose other end is gone


class Peers:
    """This process among those that were started together."""

    def __init__(self, store: Store, rank: int, world_size: int) -> None:
        self.store, self.rank, self.world_size = store, rank, world_size
        self._rounds = 0

    @contextmanager
    def lead(self, device: torch.device, work: Any) -> Iterator[Store]:
        """Rank 0: within, all processes form a group of such devices; the others got `work` from `follow`.

        Yields a store that the group has to itself.
        """
        self._rounds += 1
        self.store.set(self._key(), device.type)
        with self._group(device) as store:
            distributed.broadcast_object_list([work], 0, device=device)
            yield store

    @contextmanager
    def follow(self) -> Iterator[tuple[Any, Store] | None]:
        """Other ranks: within the next group, rank 0's work and the group's store; None at the end of the run."""
        self._rounds += 1
        kind = self.store.get(self._key())
        if kind.decode() == END:
            self.store.set(f"ended/{self.rank}", "")
            yield None
            return
        device = pick_device(kind.decode())
        with self._group(device) as store:
            work = [None]
            distributed.broadcast_object_list(work, 0, device=device)
            yield work[0], store

    def end(self) -> None:
        """Rank 0: let the others end. It may hold the store, so it stays a while until they know."""
        self._rounds += 1
        self.store.set(self._key(), END)
        try:
            self.store.wait([f"ended/{rank}" for rank in range(1, self.world_size)], FAREWELL)
        except distributed.DistStoreError as error:
            logger.warning("The run has ended; not all other processes have taken note: %s", error)

    def _key(self) -> str:
        return f"work/{self._rounds}"

    @contextmanager
    def _group(self, device: torch.device) -> Iterator[Store]:
        store = PrefixStore(self._key(), self.store)
        try:
            join_process_group(device, PrefixStore("group", store), self.rank, self.world_size)
            yield PrefixStore("work", store)
        except RuntimeError as error:
            if isinstance(error, distributed.DistError) or any(word in str(error) for word in LOST):
                raise RunError(
                    "another process of this run ended or cannot be reached — start all of them again to resume: "
                    "checkpoints and predictions are kept"
                ) from error
            raise
        finally:
            destroy_process_group()


_present: list[Peers] = []


def present_peers() -> Peers | None:
    """The peers of the run that this process works at, within `together`."""
    return _present[0] if _present else None


def follows() -> bool:
    """Whether the environment describes a process that only joins in the work of rank 0."""
    return _world_size() > 1 and int(os.environ.get("RANK", "0")) > 0


@contextmanager
def together() -> Iterator[Peers | None]:
    """Within, the processes that the environment describes work at one run; None where it describes none.

    Raises:
        RunError: where it describes them in part.
    """
    if _world_size() == 1:
        yield None
        return
    if absent := [name for name in VARIABLES if name not in os.environ]:
        raise RunError(
            f"WORLD_SIZE is {_world_size()}, but {', '.join(absent)} is not set — start the processes with torchrun or "
            "`tailor launch`, or let one process start the others with train.processes=N"
        )
    store, rank, world_size = next(iter(rendezvous("env://", timeout=TIMEOUT)))
    peers = Peers(PrefixStore("tailor", store), rank, world_size)
    _present.append(peers)
    try:
        yield peers
    finally:
        _present.clear()
    if rank == 0:
        peers.end()


def _world_size() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))
