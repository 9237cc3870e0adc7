"""LoRA's products summed where they arise, keeping for the backward pass only what is dear to compute again.

`y = W x + b + s B A x` as PEFT computes it writes the adapter's share, scales it and adds it, each a pass over memory
as large as the layer's output, and back again. Here the products add into one buffer (Hu et al. 2021, 2106.09685,
equation 3; the same sums, in another order), and nothing is kept but the input and `A x`. Under autocast the factors
are rounded as autocast rounds them, the input once for all layers that read it. Of a gated layer (SwiGLU: Shazeer 2020,
2002.05202) only the two factors are kept, and what enters its last product is multiplied again.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft.tuners.lora.layer import Linear
from torch import Tensor, nn
from transformers.activations import SiLUActivation

Gradients = tuple[Tensor | None, ...]


class Product(torch.autograd.Function):
    """`x W' + b + s (x A') B'` for rows x, with gradients for x, A and B."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, rows: Tensor, weight: Tensor, bias: Tensor | None, down: Tensor, up: Tensor, scale: float
    ) -> Tensor:
        """(rows, outputs) from x (rows, inputs); down (rank, inputs) is A, up (outputs, rank) B.

        `rows` is x in the format of the factors, or x itself; a gradient goes to x.
        """
        found, inner = _multiply(rows, weight, bias, down, up, scale)
        ctx.save_for_backward(rows, weight, down, up, inner)
        ctx.scale, ctx.format = scale, x.dtype
        return found

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Gradients:
        """Only what somebody asks for."""
        asked, _, _, _, down, up, _ = ctx.needs_input_grad
        to_x, to_down, to_up = _gradients(gradients[0], *ctx.saved_tensors, ctx.scale, (asked, down, up))
        return None if to_x is None else to_x.to(ctx.format), None, None, None, to_down, to_up, None


class GatedProduct(torch.autograd.Function):
    """`Product` of `silu(gate) * other`, with gradients for gate, other, A and B."""

    @staticmethod
    def forward(
        ctx: Any,
        gate: Tensor,
        other: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        down: Tensor,
        up: Tensor,
        scale: float,
    ) -> Tensor:
        """(rows, outputs) from gate and other (rows, inputs); the rest as in `Product`."""
        found, inner = _multiply(nn.functional.silu(gate) * other, weight, bias, down, up, scale)
        ctx.save_for_backward(gate, other, weight, down, up, inner)
        ctx.scale = scale
        return found

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Gradients:
        """Only what somebody asks for."""
        gate, other, *factors = ctx.saved_tensors
        gate_asked, other_asked, _, _, down, up, _ = ctx.needs_input_grad
        opened = nn.functional.silu(gate)
        asked = gate_asked or other_asked, down, up
        to_rows, to_down, to_up = _gradients(gradients[0], opened * other, *factors, ctx.scale, asked)
        to_gate = torch.ops.aten.silu_backward(to_rows * other, gate) if to_rows is not None and gate_asked else None
        to_other = to_rows * opened if to_rows is not None and other_asked else None
        return to_gate, to_other, None, None, to_down, to_up, None


def _multiply(
    rows: Tensor, weight: Tensor, bias: Tensor | None, down: Tensor, up: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """The sum, and `A x`."""
    inner = rows @ down.t()
    found = rows @ weight.t() if bias is None else torch.addmm(bias, rows, weight.t())
    return found.addmm_(inner, up.t(), alpha=scale), inner


def _gradients(
    gradient: Tensor,
    rows: Tensor,
    weight: Tensor,
    down: Tensor,
    up: Tensor,
    inner: Tensor,
    scale: float,
    asked: tuple[bool, bool, bool],
) -> Gradients:
    """Of rows, A and B, each None unless asked for."""
    to_inner = gradient @ up * scale if asked[0] or asked[1] else None
    to_rows = (gradient @ weight).addmm_(to_inner, down) if asked[0] else None
    to_down = to_inner.t() @ rows if to_inner is not None and asked[1] else None
    to_up = (gradient.t() @ inner).mul_(scale) if asked[2] else None
    return to_rows, to_down, to_up


class Rounding:
    """Tensors in the format of autocast; the last one is remembered, since several layers read the same input."""

    def __init__(self) -> None:
        self._source: weakref.ref[Tensor] | None = None
        self._version = -1
        self._found: Tensor | None = None

    def __call__(self, source: Tensor, number: torch.dtype) -> Tensor:
        """`source` itself where it has the format `number`, else a copy outside of the graph."""
        if source.dtype == number:
            return source
        if source.is_inference():  # nobody counts what is written into it
            return source.to(number)
        known = self._source is not None and self._source() is source and self._version == source._version
        if not known or self._found is None or self._found.dtype != number:
            self._source, self._version = weakref.ref(source), source._version
            self._found = source.detach().to(number)
        return self._found


@contextmanager
def fused_lora(network: nn.Module) -> Iterator[None]:
    """Within, plain LoRA layers of `network` compute in this way; others, and whatever they are asked else, as ever."""
    rounding = Rounding()
    changed = [(module, _forward_of(module, rounding)) for module in network.modules() if _is_plain(module)]
    changed += [(module, _gated_forward_of(module)) for module in network.modules() if _is_gated(module)]
    for module, forward in changed:
        module.forward = forward  # type: ignore[method-assign]
    try:
        yield
    finally:
        for module, _ in changed:
            del module.forward


def _is_plain(module: nn.Module) -> bool:
    """A LoRA of one adapter without dropout, bias, hooks or a variant, on an unquantised frozen layer."""
    if type(module) is not Linear or type(module.base_layer) is not nn.Linear or len(module.active_adapters) != 1:
        return False
    name = module.active_adapters[0]
    if name not in module.lora_A or name in module.lora_variant or module.fan_in_fan_out:
        return False
    halves = module.lora_A[name], module.lora_B[name]
    return (
        isinstance(module.lora_dropout[name], nn.Identity)
        and halves[1].bias is None
        and not any(half._forward_hooks or half._forward_pre_hooks for half in halves)
        and not module.base_layer.weight.requires_grad
    )


@torch.no_grad()
def _is_gated(module: nn.Module) -> bool:
    """Whether a layer by the usual names multiplies a gate's SiLU with another product, tried on one row."""
    parts = [getattr(module, name, None) for name in ("gate_proj", "up_proj", "down_proj")]
    act = getattr(module, "act_fn", None)
    if not isinstance(act, nn.SiLU | SiLUActivation) or not all(map(_is_plain, parts)) or parts[2]._forward_hooks:  # type: ignore[arg-type, union-attr]
        return False
    gate, other, last = parts
    weight = gate.base_layer.weight  # type: ignore[union-attr]
    row = torch.linspace(-1, 1, weight.shape[1], dtype=weight.dtype, device=weight.device)[None]
    return bool(torch.equal(module(row), last(nn.functional.silu(gate(row)) * other(row))))  # type: ignore[misc]


def _factors(layer: Linear, x: Tensor) -> tuple[Tensor | None, ...] | None:
    """Weight, bias, A and B as the arithmetic about x needs them; None: not to be had."""
    name = layer.active_adapters[0]
    found = layer.base_layer.weight, layer.base_layer.bias, layer.lora_A[name].weight, layer.lora_B[name].weight
    if torch.is_autocast_enabled(x.device.type):
        number = torch.get_autocast_dtype(x.device.type)
        return tuple(one if one is None else one.to(number) for one in found)
    return found if all(one is None or one.dtype == x.dtype for one in found) else None


def _computes_plainly(layer: Linear) -> bool:
    return not layer.disable_adapters and not layer.merged and _is_plain(layer)


def _forward_of(layer: Linear, rounding: Rounding) -> Any:
    usual = layer.forward

    def forward(x: Tensor, *others: Any, **more: Any) -> Tensor:
        factors = _factors(layer, x)
        if factors is None or others or more or not _computes_plainly(layer):
            return usual(x, *others, **more)
        rows = rounding(x, factors[0].dtype)  # type: ignore[union-attr]
        found: Tensor = Product.apply(  # type: ignore[no-untyped-call]
            x.flatten(0, -2), rows.flatten(0, -2), *factors, layer.scaling[layer.active_adapters[0]]
        )
        return found.unflatten(0, x.shape[:-1])

    return forward


def _gated_forward_of(module: nn.Module) -> Any:
    usual, last = module.forward, module.down_proj

    def forward(x: Tensor) -> Tensor:
        factors = _factors(last, x)  # type: ignore[arg-type]
        if factors is None or not _computes_plainly(last):  # type: ignore[arg-type]
            found: Tensor = usual(x)
            return found
        gate, other = module.gate_proj(x), module.up_proj(x)  # type: ignore[operator]
        found = GatedProduct.apply(  # type: ignore[no-untyped-call]
            gate.flatten(0, -2),
            other.flatten(0, -2),
            *factors,
            last.scaling[last.active_adapters[0]],  # type: ignore[union-attr, index]
        )
        return found.unflatten(0, x.shape[:-1])

    return forward
