"""A decoding step computed without transformers' modules says what transformers says."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from transformers import AutoConfig, AutoModelForCausalLM

from mllm_tailor.generation import decoder_step
from mllm_tailor.generation.decoder_step import DecoderStep
from mllm_tailor.generation.kv_cache import KVCache, append_columns, compact, empty_cache, no_cache
from mllm_tailor.generation.shared_prefix_attention import Prefix, SharedPrefixAttention

SIZES = {
    "vocab_size": 50,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "bos_token_id": None,
    "eos_token_id": 1,
}


def random_model(kind: str) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **SIZES), attn_implementation="sdpa")
        for weight in network.parameters():
            torch.nn.init.normal_(weight, std=0.3)
    return network.eval()


@torch.inference_mode()
def read(network: Any, prompt: torch.Tensor) -> Prefix:
    cache = empty_cache()
    network(input_ids=prompt[None], past_key_values=cache, use_cache=True)
    return Prefix.of(KVCache(cache, torch.ones(1, len(prompt), dtype=torch.int64)), 0)


@pytest.mark.parametrize("adapted", [False, True])
@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3"])
def test_logits_are_those_of_transformers(kind: str, *, adapted: bool) -> None:
    """Rows that share a prompt and rows that do not, blocks of different lengths, and rows that are reordered."""
    network = random_model(kind)
    if adapted:
        inject_adapter_in_model(LoraConfig(target_modules=["q_proj", "up_proj"], init_lora_weights=False), network)
    step = DecoderStep.of(SimpleNamespace(model=network))  # type: ignore[arg-type]
    assert step is not None
    prompts = [torch.arange(9), torch.arange(20, 26)]
    prefixes = [read(network, prompts[0])] * 2 + [read(network, prompts[1])]
    texts = [prompts[0].tolist(), prompts[0].tolist(), prompts[1].tolist()]
    kv = no_cache(3)
    blocks = [([0, 1, 2], [[3, 4], [5], [6, 7]]), ([1, 0, 2], [[8], [9], [10]]), ([0, 0, 2], [[11], [12], [13]])]
    with torch.inference_mode():
        for order, block in blocks:
            kv = compact([(kv, order)])
            texts = [texts[row] + tokens for row, tokens in zip(order, block, strict=True)]
            width = max(map(len, block))
            padded = [[0] * (width - len(tokens)) + tokens for tokens in block]
            real = [[0] * (width - len(tokens)) + [1] * len(tokens) for tokens in block]
            positions = [[max(len(text) - width + column, 0) for column in range(width)] for text in texts]
            append_columns(kv, torch.tensor(real))
            attention = SharedPrefixAttention.of(prefixes)
            logits = step.logits(torch.tensor(padded), torch.tensor(positions), kv, attention)
            for row, text in enumerate(texts):
                expected = network(input_ids=torch.tensor([text])).logits[0, -len(block[row]) :]
                torch.testing.assert_close(logits[row, -len(block[row]) :], expected, rtol=1e-4, atol=1e-4)


def test_what_is_attached_to_a_module_or_too_large_is_left_to_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    model: Any = SimpleNamespace(model=random_model("qwen2"))
    hook = model.model.model.layers[1].mlp.register_forward_hook(lambda *_: None)
    assert DecoderStep.of(model) is None
    hook.remove()
    assert DecoderStep.of(model) is not None
    assert DecoderStep.of(SimpleNamespace(model=random_model("qwen2").double())) is None  # type: ignore[arg-type]
    monkeypatch.setattr(decoder_step, "MOST_WEIGHTS", 1000)
    assert DecoderStep.of(model) is None
