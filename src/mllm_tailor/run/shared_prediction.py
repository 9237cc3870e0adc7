"""Predictions of a run, made by several processes where that is quicker, and written by rank 0 as they are made.

Rank 0 predicts a first batch alone. If the rest would take long at that pace, other processes are asked to help: worker
processes of this machine, or those started together with this one. Each takes a chunk of the samples at a time, until
none is left, and hands its predictions to rank 0.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from mllm_tailor.core.device import free_memory, pick_device, watch_memory
from mllm_tailor.core.progress import Progress, progress, without_progress
from mllm_tailor.core.sample import Prediction, Sample
from mllm_tailor.generation import VisionFeatureCache
from mllm_tailor.models import LoadedModel
from mllm_tailor.recipe import DecodingMode
from mllm_tailor.run.cost_estimate import MEMORY_SHARE
from mllm_tailor.run.peers import present_peers
from mllm_tailor.run.predict import Chunk, KeepMode, ModelSource, PredictionFiles, predict_chunk
from mllm_tailor.run.prediction_exchange import PredictionExchange, make_share, media_groups
from mllm_tailor.run.resolve import ResolvedRun
from mllm_tailor.run.worker_processes import Team, share_work
from mllm_tailor.training.distributed import TIMEOUT

MIN_SHARED_SECONDS = 60.0  # left of one process's predictions, from which others pay: each imports and loads a model
CLAIMED, BEGUN = "claimed", "begun"  # in the store: how many chunks are taken, and that more may be


@dataclass(frozen=True)
class PredictionWork:
    """Predictions that are left to make, as `worker_processes.Work`."""

    run: ResolvedRun
    source: ModelSource
    chunks: tuple[Chunk, ...]
    folder: Path
    features: Path | None
    verb: str = "predict"
    gpu_collectives: bool = False

    def open(self, device: torch.device) -> LoadedModel:
        """The model that rank 0 has opened."""
        return replace(self.source, run=self.source.run.with_model(device=str(device))).open()

    def do(self, model: LoadedModel, team: Team) -> None:
        """Predict chunks as long as there are any."""
        assert team.store is not None
        exchange = PredictionExchange(team, "predictions")
        cache = VisionFeatureCache(folder=self.features)
        keep = _per_process(exchange.send, team)

        def predict() -> None:
            assert team.store is not None
            team.store.wait([BEGUN], TIMEOUT)
            for chunk in claimed(self.chunks, team):
                predict_chunk(chunk, model, self.run, keep, cache)

        make_share(exchange, predict)


@dataclass(frozen=True)
class SharedPrediction:
    """What is predicted, by which model."""

    run: ResolvedRun
    source: ModelSource
    folder: Path  # of the run, for the output of worker processes

    def to_files(
        self,
        paths: Mapping[DecodingMode, Path],
        model: LoadedModel,
        samples: Sequence[Sample],
        cache: VisionFeatureCache,
    ) -> None:
        """Predict, in each of these modes, what its file does not hold yet; `model` was opened from the source.

        Raises:
            RunError: when another process ends too soon. What was predicted until then is kept.
        """
        files = PredictionFiles(paths, self.run, samples)
        left = files.missing()
        with _one_progress(left) as display:

            def keep(prediction: Prediction, mode: DecodingMode) -> None:
                files.keep(prediction, mode)
                display.advance()

            self._try_to_share(left, model, keep, cache)
            for chunk in files.missing():
                predict_chunk(chunk, model, self.run, keep, cache)
        files.finish()

    def _try_to_share(
        self, left: Sequence[Chunk], model: LoadedModel, keep: KeepMode, cache: VisionFeatureCache
    ) -> None:
        """Predict a first chunk, and the others with other processes where that pays; else nothing."""
        most = max_processes(self.run)
        if most == 1 or len(chunks := split_chunks(self.run, left, most)) < 2:
            return
        first, rest = chunks[:1], chunks[1:]
        started = time.perf_counter()
        with watch_memory(model.device) as memory:
            predict_chunk(first[0], model, self.run, keep, cache)
        seconds = (time.perf_counter() - started) / _count(first) * _count(rest)
        paying = processes_that_pay(model.device, seconds, memory.before + memory.rise)
        if (count := min(most, paying, len(rest))) > 1:
            self._share(count, rest, model, keep, cache)

    def _share(
        self, count: int, chunks: Sequence[Chunk], model: LoadedModel, keep: KeepMode, cache: VisionFeatureCache
    ) -> None:
        taken = 0

        def meanwhile() -> bool:
            nonlocal taken
            if taken == len(chunks):
                return False
            taken += 1
            predict_chunk(chunks[taken - 1], model, self.run, keep, cache)
            return True

        work = PredictionWork(self.run, self.source, tuple(chunks), self.folder, cache.folder)
        with share_work(count, work, meanwhile) as team:
            assert team.store is not None
            team.store.add(CLAIMED, taken)
            team.store.set(BEGUN, "")
            exchange = PredictionExchange(team, "predictions")

            def keep_all(prediction: Prediction, mode: DecodingMode) -> None:
                keep(prediction, mode)
                for received_mode, received in exchange.received():
                    keep(received, received_mode)

            try:
                for chunk in claimed(chunks, team):
                    predict_chunk(chunk, model, self.run, _per_process(keep_all, team), cache)
                for mode, prediction in exchange.rest():
                    keep(prediction, mode)
            except BaseException:
                exchange.dismiss()
                raise


def max_processes(run: ResolvedRun) -> int:
    """How many processes may predict: those that were started together, or as `train.processes` states."""
    if (peers := present_peers()) is not None:
        return peers.world_size
    if run.recipe.train.processes != "auto":
        return run.recipe.train.processes
    return torch.get_num_threads() if pick_device(run.model.device).type == "cpu" else 1


def processes_that_pay(device: torch.device, seconds_left: float, process_bytes: int) -> int:
    """How many processes to predict with, where one has `seconds_left` to predict and holds `process_bytes`.

    Processes on a CPU share one memory; a GPU has its own.
    """
    if seconds_left < MIN_SHARED_SECONDS:
        return 1
    if device.type != "cpu" or present_peers() is not None:
        return sys.maxsize
    return 1 + int(MEMORY_SHARE * free_memory(device)) // max(1, process_bytes)


def split_chunks(run: ResolvedRun, passes: Sequence[Chunk], processes: int) -> list[Chunk]:
    """Chunks for a number of processes: the first of `predict.batch_size` samples, then larger, then smaller ones.

    Each is about half of what a process would get of the rest if it were shared out evenly, in whole batches: few
    batches are left half full, and the processes end at about the same time. Samples about the same media stay
    together.
    """
    batch = run.recipe.predict.batch_size
    chunks: list[Chunk] = []
    for whole in passes:
        samples: list[Sample] = []
        left = len(whole.samples)
        size = batch if not chunks else _guided(left, batch, processes)
        for group in media_groups(run.task, whole.samples):
            samples += group
            if len(samples) >= size:
                chunks.append(replace(whole, samples=tuple(samples)))
                left -= len(samples)
                samples, size = [], _guided(left, batch, processes)
        if samples:
            chunks.append(replace(whole, samples=tuple(samples)))
    return chunks


def _guided(left: int, batch: int, processes: int) -> int:
    return max(1, left // (2 * processes * batch)) * batch


def claimed(chunks: Sequence[Chunk], team: Team) -> Iterator[Chunk]:
    """The next chunk that no process has taken, as long as there is one."""
    assert team.store is not None
    while (number := team.store.add(CLAIMED, 1)) <= len(chunks):
        yield chunks[number - 1]


def _per_process(keep: KeepMode, team: Team) -> KeepMode:
    """Keep predictions with their share of the wall time, of which all processes make use at once."""
    return lambda prediction, mode: keep(replace(prediction, seconds=prediction.seconds / team.world_size), mode)


def _count(chunks: Sequence[Chunk]) -> int:
    return sum(len(chunk.samples) * len(chunk.modes) for chunk in chunks)


@contextmanager
def _one_progress(chunks: Sequence[Chunk]) -> Iterator[Progress]:
    """One display of all chunks in place of one for each."""
    with progress("Predicting", _count(chunks)) as display, without_progress():
        yield display
