"""Held-out predictions by several processes: those of one, and nothing lost when another process is killed."""

from __future__ import annotations

import multiprocessing
import re
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from mllm_tailor.core.errors import RunError
from mllm_tailor.core.sample import Media, Prediction, Sample
from mllm_tailor.generation import VisionFeatureCache
from mllm_tailor.models import LoadedModel
from mllm_tailor.recipe import DecodingMode, make_recipe
from mllm_tailor.run import shared_prediction, worker_processes
from mllm_tailor.run.dataset import prepare
from mllm_tailor.run.peers import together
from mllm_tailor.run.predict import BOTH, Chunk, ModelSource
from mllm_tailor.run.resolve import ResolvedRun, resolve
from mllm_tailor.run.run_dir import read_predictions
from mllm_tailor.run.shared_prediction import CLAIMED, SharedPrediction, processes_that_pay, split_chunks
from mllm_tailor.run.worker_processes import ALONE, Team, Work, work_along
from mllm_tailor.synthetic import draw_folder

Paths = dict[DecodingMode, Path]


def make_run(model: Path, data: Path, processes: int) -> ResolvedRun:
    return resolve(
        make_recipe(
            {
                "data": {"train": str(data), "held_out": {"column": "split", "value": "dev"}},
                "task": {"extract": {"company": "string", "total": "amount"}},
                "model": {"path": str(model), "dtype": "float32"},
                "train": {"processes": processes},
                "predict": {"max_new_tokens": 8, "batch_size": 2},
            }
        )
    )


@pytest.fixture(scope="module")
def receipts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("receipts")
    draw_folder(folder, 2, 9, seed=5)
    return folder


@dataclass
class FirstProcess:
    """What rank 0 does when it begins the first chunk that is shared, and what it has begun in all."""

    on_first_shared: Callable[[], object] = lambda: None
    chunks: int = 0
    team: Team = ALONE

    def begin_chunk(self) -> None:
        self.chunks += 1
        if self.chunks == 2:
            self.on_first_shared()

    def wait_for_other(self) -> None:
        assert self.team.store is not None
        while self.team.store.add(CLAIMED, 0) < 2:
            time.sleep(0.05)


@pytest.fixture
def first(monkeypatch: pytest.MonkeyPatch) -> FirstProcess:
    """Other processes pay at once, and rank 0 waits for them to start."""
    process = FirstProcess()
    predict_chunk = shared_prediction.predict_chunk

    def called(chunk: Chunk, *arguments: Any) -> None:
        process.begin_chunk()
        predict_chunk(chunk, *arguments)

    @contextmanager
    def share_work(count: int, work: Work, _: object) -> Iterator[Team]:
        with worker_processes.share_work(count, work) as process.team:
            yield process.team

    monkeypatch.setattr(shared_prediction, "MIN_SHARED_SECONDS", 0)
    monkeypatch.setattr(shared_prediction, "predict_chunk", called)
    monkeypatch.setattr(shared_prediction, "share_work", share_work)
    return process


def predict(run: ResolvedRun, folder: Path, model: LoadedModel) -> Paths:
    """The files of predictions of the held-out samples in both decoding modes."""
    folder.mkdir(exist_ok=True)
    paths = {mode: folder / f"{mode}.jsonl" for mode in BOTH}
    held_out = prepare(run)[0].held_out
    cache = VisionFeatureCache(folder=folder / "features")
    SharedPrediction(run, ModelSource(run), folder).to_files(paths, model, held_out, cache)
    return paths


def by_id(path: Path) -> dict[str, Prediction]:
    predictions = read_predictions(path)
    result = {prediction.id: replace(prediction, seconds=0, raw={}) for prediction in predictions}
    assert len(result) == len(predictions)
    return result


@pytest.mark.slow
def test_two_processes_predict_what_one_does_also_after_one_was_killed_or_stopped(
    receipts: Path, tiny_model_folder: Path, tmp_path: Path, first: FirstProcess
) -> None:
    alone, together = (make_run(tiny_model_folder, receipts, count) for count in (1, 2))
    model = ModelSource(alone).open()
    expected = {mode: by_id(path) for mode, path in predict(alone, tmp_path / "alone", model).items()}

    first.on_first_shared, first.chunks = lambda: [child.kill() for child in multiprocessing.active_children()], 0
    with pytest.raises(RunError) as error:
        predict(together, tmp_path / "killed", model)
    said = re.sub(r"\s+", " ", str(error.value))
    assert "one of the processes that predict together ended" in said and "process_*.log" in said
    for mode in BOTH:
        kept = by_id(tmp_path / "killed" / f"{mode}.jsonl")
        assert len(kept) >= 2 and kept.items() <= expected[mode].items()

    def interrupt() -> None:
        raise KeyboardInterrupt

    first.on_first_shared, first.chunks = interrupt, 0
    with pytest.raises(KeyboardInterrupt):
        predict(together, tmp_path / "stopped", model)
    before = {mode: (tmp_path / "stopped" / f"{mode}.jsonl").read_bytes() for mode in BOTH}
    assert 2 <= len(by_id(tmp_path / "stopped" / f"{BOTH[0]}.jsonl")) < 9
    for mode, path in predict(alone, tmp_path / "stopped", model).items():  # in another number of processes
        assert path.read_bytes().startswith(before[mode])
        assert by_id(path) == expected[mode]

    first.on_first_shared, first.chunks = first.wait_for_other, 0
    for mode, path in predict(together, tmp_path / "together", model).items():
        assert by_id(path) == expected[mode]
    assert first.chunks < 5  # of 9 samples in chunks of 2
    assert not list((tmp_path / "together").glob("process_*.log"))


def follow() -> None:
    """A process other than rank 0."""
    with together() as peers:
        assert peers is not None
        work_along(peers)


@pytest.mark.slow
def test_processes_started_together_predict_what_one_does(
    receipts: Path, tiny_model_folder: Path, tmp_path: Path, first: FirstProcess,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    run = make_run(tiny_model_folder, receipts, 1)
    model = ModelSource(run).open()
    expected = {mode: by_id(path) for mode, path in predict(run, tmp_path / "alone", model).items()}
    first.on_first_shared, first.chunks = first.wait_for_other, 0
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for name, value in {"WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "RANK": 1}.items():
        monkeypatch.setenv(name, str(value))
    other = multiprocessing.get_context("spawn").Process(target=follow)
    other.start()
    monkeypatch.setenv("RANK", "0")
    with together():
        paths = predict(run, tmp_path / "together", model)
    other.join(60)
    assert other.exitcode == 0
    assert first.chunks < 5
    for mode, path in paths.items():
        assert by_id(path) == expected[mode]


def test_processes_are_added_where_they_pay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mllm_tailor.run.shared_prediction.free_memory", lambda device: 10 << 30)
    cpu = torch.device("cpu")
    assert processes_that_pay(cpu, 59, 1 << 30) == 1
    assert processes_that_pay(cpu, 61, 1 << 30) == 9  # others in 0.8 of the free memory
    assert processes_that_pay(cpu, 61, 9 << 30) == 1
    assert processes_that_pay(torch.device("cuda"), 61, 9 << 30) == sys.maxsize


def test_chunks_keep_samples_about_the_same_media_together(receipts: Path, tiny_model_folder: Path) -> None:
    run = make_run(tiny_model_folder, receipts, 2)
    images = [(Media("image", Path(f"{name}.png")),) for name in "ab"]
    samples = tuple(Sample(str(number), images[number % 2]) for number in range(5))
    chunks = split_chunks(run, [Chunk(BOTH, samples)], 2)
    assert [[sample.id for sample in chunk.samples] for chunk in chunks] == [["0", "2", "4"], ["1", "3"]]
    samples = tuple(Sample(str(number)) for number in range(37))
    sizes = [len(chunk.samples) for chunk in split_chunks(run, [Chunk(BOTH, samples)], 2)]
    assert sizes == [2, 8, 6, 4, 4, 2, 2, 2, 2, 2, 2, 1]
