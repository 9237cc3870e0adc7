"""A job small enough for tests: twelve drawn pictures, a tiny random model, float32 throughout."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import bitsandbytes
import torch
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn import Linear4bit
from PIL import Image, ImageDraw
from torch import Tensor, nn

from mllm_tailor.core.conversation import Conversation, as_conversation
from mllm_tailor.core.device import seed_everything
from mllm_tailor.core.sample import Media, Sample
from mllm_tailor.methods import MethodSet, make_method
from mllm_tailor.models import LoadedModel, collate, encode, load_model
from mllm_tailor.models.bundled.build import build_internvl, build_processor, save
from mllm_tailor.recipe import Recipe, make_recipe
from mllm_tailor.training import TrainingConfig, TrainingHooks, TrainResult
from mllm_tailor.training import train as train_model
from mllm_tailor.training.trainable import tuning_method_of


def make_samples(folder: Path, count: int = 12) -> list[Sample]:
    """Pictures of different shapes (so different numbers of tiles) with a number on them."""
    folder.mkdir(parents=True, exist_ok=True)
    samples = []
    for number in range(count):
        picture = Image.new("RGB", (60 + 40 * (number % 3), 80), "white")
        ImageDraw.Draw(picture).text((5, 5), str(number) * 3, fill="black")
        picture.save(folder / f"{number}.png")
        media = (Media("image", folder / f"{number}.png"),)
        samples.append(Sample(str(number), media, "Total?", f'{{"total": "{number * 111}"}}'))
    return samples


def make_conversations(folder: Path, count: int = 12) -> list[Conversation]:
    """The same as training takes them."""
    return [as_conversation(sample) for sample in make_samples(folder, count)]


def save_lively(folder: Path, tokenizer: Any, seed: int, **sizes: int) -> LoadedModel:
    """A random model lively enough that pictures and questions change what it says."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        random = build_internvl(
            tokenizer,
            vision_width=16,
            vision_layers=1,
            text_width=32,
            text_layers=2,
            image_size=28,
            tie_embeddings=False,
            **sizes,
        )
        for name, weight in random.named_parameters():
            if weight.ndim > 1 and "vision" not in name:
                nn.init.normal_(weight, std=0.3)
    save(random, build_processor(tokenizer, 28, max_tiles=4), folder)
    return load_model(folder, dtype="float32", device="cpu")


def small_recipe(method: dict[str, Any] | str, **train: Any) -> Recipe:
    """Two epochs of three steps unless told otherwise."""
    return make_recipe(
        {
            "data": "unused",
            "task": {"extract": {"total": "string"}},
            "model": {"path": "tiny", "dtype": "float32"},
            "method": method,
            "train": {"epochs": 2, "batch_size": 4, "learning_rate": 1e-2, "warmup_ratio": 0.0, **train},
        }
    )


def open_small(folder: Path, method: MethodSet) -> LoadedModel:
    """The tiny model as the method wants its base; packed layers compute in float32, so that tests can be exact."""
    return copy.deepcopy(_opened(folder, method.quantize, method.quantize_skip))


@lru_cache(maxsize=8)
def _opened(folder: Path, quantize: Any, quantize_skip: tuple[str, ...]) -> LoadedModel:
    model = load_model(folder, dtype="float32", device="cpu", quantize=quantize, quantize_skip=quantize_skip)
    for module in model.model.modules():
        if isinstance(module, bitsandbytes.nn.Linear4bit):
            module.compute_dtype = torch.float32
    return model


def prepare(folder: Path, method: dict[str, Any] | str, **train: Any) -> tuple[LoadedModel, MethodSet, Recipe]:
    """Recipe, model and method, applied with a fixed seed."""
    recipe = small_recipe(method, **train)
    chosen = make_method(recipe)
    model = open_small(folder, chosen)
    seed_everything(recipe.seed)
    chosen.apply(model)
    return model, chosen, recipe


def train(
    model: LoadedModel, method: MethodSet, samples: Sequence[Conversation], recipe: Recipe, folder: Path, **hooks: Any
) -> TrainResult:
    """Train as `recipe` says; `hooks` are fields of TrainingHooks."""
    assert tuning_method_of(model) is method
    return train_model(model, samples, TrainingConfig.from_recipe(recipe), folder, TrainingHooks(**hooks))


def batch_of(model: LoadedModel, samples: Sequence[Conversation | Sample]) -> dict[str, Tensor]:
    """A right-padded training batch."""
    return collate([encode(sample, model) for sample in samples], model, side="right")


@torch.no_grad()
def logits(model: LoadedModel, samples: Sequence[Conversation | Sample]) -> Tensor:
    """(batch, length, vocabulary) of the model in evaluation mode."""
    inputs = batch_of(model, samples)
    inputs.pop("labels")
    model.model.eval()
    found: Tensor = model.model(**inputs).logits
    return found


@torch.no_grad()
def exact_logits(model: LoadedModel, samples: list[Sample]) -> Tensor:
    """The same in float64, on a copy: two float32 passes in another order differ by 1e-6 on some processors."""
    inputs = batch_of(model, samples)
    inputs.pop("labels")
    wide = copy.deepcopy(model.model)
    for name, module in list(wide.named_modules()):
        if isinstance(module, Linear4bit):
            parent, _, last = name.rpartition(".")
            setattr(wide.get_submodule(parent), last, _unpacked(module))
    wide.double().eval()
    found: Tensor = wide(**{name: part.double() if part.is_floating_point() else part for name, part in inputs.items()})
    return found.logits


def _unpacked(packed: Linear4bit) -> nn.Linear:
    plain = nn.Linear(packed.in_features, packed.out_features, bias=packed.bias is not None)
    plain.weight.copy_(dequantize_4bit(packed.weight.data, packed.weight.quant_state))
    if packed.bias is not None:
        plain.bias.copy_(packed.bias)
    return plain


def snapshot(model: LoadedModel) -> dict[str, Tensor]:
    """A copy of every tensor of the model."""
    return {name: tensor.detach().clone() for name, tensor in model.model.state_dict().items()}


@torch.no_grad()
def shake(model: LoadedModel, size: float = 0.02) -> None:
    """Move every trained weight at random, as training would."""
    for weight in model.model.parameters():
        if weight.requires_grad:
            weight.add_(size * torch.randn_like(weight))


def difference(left: Tensor, right: Tensor) -> float:
    """The largest difference, relative to the largest value."""
    return float((left - right).abs().max() / left.abs().max())
