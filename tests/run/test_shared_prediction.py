"""Held-out predictions by several processes: those of one, and nothing lost when another process is killed."""

from __future__ import annotations

import multiprocessing
import re
import sys
import time
from collections.abc import Callable
from dataclasses import replace
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
from mllm_tailor.run.predict import BOTH, Chunk, ModelSource
from mllm_tailor.run.resolve import ResolvedRun, resolve
from mllm_tailor.run.run_dir import read_predictions
from mllm_tailor.run.shared_prediction import SharedPrediction, processes_that_pay, split_chunks
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


@pytest.fixture
def on_chunk(monkeypatch: pytest.MonkeyPatch) -> list[Callable[[], object]]:
    """Other processes pay at once; rank 0 waits for them to start, and calls these before each of its chunks."""
    calls: list[Callable[[], object]] = []
    predict_chunk = shared_prediction.predict_chunk

    def called(chunk: Chunk, *arguments: Any) -> None:
        for call in calls:
            call()
        predict_chunk(chunk, *arguments)

    monkeypatch.setattr(shared_prediction, "MIN_SHARED_SECONDS", 0)
    monkeypatch.setattr(shared_prediction, "predict_chunk", called)
    monkeypatch.setattr(
        shared_prediction, "share_work", lambda count, work, _: worker_processes.share_work(count, work)
    )
    return calls


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
    receipts: Path, tiny_model_folder: Path, tmp_path: Path, on_chunk: list[Callable[[], object]]
) -> None:
    alone, together = (make_run(tiny_model_folder, receipts, count) for count in (1, 2))
    model = ModelSource(alone).open()
    expected = {mode: by_id(path) for mode, path in predict(alone, tmp_path / "alone", model).items()}

    chunks: list[int] = []

    def on_first_shared(call: Callable[[], object]) -> None:
        chunks.clear()
        on_chunk[:] = [lambda: chunks.append(1), lambda: call() if len(chunks) == 2 else None]

    on_first_shared(lambda: [child.kill() for child in multiprocessing.active_children()])
    with pytest.raises(RunError) as error:
        predict(together, tmp_path / "killed", model)
    said = re.sub(r"\s+", " ", str(error.value))
    assert "one of the processes that predict together ended" in said and "process_*.log" in said
    for mode in BOTH:
        kept = by_id(tmp_path / "killed" / f"{mode}.jsonl")
        assert len(kept) >= 2 and kept.items() <= expected[mode].items()

    def interrupt() -> None:
        raise KeyboardInterrupt

    on_first_shared(interrupt)
    with pytest.raises(KeyboardInterrupt):
        predict(together, tmp_path / "stopped", model)
    before = {mode: (tmp_path / "stopped" / f"{mode}.jsonl").read_bytes() for mode in BOTH}
    assert 2 <= len(by_id(tmp_path / "stopped" / f"{BOTH[0]}.jsonl")) < 9
    on_chunk.clear()
    for mode, path in predict(alone, tmp_path / "stopped", model).items():  # in another number of processes
        assert path.read_bytes().startswith(before[mode])
        assert by_id(path) == expected[mode]

    on_first_shared(lambda: time.sleep(2))  # the other process takes all the rest meanwhile
    for mode, path in predict(together, tmp_path / "together", model).items():
        assert by_id(path) == expected[mode]
    assert len(chunks) == 2
    assert not list((tmp_path / "together").glob("process_*.log"))


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
    chunks = split_chunks(run, [Chunk(BOTH, samples)])
    assert [[sample.id for sample in chunk.samples] for chunk in chunks] == [["0", "2", "4"], ["1", "3"]]
