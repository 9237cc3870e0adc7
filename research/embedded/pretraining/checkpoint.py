"""Save and restore a training state, so that a stopped run goes on where it stood. safetensors, written atomically."""

from __future__ import annotations

import json
import os
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

FOLDER = Path(__file__).resolve().parent.parent / ".checkpoints"
HEADS = Path(__file__).with_name("heads.safetensors")  # belongs to the shipped weights
LANGUAGE = Path(__file__).with_name("language.safetensors")  # stage two ahead of the shipped weights, where kept


def save(name: str, modules: dict[str, torch.nn.Module], optimizers: list[torch.optim.Optimizer], facts: dict) -> Path:
    """Write weights, optimiser states, torch's random state and `facts` (step, seconds...) to one file."""
    tensors = {}
    for prefix, module in modules.items():
        for key, value in module.state_dict().items():
            tensors[f"{prefix}/{key}"] = value.detach().contiguous().clone()
    for number, optimizer in enumerate(optimizers):
        for index, state in optimizer.state_dict()["state"].items():
            for key, value in state.items():
                tensors[f"optimizer{number}/{index}/{key}"] = torch.as_tensor(value).clone()
    tensors["random"] = torch.get_rng_state()
    FOLDER.mkdir(parents=True, exist_ok=True)
    target = FOLDER / f"{name}.safetensors"
    partial = target.with_suffix(".partial")
    save_file(tensors, partial, metadata={"facts": json.dumps(facts)})
    os.replace(partial, target)
    return target


def load(name: str, modules: dict[str, torch.nn.Module], optimizers: list[torch.optim.Optimizer] = ()) -> dict:
    """Restore what `save` wrote into `modules` (and `optimizers`, where given); returns the facts."""
    with safe_open(FOLDER / f"{name}.safetensors", "pt") as stored:
        facts = json.loads(stored.metadata()["facts"])
        tensors = {key: stored.get_tensor(key) for key in stored.keys()}  # noqa: SIM118 - not a dict
    for prefix, module in modules.items():
        module.load_state_dict(
            {k.removeprefix(prefix + "/"): v for k, v in tensors.items() if k.startswith(prefix + "/")}
        )
    for number, optimizer in enumerate(optimizers):
        state: dict[int, dict] = {}
        for key, value in tensors.items():
            if key.startswith(f"optimizer{number}/"):
                _, index, name_ = key.split("/")
                state.setdefault(int(index), {})[name_] = value
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    if optimizers:
        torch.set_rng_state(tensors["random"])
    return facts


def shape(name: str, key: str) -> list[int]:
    """The shape of one stored tensor."""
    with safe_open(FOLDER / f"{name}.safetensors", "pt") as stored:
        return stored.get_slice(key).get_shape()


def exists(name: str) -> bool:
    return (FOLDER / f"{name}.safetensors").exists()


def keep(file: Path, modules: dict[str, torch.nn.Module]) -> None:
    """Keep modules in bf16 beside the code: what training needs and the shipped model leaves behind, or a milestone."""
    tensors = {
        f"{name}/{key}": value.bfloat16().contiguous()
        for name, m in modules.items()
        for key, value in m.state_dict().items()
    }
    partial = file.with_suffix(".partial")
    save_file(tensors, partial)
    os.replace(partial, file)


def step(file: Path, modules: dict[str, torch.nn.Module]) -> bool:
    """Restore into `modules` what `keep` wrote; False where nothing was kept."""
    if not file.exists():
        return False
    with safe_open(file, "pt") as stored:
        for name, module in modules.items():
            module.load_state_dict({key: stored.get_tensor(f"{name}/{key}").float() for key in module.state_dict()})
    return True
