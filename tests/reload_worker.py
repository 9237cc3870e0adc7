"""Writes adapters, or reads them again, in a process of its own. Run by test_reload.py.

Arguments: `write` or `read`, the folders of the two tiny models, a working folder, cases as JSON. For each case the
outputs (logits and replies, or vectors of pictures and texts) go to WORK/CASE/{write,read}.safetensors.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from small_job import logits, make_samples, open_small, prepare, shake, small_recipe
from torch import Tensor

from mllm_tailor.core.sample import Sample
from mllm_tailor.methods import make_method
from mllm_tailor.models import LoadedModel, collate, embed_pictures, embed_texts, encode, prompt_inputs


@torch.no_grad()
def outputs(model: LoadedModel, samples: list[Sample]) -> dict[str, Tensor]:
    """What the model makes of the samples."""
    model.model.eval()
    if model.family.compares:
        batch = collate([encode(sample, model) for sample in samples], model)
        return {"pictures": embed_pictures(model, batch), "texts": embed_texts(model, batch)}
    length = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": model.pad_id, "eos_token_id": -1}
    return {
        "logits": logits(model, samples),
        "replies": model.model.generate(**prompt_inputs(samples, model), **length),
    }


def write(folder: Path, place: Path, spec: dict[str, Any], samples: list[Sample]) -> dict[str, Tensor]:
    """A method applied, its weights moved, saved."""
    model, method, _ = prepare(folder, spec)
    shake(model, 0.05)
    method.save(model, place / "adapter")
    return outputs(model, samples)


def read(folder: Path, place: Path, spec: dict[str, Any], samples: list[Sample]) -> dict[str, Tensor]:
    """What was saved, on an untouched base."""
    method = make_method(small_recipe(spec))
    model = open_small(folder, method)
    untouched = outputs(model, samples)
    method.load(model, place / "adapter")
    found = outputs(model, samples)
    return found | {f"untouched {name}": tensor for name, tensor in untouched.items()}


def main() -> None:
    """Every case in turn."""
    what, writing, comparing, work = sys.argv[1], *map(Path, sys.argv[2:5])
    samples = make_samples(work / "pictures", 3)
    for name, spec in json.loads(sys.argv[5]).items():
        place = work / name
        place.mkdir(parents=True, exist_ok=True)
        folder = comparing if name.startswith("clip") else writing
        found = {"write": write, "read": read}[what](folder, place, spec, samples)
        save_file({key: tensor.contiguous() for key, tensor in found.items()}, place / f"{what}.safetensors")


if __name__ == "__main__":
    main()
