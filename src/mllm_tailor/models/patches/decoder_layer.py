"""A decoder layer of the Llama kind as one function of autograd: sample by sample, little kept for the backward pass.

`x2 = x + Wo attention(rotated(Wq n, Wk n), Wv n)` with `n = RMSNorm(x)`, and `y = x2 + Wd (silu(Wg m) * (Wu m))` with
`m = RMSNorm(x2)` (Touvron et al. 2023, 2302.13971; RMSNorm: Zhang & Sennrich 2019, 1910.07467; rotation: Su et al.
2021, 2104.09864; SwiGLU: Shazeer 2020, 2002.05202). Norms and activation are computed again in the backward pass. Kept
of a sample are `x`, rotated queries and keys, values, the output of attention, `x2`, and both factors of the product.

From a position `first` on, the layer computes its output alone; of earlier ones only keys and values.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.activations import SiLUActivation

from mllm_tailor.models.patches import cpu_attention
from mllm_tailor.models.patches.layer_attention import Kind, attention, attention_backward, supports_attention
from mllm_tailor.models.patches.layer_linear import (
    TENSORS,
    AffineGradients,
    affine_layers,
    can_fuse,
    factor_of,
    parameters_of,
)

NAMES = ("Qwen2DecoderLayer", "LlamaDecoderLayer", "MistralDecoderLayer")
LINEAR = (
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
)
NORMS = 2  # tensors: the weights of both norms


@dataclass(frozen=True)
class DecoderLayer:
    """What the function needs to know beside its tensors."""

    width: int  # of a head
    epsilon: float
    attention: Kind
    factors: tuple[float, ...]  # of LoRA, one a linear layer
    keeps: bool  # whether there will be a backward pass
    first: int  # the first position whose output is needed

    def heads(self, rows: Tensor) -> Tensor:
        """(tokens, heads, width) of (tokens, channels)."""
        heads: Tensor = rows.unflatten(-1, (-1, self.width))
        return heads


class DecoderLayerFunction(torch.autograd.Function):
    """See the module."""

    @staticmethod
    def forward(ctx: Any, layer: DecoderLayer, x: Tensor, cos: Tensor, sin: Tensor, *tensors: Any) -> Tensor:
        """(samples, tokens from `first` on, channels) from (samples, tokens, channels)."""
        first, rows = layer.first, x.shape[0] * x.shape[1]
        query, key, value, last, gate, up, down = (
            side.prepare(rows) for side in affine_layers(tensors[NORMS:], layer.factors)
        )
        output = x.new_empty(len(x), x.shape[1] - first, x.shape[2])
        kept: list[Tensor] = []
        for number, sample in enumerate(x):
            tables = cos[number % len(cos)], sin[number % len(sin)]
            normed, reciprocal = _norm(sample, tensors[0], layer.epsilon)
            later = tuple(table[first:] for table in tables)
            queries = _rotate(layer.heads(query.product(normed[first:])), *later)
            keys, values = _rotate(layer.heads(key.product(normed)), *tables), layer.heads(value.product(normed))
            seen, sums = attention(queries, keys, values, layer.attention)
            del normed
            middle = last.add_product(seen.flatten(1), sample[first:], out=torch.empty_like(sample[first:]))
            normed, middle_reciprocal = _norm(middle, tensors[1], layer.epsilon)
            opened, other = gate.product(normed), up.product(normed)
            del normed
            down.add_product(nn.functional.silu(opened).mul_(other), middle, out=output[number])
            if layer.keeps:
                kept += (queries, keys, values, seen, sums, middle, opened, other, reciprocal, middle_reciprocal)
        if layer.keeps:
            ctx.layer = layer
            ctx.save_for_backward(x, cos, sin, *tensors, *kept)
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of x and of the tensors that need them."""
        layer: DecoderLayer = ctx.layer
        x, cos, sin, *others = ctx.saved_tensors
        count = NORMS + len(LINEAR) * TENSORS
        tensors, kept = others[:count], others[count:]
        parts = _Gradients(layer, tensors, ctx.needs_input_grad[4:], x.shape[0] * x.shape[1])
        to_x = torch.empty_like(x) if ctx.needs_input_grad[1] else None
        per_sample = len(kept) // len(x)
        for number, sample in enumerate(x):
            tables = cos[number % len(cos)], sin[number % len(sin)]
            saved = kept[number * per_sample : (number + 1) * per_sample]
            parts.backward(gradients[0][number], sample, tables, saved, None if to_x is None else to_x[number])
        return None, to_x, None, None, *parts.results()


class _Norm:
    """RMSNorm in the backward pass, and the gradient of its weight, summed over parts."""

    def __init__(self, weight: Tensor, *, needed: bool) -> None:
        self.weight, self.needed = weight, needed
        self.total: Tensor | None = None

    def forward(self, x: Tensor, reciprocal: Tensor) -> Tensor:
        """The output again."""
        return (x * reciprocal).mul_(self.weight)

    def backward(self, gradient: Tensor, x: Tensor, reciprocal: Tensor) -> Tensor:
        """The gradient of x (rows, channels); `gradient` is overwritten."""
        if self.needed:
            own = (gradient * x).mul_(reciprocal).sum(0)
            self.total = own if self.total is None else self.total.add_(own)
        gradient.mul_(self.weight)
        along = (gradient * x).sum(-1, keepdim=True).mul_(reciprocal**3 / -x.shape[-1])
        return gradient.mul_(reciprocal).addcmul_(x, along)


class _Gradients:
    """Gradients of all parameters of a layer."""

    def __init__(self, layer: DecoderLayer, tensors: Sequence[Any], needed: Sequence[bool], rows: int) -> None:
        self.layer = layer
        self.norms = [_Norm(tensors[number], needed=needed[number]) for number in range(NORMS)]
        self.linear = [
            AffineGradients(side, needed[NORMS + number * TENSORS :][:TENSORS], rows)
            for number, side in enumerate(affine_layers(tensors[NORMS:], layer.factors))
        ]

    def backward(
        self, gradient: Tensor, x: Tensor, tables: tuple[Tensor, Tensor], saved: Sequence[Tensor], to_x: Tensor | None
    ) -> None:
        """One sample: its gradient is written to `to_x`, those of the parameters are added."""
        queries, keys, values, seen, sums, middle, opened, other, reciprocal, middle_reciprocal = saved
        query, key, value, last = self.linear[:4]
        to_middle = self._gated(gradient, middle, opened, other, middle_reciprocal)
        last.add(to_middle, seen.flatten(1))
        to_seen = self.layer.heads(last.prepared.add_to_input(to_middle))
        sides = attention_backward(to_seen, (queries, keys, values), seen, sums, self.layer.attention)
        first = self.layer.first
        to_query = _rotate_back(sides[0], *(table[first:] for table in tables)).flatten(1)
        to_key, to_value = _rotate_back(sides[1], *tables).flatten(1), sides[2].flatten(1)
        normed = self.norms[0].forward(x, reciprocal)
        query.add(to_query, normed[first:])
        key.add(to_key, normed)
        value.add(to_value, normed)
        if to_x is None and not self.norms[0].needed:
            return
        total = value.prepared.add_to_input(to_value, key.prepared.add_to_input(to_key))
        query.prepared.add_to_input(to_query, total[first:])
        found = self.norms[0].backward(total, x, reciprocal)
        if to_x is not None:
            found[first:] += to_middle
            to_x.copy_(found)

    def _gated(self, gradient: Tensor, middle: Tensor, opened: Tensor, other: Tensor, reciprocal: Tensor) -> Tensor:
        """The gradient of `x2`."""
        gate, up, down = self.linear[4:]
        active = nn.functional.silu(opened)
        down.add(gradient, active * other)
        to_product = down.prepared.add_to_input(gradient)
        to_up = active.mul_(to_product)
        to_gate = torch.ops.aten.silu_backward(to_product.mul_(other), opened)
        del to_product
        normed = self.norms[1].forward(middle, reciprocal)
        gate.add(to_gate, normed)
        up.add(to_up, normed)
        total = up.prepared.add_to_input(to_up, gate.prepared.add_to_input(to_gate))
        return self.norms[1].backward(total, middle, reciprocal).add_(gradient)

    def results(self) -> list[Tensor | None]:
        """In the order of the tensors."""
        found = [norm.total for norm in self.norms]
        for side in self.linear:
            found += side.results()
        return found


def _norm(x: Tensor, weight: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """RMSNorm of (rows, channels), and the reciprocals of the roots (rows, 1)."""
    size = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    reciprocal = size.square_().div_(x.shape[-1]).add_(epsilon).rsqrt_()
    return (x * reciprocal).mul_(weight), reciprocal


def _rotate(heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """(tokens, heads, width), each pair of channels (i, i + width / 2) turned by its angle (tokens, width)."""
    half = heads.shape[-1] // 2
    output = heads * cos[:, None]
    output[..., :half].addcmul_(heads[..., half:], sin[:, None, :half], value=-1)
    output[..., half:].addcmul_(heads[..., :half], sin[:, None, half:])
    return output


def _rotate_back(gradient: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """The gradient of what `_rotate` was given."""
    half = gradient.shape[-1] // 2
    output = gradient * cos[:, None]
    output[..., half:].addcmul_(gradient[..., :half], sin[:, None, :half], value=-1)
    output[..., :half].addcmul_(gradient[..., half:], sin[:, None, half:])
    return output


class FusedForward:
    """A forward method for a decoder layer.

    It calls the usual one while the layer cannot be fused: in other formats than float32, with a mask or a cache, hooks
    inside, or recomputed in the backward pass.
    """

    def __init__(self, layer: nn.Module) -> None:
        self.layer: Any = layer
        self.usual = layer.forward
        named = dict(layer.named_modules())
        self.linear = [named[name] for name in LINEAR]
        functools.update_wrapper(self, self.usual)  # its signature

    def __call__(self, hidden_states: Tensor, **given: Any) -> Tensor:
        """The layer."""
        if self.can_fuse(hidden_states, given):
            return self.from_position(0, hidden_states, **given)
        unfused: Tensor = self.usual(hidden_states, **given)
        return unfused

    def can_fuse(self, hidden_states: Tensor, given: Mapping[str, Any]) -> bool:
        """Whether `from_position` computes what the usual method does."""
        plain = all(given.get(name) is None for name in ("attention_mask", "cache", "past_key_values"))
        known = all(parameters_of(side) is not None for side in self.linear)
        return plain and known and not cpu_attention.is_replaced() and can_fuse(self.layer, hidden_states)

    def from_position(self, first: int, hidden_states: Tensor, **given: Any) -> Tensor:
        """The output of positions from `first` on, which see all before them."""
        norms = self.layer.input_layernorm, self.layer.post_attention_layernorm
        settings = DecoderLayer(
            self.layer.self_attn.head_dim,
            norms[0].variance_epsilon,
            Kind(self.layer.self_attn.scaling, causal=True),
            tuple(map(factor_of, self.linear)),
            torch.is_grad_enabled(),
            first,
        )
        tensors = [tensor for side in self.linear for tensor in parameters_of(side) or ()]
        cos, sin = given["position_embeddings"]
        output: Tensor = DecoderLayerFunction.apply(  # type: ignore[no-untyped-call]
            settings, hidden_states.contiguous(), cos, sin, norms[0].weight, norms[1].weight, *tensors
        )
        return output


def fused_forward(layer: nn.Module) -> FusedForward | None:
    """A forward method for a decoder layer; None where the layer computes something else."""
    return FusedForward(layer) if _is_supported(layer) else None


def _is_supported(layer: Any) -> bool:
    """Whether the layer computes what the module's docstring states."""
    attention_, mlp, kind = layer.self_attn, layer.mlp, type(layer).__name__.removesuffix("DecoderLayer")
    return (
        (type(attention_).__name__, type(mlp).__name__) == (f"{kind}Attention", f"{kind}MLP")
        and isinstance(mlp.act_fn, nn.SiLU | SiLUActivation)
        and layer.input_layernorm.variance_epsilon == layer.post_attention_layernorm.variance_epsilon
        and getattr(attention_, "sliding_window", None) is None
        and attention_.attention_dropout == 0
        and supports_attention(attention_.config)
    )
