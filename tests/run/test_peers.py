"""Processes that were started together work at one run, as torchrun and Ray start them."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
from pathlib import Path

import pytest
import yaml
from fixtures import commands

from mllm_tailor.core.errors import RecipeError, RunError
from mllm_tailor.recipe import make_recipe
from mllm_tailor.run import peers
from mllm_tailor.run.execute import execute
from mllm_tailor.run.launcher import choose_process_count
from mllm_tailor.run.resolve import resolve
from mllm_tailor.synthetic import draw_folder

VALUES: dict[str, object] = {
    "data": "unused",
    "task": {"extract": {"company": "string", "total": "amount"}},
    "method": {"name": "lora", "rank": 4},
    "model": {"path": "embedded", "dtype": "float32"},
}


def losses(run: Path) -> list[float]:
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [row["loss"] for row in rows if "loss" in row]


def start_together(
    recipe: Path, words: list[str], errors: Path, monkeypatch: pytest.MonkeyPatch
) -> list[commands.Command]:
    """Two processes with the environment that torchrun sets."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = []
    for rank in range(2):
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        for name, value in place.items():
            monkeypatch.setenv(name, str(value))
        started.append(commands.start("run", recipe, *words, errors=errors.with_suffix(f".{rank}")))
    for name in (*peers.VARIABLES, "LOCAL_RANK"):
        monkeypatch.delenv(name)
    return started


@pytest.mark.slow
def test_two_started_together_train_what_one_does_also_after_one_was_killed(
    tiny_model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw_folder(tmp_path / "data", 6, 2, seed=5)
    values = {
        **VALUES,
        "name": "together",
        "model": {"path": str(tiny_model_folder), "dtype": "float32"},
        "data": {"train": str(tmp_path / "data"), "held_out": {"folds": 2}, "dev": 0},
        "train": {"steps": 12, "batch_size": 4, "micro_batch_size": 1, "learning_rate": 0.1, "optimizer": "sgd"},
        "predict": {"max_new_tokens": 4},
        "output": str(tmp_path / "runs"),
    }
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(values))
    alone = commands.start("run", recipe, "train.processes=1", "name=alone", errors=tmp_path / "alone")
    assert alone.wait() == 0, alone.errors.read_text()

    folder = tmp_path / "runs" / "together"
    often = ["train.checkpoint_every=0.000001"]
    first = start_together(recipe, often, tmp_path / "first", monkeypatch)
    first[0].wait_for(lambda: list(folder.glob("fold-2/checkpoints/step-*[1-9]*")))
    os.kill(first[1].pid, signal.SIGKILL)
    assert first[0].wait(120) == 2
    assert "another process of this run ended" in re.sub(r"\s+", " ", first[0].errors.read_text())
    assert (folder / "fold-1" / "report.html").is_file() and not (folder / "report.html").exists()

    second = start_together(recipe, often, tmp_path / "second", monkeypatch)
    assert [process.wait(120) for process in second] == [0, 0], second[0].errors.read_text()
    assert "Resuming after step" in second[0].errors.read_text()
    assert second[1].errors.read_text() == ""  # rank 0 reports
    for part in ("fold-1", "fold-2", ""):
        expected = losses(tmp_path / "runs" / "alone" / part)
        assert len(expected) == 12
        assert losses(folder / part) == pytest.approx(expected, rel=1e-5)


def test_an_incomplete_environment_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(RunError, match=r"MASTER_ADDR, MASTER_PORT is not set .* train\.processes=N"):
        execute(make_recipe(VALUES))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"train": {"optimizer": "mezo"}}, "2 processes were started together, but mezo keeps no gradients"),
        ({"model": {"path": "embedded", "device": "cuda:1"}}, "cuda:1 is one GPU, but 2 processes"),
    ],
)
def test_what_peers_cannot_train_is_refused(
    changes: dict[str, object], reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mllm_tailor.run.resolve.torch.cuda.device_count", lambda: 2)
    run = resolve(make_recipe(VALUES | changes))
    monkeypatch.setattr(peers, "_present", [peers.Peers(None, 0, 2)])  # type: ignore[arg-type]
    with pytest.raises(RecipeError, match=reason):
        choose_process_count(run, None)
