"""Attention by blocks of queries: what torch's own gives, to the rounding of bf16, and only where it is meant."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AutoModelForMultimodalLM
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from mllm_tailor.models import load_model
from mllm_tailor.models.patches import cpu_attention as attention
from mllm_tailor.models.patches.cpu_attention import BlockedAttention, attend, torch_attention


class Layer(nn.Module):
    is_causal = True
    num_key_value_groups = 1


def heads(tokens: int, count: int = 4, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(2, count, tokens, 16, dtype=dtype, requires_grad=True)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("tokens", [1, 255, 256, 257, 600])
def test_the_mathematics_is_that_of_attention(tokens: int, causal: bool) -> None:
    """In float64, where nothing is rounded: outputs and gradients within 1e-12, and 1e-6 where sums are float32."""
    torch.manual_seed(tokens)
    given = [heads(tokens) for _ in range(3)]
    wanted = nn.functional.scaled_dot_product_attention(*given, is_causal=causal)
    found = BlockedAttention.apply(*given, 16**-0.5, causal)
    assert torch.allclose(found, wanted, atol=1e-12)
    pull = torch.randn_like(wanted)
    for mine, torchs in zip(
        torch.autograd.grad(found, given, pull), torch.autograd.grad(wanted, given, pull), strict=True
    ):
        assert torch.allclose(mine, torchs, atol=1e-6)


@pytest.fixture(autouse=True)
def anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if bf16 ran in hardware, a vector at a time; elsewhere it is emulated, with the same roundings."""
    monkeypatch.setattr(attention, "fast_bf16", lambda device: True)
    monkeypatch.setattr(attention, "has_matrix_tiles", lambda: False)


@pytest.mark.slow
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("tiles", [False, True])
def test_a_pass_in_bf16_is_as_exact_as_torchs(
    groups: int, causal: bool, autocast: bool, tiles: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against float32, its error is at most three times that of torch's own bf16 attention."""
    torch.manual_seed(0)
    monkeypatch.setattr(attention, "has_matrix_tiles", lambda: tiles)
    dtype = torch.float32 if autocast else torch.bfloat16
    given = [heads(320, count, dtype) for count in (4, 4 // groups, 4 // groups)]
    layer = Layer()
    layer.num_key_value_groups, layer.is_causal = groups, causal

    def run(mine: bool, exact: bool = False) -> list[Tensor]:
        inputs = [one.float() for one in given] if exact else given
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast and not exact):
            if mine:
                out, _ = attend(layer, *inputs, None)
            else:
                with torch_attention():
                    out, _ = attend(layer, *inputs, None)
        return [out.float(), *torch.autograd.grad(out.float().sin().sum(), given)]

    exact, mine, torchs = run(False, exact=True), run(True), run(False)
    assert torch.equal(mine[0], torchs[0]) == (tiles and causal), "computed in another way than is meant"
    for right, one, other in zip(exact, mine, torchs, strict=True):
        assert (one.float() - right).norm() <= 3 * (other.float() - right).norm()


@pytest.mark.parametrize("what", ["float32", "emulated", "short", "mask", "window", "dropout", "decoding", "tiles"])
def test_anything_else_is_left_to_torch(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The blocks are not even tried."""
    monkeypatch.setattr(attention, "BlockedAttention", None)
    if what == "emulated":
        monkeypatch.setattr(attention, "fast_bf16", lambda device: False)
    if what == "tiles":
        monkeypatch.setattr(attention, "has_matrix_tiles", lambda: True)
    tokens = 64 if what == "short" else 300
    dtype = torch.float32 if what == "float32" else torch.bfloat16
    query, key, value = (heads(tokens, 4, dtype) for _ in range(3))
    if what == "decoding":
        query = query[:, :, -1:]
    mask = torch.ones(tokens, tokens, dtype=torch.bool).tril()[None, None] if what == "mask" else None
    named = {"window": {"sliding_window": 8}, "dropout": {"dropout": 0.1}}
    out, _ = attend(Layer(), query, key, value, mask, **named.get(what, {}))
    assert out.shape == (2, query.shape[2], 4, 16)


def test_only_our_models_use_it(tiny_model_folder: Path) -> None:
    """transformers' `sdpa` stays transformers', other models of the process keep it, and the handle gives it back."""
    ours = load_model(tiny_model_folder).model
    other = AutoModelForMultimodalLM.from_pretrained(tiny_model_folder)
    assert AttentionInterface()["sdpa"] is sdpa_attention_forward
    assert AttentionInterface()[attention.NAME] is attend
    towers = ("vision_config", "text_config")
    assert {getattr(ours.config, tower)._attn_implementation for tower in towers} == {attention.NAME}
    assert {getattr(other.config, tower)._attn_implementation for tower in towers} == {"sdpa"}
    handle = attention.install(other)
    assert other.config.text_config._attn_implementation == attention.NAME
    handle.remove()
    assert {getattr(other.config, tower)._attn_implementation for tower in towers} == {"sdpa"}
