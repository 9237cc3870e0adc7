"""A folder with the smallest whole job: drawn images, a recipe, a model of 190,000 weights, a finished run."""

from __future__ import annotations

import json
import os
import random
import shutil
from pathlib import Path
from typing import Any

import yaml
from PIL import Image, ImageDraw
from reliability.forked import run

SAMPLES, HELD_OUT = 8, 2


def write_data(folder: Path, samples: int = SAMPLES, held_out: int = HELD_OUT) -> None:
    """Images with labels in a `metadata.jsonl`; the first ones are held out."""
    (folder / "images").mkdir(parents=True)
    rows = []
    for number in range(samples):
        image, chance = Image.new("RGB", (56 + 8 * (number % 3), 56), "white"), random.Random(number)
        draw = ImageDraw.Draw(image)
        draw.text((3, 3 + chance.randrange(30)), str(chance.randrange(10**6)), fill="black")
        draw.rectangle([chance.randrange(20), 40, 50, 52], fill=(chance.randrange(255), 90, 20))
        image.save(folder / "images" / f"{number}.png")
        split = "test" if number < held_out else "train"
        row = {"file_name": f"images/{number}.png", "id": f"s{number}", "total": f"{number}.50", "split": split}
        rows.append(row)
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def recipe(**changes: Any) -> dict[str, Any]:
    """A run of six steps, with a checkpoint after each."""
    values: dict[str, Any] = {
        "name": "g",
        "model": {"path": "model", "dtype": "float32"},
        "data": {"train": "d", "held_out": {"column": "split", "value": "test"}, "dev": 0},
        "task": {"extract": {"total": "string"}},
        "method": {"name": "lora", "rank": 2},
        "train": {"epochs": 2, "batch_size": 2, "checkpoint_every": 1e-9, "processes": 1},
        "predict": {"max_new_tokens": 12},
        "output": "runs",
    }
    for key, value in changes.items():
        own = values.get(key)
        values[key] = {**own, **value} if isinstance(own, dict) and isinstance(value, dict) else value
    return values


def write_recipe(path: Path, **changes: Any) -> None:
    """`recipe` as a file."""
    path.write_text(yaml.safe_dump(recipe(**changes), sort_keys=False))


def write_model(folder: Path) -> None:
    """An untrained InternVL; to be called in a child, since torch computes."""
    import torch

    from mllm_tailor.models.bundled.build import build_internvl, build_processor, build_tokenizer, save

    tokenizer = build_tokenizer()
    torch.manual_seed(0)
    sizes = {"vision_width": 16, "vision_layers": 1, "text_width": 32, "text_layers": 1, "image_size": 28}
    model = build_internvl(tokenizer, **sizes, head_width=16, max_length=1024, tie_embeddings=False)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1:
                weight.mul_(4)  # as initialised, a tiny model repeats one token whatever it is shown
    save(model, build_processor(tokenizer, 28, max_tiles=1, thumbnail=False), folder)


PLACE = "place"  # the folder in which everything happens: a run knows its data by their absolute paths


def write_inputs(folder: Path) -> None:
    """Data in `d` and the recipe `r.yaml`, which names a folder `model`."""
    folder.mkdir(parents=True, exist_ok=True)
    write_data(folder / "d")
    write_recipe(folder / "r.yaml")


def make_workspace(folder: Path) -> None:
    """Data in `d`, the recipe `r.yaml`, the model in `model` and the finished run `runs/g`."""
    write_inputs(folder)
    _made(run(lambda: write_model(folder / "model"), folder))
    _made(run(["run", "r.yaml"], folder))


def _made(ended: Any) -> None:
    if ended.status != 0:
        raise SystemExit(f"the workspace cannot be made: {ended.output}")


def copy_workspace(source: Path, target: Path, *names: str) -> None:
    """Copy parts of a workspace. Models are linked file by file, as no command writes to them."""
    target.mkdir(parents=True, exist_ok=True)
    for name in names:
        if (source / name).is_dir():
            copy = os.link if name == "model" else shutil.copy2
            shutil.copytree(source / name, target / name, copy_function=copy)
        else:
            shutil.copy2(source / name, target / name)
