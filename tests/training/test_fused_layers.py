"""Layers computed as one function leave losses and gradients as they are, and keep less."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from fixtures.small_job import batch_of, learned, make_conversations, prepare, shake
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from transformers import Qwen2Config
from transformers.models.qwen2.modeling_qwen2 import Qwen2DecoderLayer, Qwen2RotaryEmbedding

from mllm_tailor.models import LoadedModel, encode
from mllm_tailor.models.patches import last_layer
from mllm_tailor.models.patches.decoder_layer import DecoderLayerFunction
from mllm_tailor.models.patches.fused_layers import fused_layers
from mllm_tailor.models.patches.vision_layer import VisionLayerFunction
from mllm_tailor.models.vision_cache import image_features
from mllm_tailor.training.batches import collate_right
from mllm_tailor.training.objectives.cross_entropy import answer_loss
from mllm_tailor.training.trainable import set_train_mode

ALL = ["vision", "projector", "language"]
METHODS: dict[str, dict[str, Any]] = {
    "full": {"name": "full", "parts": [*ALL, "head"]},
    "lora": {"name": "lora", "rank": 4, "dropout": 0.0, "parts": ALL},
    "language": {"name": "lora", "rank": 4, "dropout": 0.0, "parts": ["language"]},
}


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the fused functions as they are called."""
    names: list[str] = []
    for function in (DecoderLayerFunction, VisionLayerFunction):

        def apply(*given: Any, function: Any = function, usual: Any = function.apply) -> Any:
            names.append(function.__name__)
            return usual(*given)

        monkeypatch.setattr(function, "apply", apply)
    return names


def opened(folder: Path, method: str) -> LoadedModel:
    """The tiny model with a method whose weights have moved."""
    model, _, _ = prepare(folder, METHODS[method])
    shake(model)
    set_train_mode(model)
    return model


def unmasked(model: LoadedModel, folder: Path, count: int = 2) -> dict[str, Any]:
    """A batch as a training makes it."""
    return collate_right([encode(sample, model) for sample in make_conversations(folder, count)], model)


def agree(found: tuple[float, dict[str, Tensor]], usual: tuple[float, dict[str, Tensor]]) -> None:
    """Equal up to rounding in float32; gradients that are zero by symmetry (biases of keys), next to the others."""
    assert found[0] == pytest.approx(usual[0], rel=1e-6)
    assert found[1].keys() == usual[1].keys()
    largest = max(float(gradient.norm()) for gradient in usual[1].values())
    for name, gradient in usual[1].items():
        assert (found[1][name] - gradient).norm() <= 2e-5 * gradient.norm() + 1e-7 * largest, name


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("skipped", [1, 10**9], ids=["last layer at answers", "last layer everywhere"])
def test_losses_and_gradients_stay(
    method: str,
    skipped: int,
    tiny_model_folder: Path,
    tmp_path: Path,
    calls: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(last_layer, "MIN_SKIPPED", skipped)
    model = opened(tiny_model_folder, method)
    batch = unmasked(model, tmp_path)
    usual = learned(model, batch)
    assert not calls
    with fused_layers(model.model):
        agree(learned(model, batch), usual)
    config = model.model.config
    assert calls.count("VisionLayerFunction") == config.vision_config.num_hidden_layers
    assert calls.count("DecoderLayerFunction") == config.text_config.num_hidden_layers
    assert not any("forward" in vars(module) for module in model.model.modules())


def test_less_is_kept(tiny_model_folder: Path, tmp_path: Path) -> None:
    model = opened(tiny_model_folder, "full")
    batch = unmasked(model, tmp_path)
    kept = []
    for context in (nullcontext(), fused_layers(model.model)):
        storages: dict[int, int] = {}

        def keep(tensor: Tensor, storages: dict[int, int] = storages) -> Tensor:
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with context, saved_tensors_hooks(keep, lambda tensor: tensor):
            answer_loss(model.model, batch)
        weights = {weight.untyped_storage().data_ptr() for weight in model.model.parameters()}
        kept.append(sum(size for pointer, size in storages.items() if pointer not in weights))
    assert kept[1] < 0.7 * kept[0]


def test_features_without_gradients(tiny_model_folder: Path, tmp_path: Path, calls: list[str]) -> None:
    model = opened(tiny_model_folder, "language")
    pixels = unmasked(model, tmp_path)["pixel_values"]
    usual = image_features(model, pixels, bf16=False)
    with fused_layers(model.model):
        torch.testing.assert_close(image_features(model, pixels, bf16=False), usual, rtol=1e-4, atol=1e-5)
    assert calls


def test_what_cannot_be_fused_is_computed_as_usual(tiny_model_folder: Path, tmp_path: Path, calls: list[str]) -> None:
    """Masks, bf16, a hook inside, and layers that are computed again in the backward pass."""
    model = opened(tiny_model_folder, "language")
    batch = unmasked(model, tmp_path)
    decoder = model.model.get_decoder()
    with fused_layers(model.model):
        answer_loss(model.model, batch_of(model, make_conversations(tmp_path, 2)))
        with torch.autocast("cpu", torch.bfloat16):
            answer_loss(model.model, batch)
        assert "DecoderLayerFunction" not in calls
        seen: list[nn.Module] = []
        handle = decoder.layers[0].mlp.register_forward_hook(lambda module, *_: seen.append(module))
        answer_loss(model.model, batch)
        handle.remove()
        assert seen == [decoder.layers[0].mlp] and calls.count("DecoderLayerFunction") == len(decoder.layers) - 1
        calls.clear()
        model.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        answer_loss(model.model, batch)
    assert "DecoderLayerFunction" not in calls


def test_shared_keys_and_positions_of_each_sample(calls: list[str]) -> None:
    """Two heads of queries a head of keys; samples whose positions differ."""
    torch.manual_seed(0)
    config = Qwen2Config(hidden_size=32, intermediate_size=48, num_attention_heads=4, num_key_value_heads=2,
                         attn_implementation="sdpa")  # fmt: skip
    layer = Qwen2DecoderLayer(config, 0)
    x = torch.randn(2, 9, 32, requires_grad=True)
    positions = torch.stack([torch.arange(9), torch.arange(5, 14)])
    tables = Qwen2RotaryEmbedding(config)(x, positions)
    chosen = torch.randn(2, 9, 32)
    found = []
    for context in (nullcontext(), fused_layers(layer)):
        with context:
            (layer(x, position_embeddings=tables) * chosen).sum().backward()
        found.append([x.grad, *(weight.grad for weight in layer.parameters())])
        x.grad = None
        layer.zero_grad()
    assert calls == ["DecoderLayerFunction"]
    for fused, usual in zip(found[1], found[0], strict=True):
        torch.testing.assert_close(fused, usual, rtol=1e-4, atol=1e-5)
