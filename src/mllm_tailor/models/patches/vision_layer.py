"""A layer of InternVL's vision tower as one function of autograd: tile by tile, with little kept for the backward pass.

`x2 = x + l1 (Wo attention(LN(x)) + bo)`, `y = x2 + l2 (W2 gelu(W1 LN(x2) + b1) + b2)`. Both norms and the activation
are computed again in the backward pass; what is kept of a tile is `x`, queries, keys and values, the output of
attention, `x2` and the input of the activation. The scales l1 and l2 are part of the weights they stand before
(`l (W v) = (l W) v`), so their products are added to the residual stream in place.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mllm_tailor.models.patches.layer_attention import Kind, attention, attention_backward, supports_attention
from mllm_tailor.models.patches.layer_linear import (
    TENSORS,
    AffineGradients,
    affine_layers,
    can_fuse,
    factor_of,
    parameters_of,
)

NAME = "InternVLVisionLayer"
NORMS = 6  # tensors: weight and bias of both norms, and both scales
LINEAR = (
    "attention.q_proj",
    "attention.k_proj",
    "attention.v_proj",
    "attention.projection_layer",
    "mlp.fc1",
    "mlp.fc2",
)


@dataclass(frozen=True)
class VisionLayer:
    """What the function needs to know beside its tensors."""

    heads: int
    epsilon: float
    attention: Kind
    factors: tuple[float, ...]  # of LoRA, one a linear layer
    keeps: bool  # whether there will be a backward pass

    def sides(self, joined: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values (tokens, heads, width) of (tokens, 3 * channels)."""
        query, key, value = joined.unflatten(-1, (3, self.heads, -1)).unbind(1)
        return query, key, value


class VisionLayerFunction(torch.autograd.Function):
    """See the module."""

    @staticmethod
    def forward(ctx: Any, layer: VisionLayer, x: Tensor, *tensors: Any) -> Tensor:
        """(tiles, tokens, channels) from the same; `tensors`: NORMS, then TENSORS a linear layer."""
        first_weight, first_bias, second_weight, second_bias, first_scale, second_scale = tensors[:NORMS]
        tiles, tokens, channels = x.shape
        scales = (None, None, None, first_scale, None, second_scale)
        prepared = zip(affine_layers(tensors[NORMS:], layer.factors), scales, strict=True)
        query, key, value, last, inner, outer = (side.prepare(tiles * tokens, scale) for side, scale in prepared)
        kept = tiles if layer.keeps else 1
        joined = x.new_empty(kept, tokens, 3 * channels)
        middle = torch.empty_like(x[:kept])
        opened = x.new_empty(kept, tokens, len(inner.weight))
        attended, sums, output = [], [], torch.empty_like(x)
        for tile in range(tiles):
            own = tile if layer.keeps else 0
            normed = _norm(x[tile], first_weight, first_bias, layer.epsilon)
            for number, side in enumerate((query, key, value)):
                side.product(normed, out=joined[own, :, number * channels : (number + 1) * channels])
            seen, logarithms = attention(*layer.sides(joined[own]), layer.attention)
            last.add_product(seen.flatten(1), x[tile], out=middle[own])
            normed = _norm(middle[own], second_weight, second_bias, layer.epsilon)
            inner.product(normed, out=opened[own])
            outer.add_product(nn.functional.gelu(opened[own]), middle[own], out=output[tile])
            if layer.keeps:
                attended.append(seen)
                sums.append(logarithms)
        if layer.keeps:
            ctx.layer = layer
            ctx.save_for_backward(x, joined, middle, opened, *attended, *sums, *tensors)
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of x and of the tensors that need them."""
        layer: VisionLayer = ctx.layer
        x, joined, middle, opened, *others = ctx.saved_tensors
        tiles = len(x)
        attended, sums, tensors = others[:tiles], others[tiles : 2 * tiles], tuple(others[2 * tiles :])
        parts = _Gradients(layer, tensors, ctx.needs_input_grad[2:], tiles * x.shape[1])
        query, key, value, last, inner, outer = parts.linear
        to_x = torch.empty_like(x)
        for tile in range(tiles):
            gradient = gradients[0][tile]
            outer.add(gradient, nn.functional.gelu(opened[tile]))
            to_opened = outer.prepared.add_to_input(gradient)
            torch.ops.aten.gelu_backward.grad_input(to_opened, opened[tile], grad_input=to_opened)
            normed, *statistics = parts.second_norm.forward(middle[tile])
            inner.add(to_opened, normed)
            to_normed = inner.prepared.add_to_input(to_opened)
            to_middle = parts.second_norm.backward(to_normed, middle[tile], *statistics).add_(gradient)
            del normed, to_opened, to_normed
            seen = attended[tile]
            last.add(to_middle, seen.flatten(1))
            to_seen = last.prepared.add_to_input(to_middle).view_as(seen)
            to_sides = attention_backward(to_seen, layer.sides(joined[tile]), seen, sums[tile], layer.attention)
            normed, *statistics = parts.first_norm.forward(x[tile])
            total: Tensor | None = None
            for side, to_side in zip((query, key, value), to_sides, strict=True):
                flat = to_side.flatten(1)
                side.add(flat, normed)
                total = side.prepared.add_to_input(flat, total)
            assert total is not None
            torch.add(parts.first_norm.backward(total, x[tile], *statistics), to_middle, out=to_x[tile])
        return None, to_x, *parts.results()


class _NormGradients:
    """LayerNorm, and the gradients of its weight and bias, summed over parts."""

    def __init__(self, weight: Tensor, bias: Tensor, epsilon: float, needed: Sequence[bool]) -> None:
        self.weight, self.bias, self.epsilon, self.needed = weight, bias, epsilon, list(needed)
        self.sums: list[Tensor | None] = [None, None]

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The output, means and reciprocals of the deviations."""
        output, mean, reciprocal = torch.native_layer_norm(x, self.weight.shape, self.weight, self.bias, self.epsilon)
        return output, mean, reciprocal

    def backward(self, gradient: Tensor, x: Tensor, mean: Tensor, reciprocal: Tensor) -> Tensor:
        """The gradient of x."""
        to_x, *found = torch.ops.aten.native_layer_norm_backward(
            gradient, x, self.weight.shape, mean, reciprocal, self.weight, self.bias, [True, *self.needed]
        )
        for number, value in enumerate(found):
            if self.needed[number]:
                total = self.sums[number]
                self.sums[number] = value if total is None else total.add_(value)
        result: Tensor = to_x
        return result


class _Gradients:
    """Gradients of all parameters of a layer."""

    def __init__(self, layer: VisionLayer, tensors: tuple[Any, ...], needed: Sequence[bool], rows: int) -> None:
        first_weight, first_bias, second_weight, second_bias, *scales = tensors[:NORMS]
        self.first_norm = _NormGradients(first_weight, first_bias, layer.epsilon, needed[:2])
        self.second_norm = _NormGradients(second_weight, second_bias, layer.epsilon, needed[2:4])
        scaled = {3: (scales[0], needed[4]), 5: (scales[1], needed[5])}
        self.linear = []
        for number, side in enumerate(affine_layers(tensors[NORMS:], layer.factors)):
            needs = needed[NORMS + number * TENSORS :][:TENSORS]
            scale, to_scale = scaled.get(number, (None, False))
            self.linear.append(AffineGradients(side, needs, rows, scale, to_scale=to_scale))

    def results(self) -> list[Tensor | None]:
        """In the order of the tensors."""
        scales = [self.linear[3].to_scale(), self.linear[5].to_scale()]
        found = [*self.first_norm.sums, *self.second_norm.sums, *scales]
        for side in self.linear:
            found += side.results()
        return found


def _norm(x: Tensor, weight: Tensor, bias: Tensor, epsilon: float) -> Tensor:
    return nn.functional.layer_norm(x, weight.shape, weight, bias, epsilon)


def fused_forward(layer: nn.Module) -> Callable[[Tensor], Tensor] | None:
    """A forward method for InternVL's vision layer; None where the layer computes something else.

    The method itself calls the usual one while the layer cannot be fused: in other formats than float32, with hooks
    inside, or recomputed in the backward pass.
    """
    if not _is_supported(layer):
        return None
    usual, named = layer.forward, dict(layer.named_modules())
    linear = [named[name] for name in LINEAR]
    norms: Any = (layer.layernorm_before, layer.layernorm_after)
    known: Any = layer.attention
    heads, kind = known.num_heads, Kind(known.scale, causal=False)

    def forward(hidden_states: Tensor) -> Tensor:
        found = [parameters_of(side) for side in linear]
        if not can_fuse(layer, hidden_states) or None in found:
            unfused: Tensor = usual(hidden_states)
            return unfused
        factors = tuple(map(factor_of, linear))
        keeps = torch.is_grad_enabled()
        settings = VisionLayer(heads, norms[0].eps, kind, factors, keeps)
        tensors = [tensor for side in found if side is not None for tensor in side]
        output: Tensor = VisionLayerFunction.apply(  # type: ignore[no-untyped-call]
            settings, hidden_states.contiguous(), norms[0].weight, norms[0].bias, norms[1].weight, norms[1].bias,
            layer.lambda_1, layer.lambda_2, *tensors,
        )  # fmt: skip
        return output

    return forward


def _is_supported(layer: Any) -> bool:
    """Whether the layer computes what the module's docstring states."""
    attention_, config = layer.attention, layer.attention.config
    identities = (attention_.q_norm, attention_.k_norm, attention_.projection_dropout)
    return (
        (type(attention_).__name__, type(layer.mlp).__name__) == ("InternVLVisionAttention", "InternVLVisionMLP")
        and all(type(norm) is nn.LayerNorm for norm in (layer.layernorm_before, layer.layernorm_after))
        and layer.layernorm_before.eps == layer.layernorm_after.eps
        and all(type(module) is nn.Identity for module in identities)
        and layer.dropout.p == 0
        and layer.lambda_2 is not None
        and attention_.attention_dropout == 0
        and config.hidden_act == "gelu"
        and supports_attention(config)
    )
