"""Predictions on their way from other processes to rank 0, through a store of torch.distributed, as JSON."""

from __future__ import annotations

import _thread
import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import distributed
from torch.distributed import PrefixStore

from mllm_tailor.core.sample import Media, Prediction, Sample
from mllm_tailor.core.strict_json import dump_json
from mllm_tailor.recipe import DecodingMode
from mllm_tailor.run.worker_processes import Team
from mllm_tailor.tasks import Task

STOP = "stop"
POLL_SECONDS = 0.05
WATCH_SECONDS = 0.2

Received = tuple[DecodingMode, Prediction]


class Stopped(Exception):
    """Rank 0 wants no more predictions."""


class PredictionExchange:
    """One round of predictions that all processes of a team make; each of them calls `end` once it made its share."""

    def __init__(self, team: Team, name: str) -> None:
        """`name` tells rounds apart and is the same in all processes."""
        assert team.store is not None
        self.rank = team.rank
        self.store = PrefixStore(name, team.store)
        self._sent = 0
        self._next = dict.fromkeys(range(1, team.world_size), 0)  # by rank, the index of what is received next
        self._barrier: Any = None

    def send(self, prediction: Prediction, mode: DecodingMode) -> None:
        """Hand a prediction to rank 0.

        Raises:
            Stopped: when rank 0 wants no more.
        """
        self.store.set(f"{self.rank}/{self._sent}", dump_json([mode.value, prediction.row()], indent=None))
        self._sent += 1
        if self.is_stopped():
            raise Stopped

    def received(self) -> Iterator[Received]:
        """What has arrived since the last call; rank 0 only."""
        for rank in self._next:
            while self.store.check([key := f"{rank}/{self._next[rank]}"]):
                mode, row = json.loads(self.store.get(key))
                self.store.delete_key(key)
                self._next[rank] += 1
                yield DecodingMode(mode), Prediction.from_row(row)

    def rest(self) -> Iterator[Received]:
        """What arrives until all processes have ended the round; rank 0 only.

        Raises:
            RuntimeError: when another process is gone.
        """
        while not self._has_ended():
            yield from self.received()
            time.sleep(POLL_SECONDS)
        yield from self.received()

    def end(self) -> None:
        """Wait until all processes have ended the round.

        Raises:
            RuntimeError: when another process is gone.
        """
        while not self._has_ended():
            time.sleep(POLL_SECONDS)

    def stop(self) -> None:
        """Rank 0 wants no more predictions: end the round."""
        self.dismiss()
        self.end()

    def is_stopped(self) -> bool:
        """Whether rank 0 wants no more predictions."""
        return self.store.check([STOP])

    def dismiss(self) -> None:
        """Rank 0 wants no more predictions and leaves the group."""
        self.store.set(STOP, "")

    def _has_ended(self) -> bool:
        if self._barrier is None:
            self._barrier = distributed.barrier(async_op=True)
        if self._barrier.is_completed():
            self._barrier.wait()  # raises where it failed
            return True
        return False


def make_share(exchange: PredictionExchange, predict: Callable[[], object]) -> None:
    """A process other than rank 0: make a share of the predictions and end the round, also when it is stopped."""
    try:
        with _interrupted_by(exchange):
            predict()
    except Stopped:
        pass
    except KeyboardInterrupt:
        stopped = exchange.is_stopped()
        exchange.end()
        if not stopped:
            raise
        return
    exchange.end()


@contextmanager
def _interrupted_by(exchange: PredictionExchange) -> Iterator[None]:
    """Within, the main thread is interrupted when rank 0 stops the round; other threads notice when they next send."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    left = threading.Event()

    def watch() -> None:
        while not left.wait(WATCH_SECONDS):
            if exchange.is_stopped():
                _thread.interrupt_main()
                return

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        left.set()
        watcher.join()


def media_groups(task: Task, samples: Sequence[Sample]) -> list[list[Sample]]:
    """Samples that are predicted by one process: those about the same media, which are encoded once.

    Those of a task that ranks every sample among all others are one group.
    """
    if task.name == "match":
        return [list(samples)] if samples else []
    groups: dict[tuple[Media, ...] | int, list[Sample]] = {}
    for index, sample in enumerate(samples):
        groups.setdefault(sample.media or index, []).append(sample)
    return list(groups.values())
