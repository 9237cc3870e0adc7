"""Predictions by workers of a Ray cluster.

Actors over blocks that this process makes, not Ray Data: a part must be the same file when its block is read a second
time, because a worker has died, and Ray Data cuts and joins blocks as it likes.
"""

from __future__ import annotations

import logging
from collections import Counter, deque
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mllm_tailor.core.errors import RunError, TailorError
from mllm_tailor.core.failures import as_messages
from mllm_tailor.core.progress import progress
from mllm_tailor.core.remote import (
    MissingURLError,
    copy_of,
    fetch_listed,
    fetch_run,
    is_url,
    list_files,
    publish,
    url_of,
    withdraw,
)
from mllm_tailor.core.sample import Sample
from mllm_tailor.generation import with_files
from mllm_tailor.launch.ray_cluster import Here, connect, device_resources, enter, here
from mllm_tailor.launch.ray_map import ray_mapper
from mllm_tailor.run.new_files import Predict, Predictor
from mllm_tailor.run.parts import (
    SETTINGS,
    Block,
    KeyedSample,
    Name,
    begin,
    in_blocks,
    keep_present,
    part_of,
    predict_part,
    with_key,
)

logger = logging.getLogger(__name__)
BLOCK = 64  # samples of a part
HASHED = 1000  # files that a task hashes
DEATHS = 2  # of workers at one block; then its samples are read one by one, to find the one that ends a worker


@dataclass
class Outcome:
    """What a call has made."""

    kept: int  # rows that were there
    made: int = 0
    problems: list[dict[str, Any]] = field(default_factory=list)  # rows that state one


class Reader:
    """In a worker process: a model that stays open, and reads block after block."""

    def __init__(self, predictor: Predictor, out: str, place: Here) -> None:
        self.predictor, self.out, self.place = predictor, out, place
        self.opened: Predict | None = None
        self.stack = ExitStack()

    def ready(self) -> None:
        """The process is there."""

    def read(self, block: Block) -> tuple[list[dict[str, Any]], str | None]:
        """Write the block's part. Returns the rows with a problem, or what the user can fix."""
        try:
            with as_messages():
                if self.opened is None:
                    enter(self.place)
                    _bring_model(self.predictor)
                    self.opened = self.stack.enter_context(self.predictor.opened())
                return self._write(block, self.opened), None
        except TailorError as error:
            return [], str(error)

    def _write(self, block: Block, predict: Predict) -> list[dict[str, Any]]:
        samples = with_files([item.sample for item in block])
        ready = tuple(replace(item, sample=sample) for item, sample in zip(block, samples, strict=True))
        if not is_url(self.out):
            return predict_part(Path(self.out), ready, predict)
        problems = predict_part(copy_of(self.out), ready, predict)
        part = part_of(copy_of(self.out), block)
        publish(part, f"{self.out}/{part.name}")
        return problems


def _bring_model(predictor: Predictor) -> None:
    """The run that lies in a store, on this node too."""
    runs = [run.path for run in (predictor.tuned, predictor.trained_in) if run is not None]
    for path in dict.fromkeys((*runs, Path(predictor.run.model.path))):
        if (url := url_of(path)) is not None:
            fetch_run(url)


def predict_on_ray(
    out: Path | str,
    predictor: Predictor,
    samples: Sequence[Sample],
    workers: int | None = None,
    address: str | None = None,
) -> Outcome:
    """Write one JSON row for each sample into parts in the folder `out`; a second call makes what is missing.

    `out` may be the URL of a folder in a store. Files of samples that lie in a store are fetched by the workers.

    Raises:
        RunError: when Ray is not there, the folder holds something else, or a sample ends every worker that reads it.
    """
    if predictor.run.task.name == "match":
        raise RunError("this task ranks each sample among all others, which needs a single process — leave out --on")
    ray = connect(address)
    out = str(out).rstrip("/")
    folder = _begin(out, predictor.key())
    groups = [samples[start : start + HASHED] for start in range(0, len(samples), HASHED)]
    keyed = [item for group in ray_mapper(address)(_with_keys, groups) for item in group]
    changed: list[Path] = []
    kept = keep_present(folder, keyed, changed.append)
    if is_url(out):
        _publish_changes(out, changed)
    missing = [item for item in keyed if item.name not in kept]
    outcome = Outcome(len(keyed) - len(missing))
    if missing:
        resources = device_resources(ray)
        devices = int(ray.cluster_resources().get("GPU" if resources["num_gpus"] else "CPU", 1))
        blocks = in_blocks(missing, BLOCK)
        count = min(workers or devices, len(blocks))
        reader = ray.remote(Reader).options(max_restarts=0, scheduling_strategy="SPREAD", **resources)
        with progress("Reading", len(missing)) as shown:
            _Pool(ray, lambda: reader.remote(predictor, out, here()), outcome, shown).run(blocks, count)
    return outcome


def _begin(out: str, key: str) -> Path:
    """The folder of parts on this machine, as it was left; that of a URL is a copy."""
    if not is_url(out):
        begin(Path(out), key)
        return Path(out)
    try:
        files = list_files(out)
    except MissingURLError:
        files = {}
    folder = fetch_listed(out, files)  # parts that were never published go
    begin(folder, key)
    if SETTINGS not in files:
        publish(folder / SETTINGS, f"{out}/{SETTINGS}")
    return folder


def _publish_changes(out: str, parts: Sequence[Path]) -> None:
    for part in parts:
        if part.is_file():
            publish(part, f"{out}/{part.name}")
        else:
            withdraw(f"{out}/{part.name}")


def _with_keys(samples: Sequence[Sample]) -> list[KeyedSample]:
    return [with_key(sample) for sample in with_files(samples)]


class _Pool:
    """Actors that take one block after the other; one that died is replaced, and its block read again."""

    def __init__(self, ray: Any, make: Any, outcome: Outcome, shown: Any) -> None:
        self.ray, self.make, self.outcome, self.shown = ray, make, outcome, shown
        self.running: dict[Any, tuple[Any, Block]] = {}  # by future; an empty block: the actor is starting
        self.blocks: deque[Block] = deque()
        self.deaths: Counter[tuple[Name, ...]] = Counter()  # by the names of a block
        self.given_up: list[KeyedSample] = []

    def run(self, blocks: Sequence[Block], workers: int) -> None:
        """Read all blocks.

        Raises:
            RunError: when the model cannot be opened, or for samples that no worker survived.
        """
        self.blocks.extend(blocks)
        for _ in range(workers):
            self._start()
        while self.blocks or any(block for _, block in self.running.values()):
            (future,), _ = self.ray.wait(list(self.running), num_returns=1)
            self._take(future)
        for actor, _ in self.running.values():
            self.ray.kill(actor)
        if self.given_up:
            names = ", ".join(item.name[1] for item in self.given_up)
            raise RunError(
                f"every worker that read these files ended, for want of memory or by a crash: {names} — all others "
                "have their rows; remove these files, or run the same command with more memory a worker"
            )

    def _start(self) -> None:
        actor = self.make()
        self.running[actor.ready.remote()] = (actor, ())

    def _take(self, future: Any) -> None:
        """The result of a block, or the death of its actor; then the actor's next block."""
        actor, block = self.running.pop(future)
        try:
            result = self.ray.get(future)
        except self.ray.exceptions.RayActorError as error:
            logger.warning("A worker ended; another one takes its place: %s", str(error).splitlines()[0])
            self._return(block)
            self._start()
            return
        if block:
            problems, problem = result
            if problem is not None:
                raise RunError(problem)
            self.outcome.made += len(block)
            self.outcome.problems += problems
            self.shown.advance(len(block))
        if self.blocks:
            block = self.blocks.popleft()
            self.running[actor.read.remote(block)] = (actor, block)
        else:
            self.ray.kill(actor)

    def _return(self, block: Block) -> None:
        """Put the block of a worker that died back."""
        if not block:
            return
        names = tuple(item.name for item in block)
        self.deaths[names] += 1
        if self.deaths[names] < DEATHS:
            self.blocks.appendleft(block)
        elif len(block) > 1:
            self.blocks.extend((item,) for item in block)
        else:
            self.given_up += block
