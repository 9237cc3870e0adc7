"""A decoding step of a small decoder on a CPU, computed without transformers' modules.

The products of such a step are so small that calls of modules, casts that change nothing and masks built anew in every
layer take longer than they do. Here, projections of the same input are one product, over weights laid out as products
of few rows read them fastest, and what is the same in all layers is computed once. Each number is computed from the
same operands in the same order as by transformers (tests/generation/test_decoder_step.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import rms_norm

from mllm_tailor.generation.kv_cache import KVCache
from mllm_tailor.generation.shared_prefix_attention import SharedPrefixAttention
from mllm_tailor.models import LoadedModel

# Decoders of these layers normalise, project, rotate and attend as `_Layer` does.
KINDS = frozenset(f"{name}DecoderLayer" for name in ("Llama", "Mistral", "Qwen2", "Qwen3"))
# Weights of the layers, which are copied once. Larger decoders spend their time in the products themselves.
MOST_WEIGHTS = 30_000_000

Project = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class _Layer:
    """A decoder layer: its projections (tokens, in) -> (tokens, out), and the modules that it normalises with."""

    module: Any
    attention_inputs: Project  # queries, keys and values of all heads, one behind the other
    attention_output: Project
    gate_and_up: Project
    down: Project

    @classmethod
    def of(cls, module: Any) -> _Layer:
        attention, mlp = module.self_attn, module.mlp
        return cls(
            module,
            _project([attention.q_proj, attention.k_proj, attention.v_proj]),
            _project([attention.o_proj]),
            _project([mlp.gate_proj, mlp.up_proj]),
            _project([mlp.down_proj]),
        )

    def mlp(self, hidden: Tensor) -> Tensor:
        gate, up = self.gate_and_up(hidden).chunk(2, dim=-1)
        return self.down(self.module.mlp.act_fn(gate) * up)


class DecoderStep:
    """Logits after a block of tokens of every row, whose prompts are shared prefixes."""

    def __init__(self, decoder: Any, head: nn.Module) -> None:
        self.decoder, self.head = decoder, head
        self.layers = [_Layer.of(layer) for layer in decoder.layers]

    @classmethod
    def of(cls, model: LoadedModel) -> DecoderStep | None:
        """A step over the weights as they are now, which copies those of the layers; None for other decoders."""
        decoder = model.model.get_decoder()
        head = model.model.get_output_embeddings()
        return cls(decoder, head) if head is not None and _is_supported(decoder) else None

    def logits(self, ids: Tensor, positions: Tensor, kv: KVCache, attention: SharedPrefixAttention) -> Tensor:
        """(rows, width, vocabulary) after the blocks `ids` (rows, width), whose columns `kv.mask` has already."""
        rows, width = ids.shape
        embedded = self.decoder.embed_tokens(ids)
        cos, sin = (table[:, :, None] for table in self.decoder.rotary_emb(embedded, positions))
        visible = _visible_columns(kv.mask, width)
        hidden = embedded.view(rows * width, -1)
        for index, layer in enumerate(self.layers):
            module = layer.module.self_attn
            inputs = layer.attention_inputs(_normalise(layer.module.input_layernorm, hidden))
            inputs = inputs.view(rows, width, -1, module.head_dim)
            values = inputs.shape[2] // (module.num_key_value_groups + 2)  # heads
            queries = inputs.shape[2] - 2 * values
            rotated = _rotate(_normalised_heads(module, inputs[:, :, : queries + values], queries), cos, sin)
            key, value = kv.cache.update(
                rotated[:, :, queries:].transpose(1, 2), inputs[:, :, queries + values :].transpose(1, 2), index
            )
            query = rotated[:, :, :queries].transpose(1, 2)
            attended = attention.attend(index, query, key, value, visible, module.scaling)
            hidden = hidden + layer.attention_output(attended.view(rows * width, -1))
            hidden = hidden + layer.mlp(_normalise(layer.module.post_attention_layernorm, hidden))
        logits: Tensor = self.head(_normalise(self.decoder.norm, hidden))
        return logits.view(rows, width, -1)


def _is_supported(decoder: Any) -> bool:
    layers = list(getattr(decoder, "layers", ()))
    if not layers or any(type(layer).__name__ not in KINDS for layer in layers):
        return False
    skipped = [decoder, decoder.norm]  # modules whose `forward` is not called
    for layer in layers:
        skipped += [layer, layer.self_attn, layer.mlp, layer.input_layernorm, layer.post_attention_layernorm]
        skipped += [module for module in layer.modules() if type(module) is nn.Linear]
    weights = [weight for layer in layers for weight in layer.parameters()]
    return (
        all(weight.dtype == torch.float32 for weight in weights)
        and sum(weight.numel() for weight in weights) <= MOST_WEIGHTS
        and all(layer.self_attn.scaling == layer.self_attn.head_dim**-0.5 for layer in layers)
        and all(type(layer.mlp).__name__.endswith("MLP") for layer in layers)
        and not any(_is_changed(module) for module in skipped)
        and not torch.is_autocast_enabled("cpu")
    )


def _is_changed(module: nn.Module) -> bool:
    """Whether something is attached to the module that only its own `forward` would run."""
    own = vars(module)
    return bool(own["_forward_hooks"] or own["_forward_pre_hooks"] or "forward" in own)


def _project(linears: Sequence[nn.Module]) -> Project:
    """The outputs of linear layers one behind the other; a layer that an adapter has wrapped is called as it is."""
    plain = [linear for linear in linears if type(linear) is nn.Linear]
    if len(plain) < len(linears):
        return lambda hidden: torch.cat([linear(hidden) for linear in linears], dim=-1)
    weight = torch.cat([linear.weight.detach() for linear in plain]).t().contiguous()
    if all(linear.bias is None for linear in plain):
        return lambda hidden: hidden @ weight
    bias = torch.cat(
        [weight.new_zeros(linear.out_features) if linear.bias is None else linear.bias.detach() for linear in plain]
    )
    return lambda hidden: torch.addmm(bias, hidden, weight)


def _normalise(norm: Any, hidden: Tensor) -> Tensor:
    return rms_norm(hidden, norm.weight.shape, norm.weight, norm.variance_epsilon)


def _normalised_heads(attention: Any, heads: Tensor, queries: int) -> Tensor:
    """Queries and keys (rows, width, heads, channels), normalised where the family does so (Qwen3)."""
    if getattr(attention, "q_norm", None) is None:
        return heads
    parts = (_normalise(attention.q_norm, heads[:, :, :queries]), _normalise(attention.k_norm, heads[:, :, queries:]))
    return torch.cat(parts, dim=2)


def _rotate(heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions (Su et al. 2021, 2104.09864) of (rows, width, heads, channels)."""
    first, second = heads.chunk(2, dim=-1)
    return heads * cos + torch.cat((-second, first), dim=-1) * sin


def _visible_columns(mask: Tensor, width: int) -> Tensor | None:
    """(rows, 1, width, columns) bool: the columns a token of the last `width` attends to; None: all of them."""
    columns = mask.shape[1]
    if width == 1:
        return None if bool(mask.all()) else mask.bool()[:, None, None]
    causal = torch.ones(width, columns, dtype=torch.bool, device=mask.device).tril(columns - width)
    return mask.bool()[:, None, None] & causal
