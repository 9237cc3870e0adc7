"""A training killed at any moment and taken up again ends with the same bits as one that was never disturbed."""

from __future__ import annotations

import errno
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from fixtures.pairs import write_pair_family
from fixtures.small_job import make_conversations, prepare, train

from mllm_tailor.core.errors import DataError, RunError
from mllm_tailor.core.io import sha256
from mllm_tailor.methods import METHODS
from mllm_tailor.training import OPTIMIZERS
from mllm_tailor.training import checkpoint as checkpoints
from mllm_tailor.training.checkpoint import Checkpoint, list_checkpoints, load_verified, read_newest, write_checkpoint

SERVER = Path(__file__).with_name("resume_server.py")
TIMES = {"samples_per_second", "tokens_per_second", "memory", "seconds", "seconds_left"}


def serve(model_folder: Path, work: Path, specs: dict[str, Any]) -> dict[str, dict[str, list[int]]]:
    """Run the server; the exit codes of its children."""
    path = os.pathsep.join([str(SERVER.parent.parent), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"PYTHONPATH": path}
    done = subprocess.run(
        [sys.executable, str(SERVER), str(model_folder), str(work), json.dumps(specs)],
        capture_output=True, text=True, env=environment, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-5000:]
    codes: dict[str, dict[str, list[int]]] = json.loads(done.stdout)
    return codes


def outcome(work: Path, name: str) -> dict[str, Any]:
    """Everything that must be equal: weights, optimizer, losses, scores, random state after each step."""
    folder = work / name
    newest = list_checkpoints(folder / "checkpoints")[-1]
    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return {
        "adapter": {file.name: sha256(file) for file in (folder / "adapter").glob("*.safetensors")},
        "weights": sha256(newest / "weights.safetensors"),
        "optimizer": sha256(newest / "optimizer.safetensors"),
        "rows": [{key: value for key, value in row.items() if key not in TIMES} for row in rows],
        "chance": sorted(set((work / f"{name}.chance").read_text().splitlines())),
    }


def spec(method: dict[str, Any], moments: int, **train: Any) -> dict[str, Any]:
    """Nine steps of two passes, killed at `moments` random calls and once at a random time."""
    settings = {"micro_batch_size": 2, "epochs": 3, **train}
    return {"method": method, "train": settings, "moments": moments, "seconds": 1, "span": 30, "seed": 1}


@pytest.mark.slow
def test_killed_and_resumed(tiny_model_folder: Path, tmp_path: Path) -> None:
    """20 kill points in all: at random calls (mid-accumulation, mid-write, between flush and rename) and times."""
    specs = {
        "every step": spec({"name": "lora", "rank": 4, "dropout": 0.2}, 9, checkpoint_every=1e-9),
        "every epoch": spec({"name": "qlora", "rank": 4, "dropout": 0.2}, 4, optimizer="paged_adamw_8bit"),
        "live pictures": spec({"name": "full", "parts": ["language"]}, 4, augment=True, evaluate_every=0.5),
    }
    for name, codes in serve(tiny_model_folder, tmp_path, specs).items():
        assert codes["whole"] == [0]
        assert codes["moments"][-1] == codes["seconds"][-1] == 0
        assert codes["moments"][:3] == [-9, -9, -9]
        wanted = outcome(tmp_path / name, "whole")
        assert len(wanted["chance"]) == 9
        assert outcome(tmp_path / name, "moments") == wanted
        assert outcome(tmp_path / name, "seconds") == wanted


# What each method needs on a model this small, and what makes its state more than a constant.
SETTINGS: dict[str, dict[str, Any]] = {
    "qlora": {"rank": 4, "dropout": 0.1},
    "vera": {"rank": 16},
    "oft": {"block": 16},
    "bottleneck": {"width": 8},
    "lora_fa": {"rank": 4, "projected": True},
    "lisa": {"layers": 1, "interval": 2},
    "mezo": {"parts": ["projector"]},
    "adalora": {"rank": 4, "dropout": 0.1, "start": 0.0, "end": 0.25},
    "prefix": {"length": 3},
    "prompt": {"length": 3},
    "galore": {"rank": 8, "interval": 3},
    "apollo": {"rank": 8, "interval": 3},
} | {name: {"rank": 4, "dropout": 0.1} for name in ("lora", "rslora", "dora", "pissa", "lora_plus", "dylora")}


def small_spec(method: dict[str, Any], seed: int, **more: Any) -> dict[str, Any]:
    """Four steps, a checkpoint after each, killed once at one of their first 40 passes, flushes, renames and events."""
    settings = {"batch_size": 2, "epochs": 2, "learning_rate": 1e-3, "checkpoint_every": 1e-9, **more.pop("train", {})}
    return {
        "method": method, "train": settings, "samples": 4, "moments": 1, "seconds": 0, "span": 40, "seed": seed, **more
    }  # fmt: skip


def every_method(teacher: Path, pairs: Path) -> dict[str, dict[str, Any]]:
    """All methods, all optimizers, all objectives."""
    methods = [{"name": name, **SETTINGS.get(name, {})} for name in METHODS if name != "freeze"]
    specs = {method["name"]: small_spec(method, seed) for seed, method in enumerate(methods)}
    lora = {"name": "lora", "rank": 4}
    for seed, name in enumerate(sorted(set(OPTIMIZERS) - {"adamw", "galore", "apollo"})):  # these two are methods too
        specs[f"lora by {name}"] = small_spec(lora, seed, train={"optimizer": name})
    vision, told = {"name": "full", "parts": ["vision"]}, {"teacher": str(teacher)}
    wrong = {str(number): f'{{"total": "{number}9"}}' for number in range(4)}
    return specs | {
        "distilled": small_spec(lora, 1, train={"distill": told}),
        "distilled vision": small_spec(vision, 2, train={"distill": {**told, "of": "vision", "layers": 2}}),
        "preferred": small_spec(lora, 3, train={"prefer": {"loss": "mpo"}}, rejected=wrong),
        "distilled from own replies": small_spec(
            lora, 5, train={"distill": {**told, "of": "replies", "own_share": 0.7}}, replies=1
        ),
        "rewarded": small_spec(lora, 6, train={"reward": {"group_size": 3, "updates": 2}}, replies=3),
        "contrast": small_spec(lora, 4, train={"micro_batch_size": 1}, model=str(pairs)),
    }


@pytest.mark.slow
def test_every_method_killed_and_resumed(tiny_model_folder: Path, tmp_path: Path) -> None:
    """SIGKILL at one moment each; weights, optimizer, losses and the state of chance end bit for bit the same."""
    write_pair_family(tmp_path / "clip", "clip")
    specs = every_method(tiny_model_folder, tmp_path / "clip")
    for name, codes in serve(tiny_model_folder, tmp_path / "work", specs).items():
        assert codes["moments"] == [-9, 0], name
        assert outcome(tmp_path / "work" / name, "moments") == outcome(tmp_path / "work" / name, "whole"), name


def a_checkpoint(step: int) -> Checkpoint:
    return Checkpoint(step, {"weights": {"w": torch.full((10,), float(step))}}, {"fingerprint": "f"})


class TestFiles:
    """Whole or not there, whatever happens while writing and afterwards."""

    def test_only_the_newest_are_kept(self, tmp_path: Path) -> None:
        for step in range(1, 6):
            write_checkpoint(tmp_path, a_checkpoint(step), keep=2)
        assert [place.name for place in list_checkpoints(tmp_path)] == ["step-00000004", "step-00000005"]
        newest = read_newest(tmp_path)
        assert newest is not None
        assert torch.equal(newest.tensors["weights"]["w"], torch.full((10,), 5.0))

    @pytest.mark.parametrize("name", ["weights.safetensors", "state.json", "manifest.json"])
    @pytest.mark.parametrize("damage", ["flip", "cut", "remove", "empty"])
    def test_a_damaged_one_falls_back_to_the_one_before(
        self, name: str, damage: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        write_checkpoint(tmp_path, a_checkpoint(1), keep=2)
        file = write_checkpoint(tmp_path, a_checkpoint(2), keep=2) / name
        raw = bytearray(file.read_bytes())
        if damage == "flip":
            raw[len(raw) // 2] ^= 1
            file.write_bytes(raw)
        elif damage == "remove":
            file.unlink()
        else:
            file.write_bytes(raw[: len(raw) // 2] if damage == "cut" else b"")
        found = read_newest(tmp_path)
        assert found is not None
        assert found.step == 1
        assert "using the checkpoint before it" in caplog.text
        with pytest.raises(DataError):
            load_verified(file.parent)

    @pytest.mark.parametrize("call", range(12))
    def test_a_disk_that_fills_up_leaves_the_one_before_whole(
        self, call: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The n-th flush, open or write of the writer fails for lack of room."""
        write_checkpoint(tmp_path, a_checkpoint(1), keep=2)
        count = 0

        def failing(function: Any) -> Any:
            def wrapper(*arguments: Any, **named: Any) -> Any:
                nonlocal count
                count += 1
                if count == call + 1:
                    raise OSError(errno.ENOSPC, "No space left on device")
                return function(*arguments, **named)

            return wrapper

        monkeypatch.setattr(os, "fsync", failing(os.fsync))
        monkeypatch.setattr(checkpoints, "save_file", failing(checkpoints.save_file))
        monkeypatch.setattr(Path, "rename", failing(Path.rename))
        monkeypatch.setattr(Path, "mkdir", failing(Path.mkdir))
        try:
            write_checkpoint(tmp_path, a_checkpoint(2), keep=2)
        except RunError as error:
            assert "make room" in str(error)
        else:
            assert count <= call
        monkeypatch.undo()
        found = read_newest(tmp_path)
        assert found is not None
        assert found.step in (1, 2)
        assert len(list_checkpoints(tmp_path)) >= 1

    def test_training_says_what_to_do_on_a_full_disk(
        self, tiny_model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        samples = make_conversations(tmp_path / "pictures", 4)
        model, method, recipe = prepare(tiny_model_folder, "lora", checkpoint_every=1e-9)

        def full(*_: Any, **__: Any) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(checkpoints, "save_file", full)
        with pytest.raises(RunError, match="make room and run the same command again"):
            train(model, method, samples, recipe, tmp_path / "run")

    def test_what_a_killed_writer_left_is_cleared(self, tmp_path: Path) -> None:
        write_checkpoint(tmp_path, a_checkpoint(1), keep=2)
        host = socket.gethostname().replace(".", "-")[:40]
        half = tmp_path / f".step-00000002.new.{host}.4194303.0.partial"  # nobody has this process number
        half.mkdir()
        (half / "weights.safetensors").write_bytes(b"half")
        checkpoints.clear_unfinished(tmp_path)
        assert [place.name for place in tmp_path.iterdir()] == ["step-00000001"]
