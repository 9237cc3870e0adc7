"""One training in several processes of its own: the same result, and nothing lost when one of them is killed."""

from __future__ import annotations

import json
import os
import re
import signal
import tempfile
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import torch
import yaml
from fixtures import commands
from safetensors.torch import load_file

from mllm_tailor.commands.run import run_recipe
from mllm_tailor.core.device import pick_device
from mllm_tailor.core.errors import RecipeError
from mllm_tailor.recipe import Recipe, make_recipe
from mllm_tailor.run.cost_estimate import CostEstimate, count_processes
from mllm_tailor.run.launcher import choose_process_count
from mllm_tailor.run.resolve import resolve, resolve_here
from mllm_tailor.run.worker_processes import rank_device
from mllm_tailor.synthetic import draw_folder

LONG = CostEstimate(
    peak_bytes=1 << 28, training_seconds=3_600, vision_seconds=0, scoring_seconds=0, micro_batch_samples=1
)


def values(**changes: object) -> dict[str, object]:
    return {
        "data": "unused",
        "task": {"extract": {"company": "string", "date": "date", "address": "string", "total": "amount"}},
        "method": {"name": "full", "parts": ["language"]},
        "train": {"epochs": 2, "batch_size": 4, "micro_batch_size": 1, "learning_rate": 0.1, "optimizer": "sgd"},
        **changes,
    }


def job(place: Path, data: Path, model: Path, name: str, processes: int, **train: object) -> Path:
    """The file of a small recipe."""
    settings = {"learning_rate": 0.1, "optimizer": "sgd", "epochs": 2, "batch_size": 4, "micro_batch_size": 1}
    told = values(
        name=name,
        model={"path": str(model), "dtype": "float32"},
        data={"train": str(data), "held_out": {"column": "split", "value": "dev"}, "dev": 0.3},
        train=settings | {"processes": processes} | train,
        predict={"max_new_tokens": 8},
        output=str(place / "runs"),
    )
    path = place / f"{name}.yaml"
    path.write_text(yaml.safe_dump(told))
    return path


@pytest.fixture(scope="module")
def receipts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("receipts")
    draw_folder(folder, 9, 2, seed=5)
    return folder


def losses(run: Path) -> list[float]:
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [row["loss"] for row in rows if "loss" in row]


def dev_scores(run: Path) -> list[dict[str, float]]:
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [row["dev"] for row in rows if "dev" in row]


def weights(run: Path) -> dict[str, object]:
    return load_file(run / "adapter" / "trained.safetensors")


@pytest.mark.slow
@pytest.mark.parametrize("augment", [False, True])  # with kept features and without
def test_two_processes_train_what_one_does(
    augment: bool, receipts: Path, tiny_model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a blank").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "a blank"))  # where the processes meet
    before = dict(os.environ)
    runs = [
        run_recipe(
            job(tmp_path, receipts, tiny_model_folder, f"by{count}", count, augment=augment),
            [],
            exclude_faulty=False,
            fresh=False,
        ).path
        for count in (1, 2)
    ]
    assert dict(os.environ) == before
    assert losses(runs[1]) == pytest.approx(losses(runs[0]), rel=1e-5)
    assert len(dev_scores(runs[0])) == 2
    assert dev_scores(runs[1]) == [pytest.approx(scores) for scores in dev_scores(runs[0])]
    alone, together = map(weights, runs)
    assert max(float((alone[name] - together[name]).abs().max()) for name in alone) <= 1e-5
    assert not list(runs[1].glob("process_*.log"))
    costs = [json.loads((run / "training.json").read_text()) for run in runs]
    assert costs[1]["peak_bytes"] > costs[0]["peak_bytes"]  # of both processes


@pytest.mark.slow
def test_when_one_of_them_is_killed_the_run_says_so_and_goes_on_from_its_checkpoint(
    receipts: Path, tiny_model_folder: Path, tmp_path: Path
) -> None:
    recipe = job(tmp_path, receipts, tiny_model_folder, "struck", 2, epochs=100, checkpoint_every=0.001)
    command = commands.start("run", recipe, errors=tmp_path / "first")
    folder = tmp_path / "runs" / "struck"
    command.wait_for(lambda: list(folder.glob("checkpoints/step-*[1-9]*")))
    others = [child for child in psutil.Process(command.pid).children() if "spawn_main" in " ".join(child.cmdline())]
    assert len(others) == 1
    others[0].send_signal(signal.SIGKILL)
    status, said = command.wait(120), re.sub(r"\s+", " ", command.errors.read_text())
    assert status == 2, said
    assert (
        "one of the processes that train together ended" in said
        and "checkpoints and predictions are kept" in said
        and "train.processes=1" in said
    )
    kept = max(int(path.name.split("-")[1]) for path in folder.glob("checkpoints/step-*"))
    again = commands.start("run", recipe, "train.processes=1", errors=tmp_path / "second")
    status, said = again.wait(300), again.errors.read_text()
    assert status == 0, said
    assert f"Resuming after step {kept} of {len(losses(folder))}" in re.sub(r"\s+", " ", said)


def recipe_with(**changes: object) -> Recipe:
    return make_recipe(values(**changes))


def count(recipe: Recipe, forecast: CostEstimate = LONG) -> int:
    return count_processes(resolve(recipe), forecast)


def test_processes_follow_passes_memory_and_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mllm_tailor.run.cost_estimate.torch.get_num_threads", lambda: 8)
    monkeypatch.setattr("mllm_tailor.run.cost_estimate.free_memory", lambda device: 1 << 32)
    recipe = recipe_with()
    assert count(recipe) == 4  # passes of a step
    assert count(recipe, replace(LONG, micro_batch_samples=2)) == 2
    assert count(recipe, replace(LONG, peak_bytes=1 << 30)) == 3  # in 0.8 of the free memory
    assert count(recipe, replace(LONG, training_seconds=20)) == 1
    assert count(recipe_with(train={"processes": 3})) == 3


def test_a_run_that_goes_on_may_have_other_processes_than_were_foreseen() -> None:
    run, alone = resolve(recipe_with()), resolve(recipe_with(train={"processes": 1}))
    assert choose_process_count(run, replace(LONG, processes=4)) == 4
    assert choose_process_count(alone, replace(LONG, processes=4)) == 1
    assert choose_process_count(run, None) == 1


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"train": {"processes": 2, "optimizer": "lomo"}}, "lomo keeps no gradients"),
        ({"train": {"processes": 2, "optimizer": "mezo"}}, "mezo keeps no gradients"),
        ({"train": {"processes": 2, "distill": "teacher"}}, "its objective needs a single process"),
    ],
)
def test_what_cannot_be_shared_is_refused(
    changes: dict[str, object], reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mllm_tailor.run.resolve.torch.cuda.device_count", lambda: 1)
    recipe = recipe_with(**changes)
    with pytest.raises(RecipeError, match=reason):
        choose_process_count(resolve(recipe), None)
    changes["train"] = {**changes["train"], "processes": "auto"}  # type: ignore[dict-item]
    assert count(recipe_with(**changes)) == 1


def test_each_process_has_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr("mllm_tailor.run.resolve.computes_in_bf16", lambda dtype, device: True)
    run = resolve(recipe_with(train={"processes": 3}, model={"path": "embedded", "device": "cuda:1"}))
    assert [str(rank_device(run, rank)) for rank in range(3)] == ["cuda:1", "cuda:2", "cuda:3"]
    assert choose_process_count(run, None) == 3
    run = resolve(recipe_with(train={"processes": 4}, model={"path": "embedded", "device": "cuda:1"}))
    with pytest.raises(RecipeError, match="cuda:4 is absent — write at most 3"):
        choose_process_count(run, None)
    run = resolve(recipe_with(model={"path": "embedded"}))
    assert count_processes(run, LONG) == 1 and str(rank_device(run, 3)) == "cuda:3"
    monkeypatch.setenv("LOCAL_RANK", "2")  # torchrun, which starts processes that call `train` themselves
    assert [str(pick_device(wanted)) for wanted in (None, "cuda", "cuda:0", "cpu")] == [
        "cuda:2", "cuda:2", "cuda:0", "cpu",
    ]  # fmt: skip


def test_a_run_made_on_a_gpu_is_opened_on_this_machine(caplog: pytest.LogCaptureFixture) -> None:
    recipe = recipe_with(model={"path": "embedded", "device": "cuda:7"})
    assert resolve_here(recipe).model.device is None
    assert "cuda:7 is absent here" in caplog.text
    with pytest.raises(RecipeError, match="cuda:7 is absent"):
        resolve(recipe)
