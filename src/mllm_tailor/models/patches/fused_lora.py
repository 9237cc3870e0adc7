"""Fused LoRA: products accumulated in place, with little saved for the backward pass.

PEFT computes `y = W x + b + s B A x` by writing the update, scaling it and adding it, each a pass over memory of the
size of the output, and the same in the backward pass. Here the products accumulate in a single buffer (Hu et al. 2021,
2106.09685, equation 3; the same sums, in another order), and only the input and `A x` are saved. Under autocast the
factors are rounded as autocast rounds them, the input once for all layers that read it. Of a gated layer (SwiGLU:
Shazeer 2020, 2002.05202) only the two factors are saved, and the input of its last product is recomputed.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
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

        `rows` is x in the dtype of the factors, or x itself; the gradient goes to x.
        """
        output, inner = _multiply(rows, weight, bias, down, up, scale)
        ctx.save_for_backward(rows, weight, down, up, inner)
        ctx.scale, ctx.format = scale, x.dtype
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Gradients:
        """Only the gradients that are needed."""
        needed, _, _, _, down, up, _ = ctx.needs_input_grad
        to_x, to_down, to_up = _gradients(gradients[0], ctx.saved_tensors, ctx.scale, (needed, down, up))
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
        output, inner = _multiply(nn.functional.silu(gate) * other, weight, bias, down, up, scale)
        ctx.save_for_backward(gate, other, weight, down, up, inner)
        ctx.scale = scale
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Gradients:
        """Only the gradients that are needed."""
        gate, other, *factors = ctx.saved_tensors
        gate_needed, other_needed, _, _, down, up, _ = ctx.needs_input_grad
        opened = nn.functional.silu(gate)
        needed = gate_needed or other_needed, down, up
        to_rows, to_down, to_up = _gradients(gradients[0], (opened * other, *factors), ctx.scale, needed)
        to_gate = torch.ops.aten.silu_backward(to_rows * other, gate) if to_rows is not None and gate_needed else None
        to_other = to_rows * opened if to_rows is not None and other_needed else None
        return to_gate, to_other, None, None, to_down, to_up, None


def _multiply(
    rows: Tensor, weight: Tensor, bias: Tensor | None, down: Tensor, up: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """The sum, and `A x`."""
    inner = rows @ down.t()
    output = rows @ weight.t() if bias is None else torch.addmm(bias, rows, weight.t())
    return output.addmm_(inner, up.t(), alpha=scale), inner


def _gradients(gradient: Tensor, saved: Sequence[Tensor], scale: float, needed: tuple[bool, bool, bool]) -> Gradients:
    """Of rows, A and B, each None unless needed; `saved` is rows, weight, A, B and `A x`."""
    rows, weight, down, up, inner = saved
    to_inner = gradient @ up * scale if needed[0] or needed[1] else None
    to_rows = (gradient @ weight).addmm_(to_inner, down) if to_inner is not None and needed[0] else None
    to_down = to_inner.t() @ rows if to_inner is not None and needed[1] else None
    to_up = (gradient.t() @ inner).mul_(scale) if needed[2] else None
    return to_rows, to_down, to_up


class Rounding:
    """Casts tensors to the dtype of autocast; the last result is kept, since several layers read the same input."""

    def __init__(self) -> None:
        self._source: weakref.ref[Tensor] | None = None
        self._version = -1
        self._result: Tensor | None = None

    def __call__(self, source: Tensor, dtype: torch.dtype) -> Tensor:
        """`source` itself if it has this dtype, else a copy outside of the graph."""
        if source.dtype == dtype:
            return source
        if source.is_inference():  # has no version counter
            return source.to(dtype)
        known = self._source is not None and self._source() is source and self._version == source._version
        if not known or self._result is None or self._result.dtype != dtype:
            self._source, self._version = weakref.ref(source), source._version
            self._result = source.detach().to(dtype)
        return self._result


@contextmanager
def fused_lora(network: nn.Module) -> Iterator[None]:
    """Inside the block, plain LoRA layers of `network` use the fused products; all other computations are unchanged."""
    rounding = Rounding()
    changed = [(module, _forward_of(module, rounding)) for module in network.modules() if is_plain_lora(module)]
    changed += [(module, _gated_forward_of(module)) for module in network.modules() if _is_gated(module)]
    for module, forward in changed:
        module.forward = forward
    try:
        yield
    finally:
        for module, _ in changed:
            del module.forward


def is_plain_lora(module: nn.Module) -> bool:
    """Whether this is LoRA of a single adapter, without dropout, bias, hooks or variant, on a frozen float layer."""
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
    """Whether an MLP with the usual names multiplies the SiLU of a gate with another product, tested on a row."""
    parts: list[Any] = [getattr(module, name, None) for name in ("gate_proj", "up_proj", "down_proj")]
    act = getattr(module, "act_fn", None)
    if not isinstance(act, nn.SiLU | SiLUActivation) or not all(map(is_plain_lora, parts)) or parts[2]._forward_hooks:
        return False
    gate, other, last = parts
    weight = gate.base_layer.weight
    row = torch.linspace(-1, 1, weight.shape[1], dtype=weight.dtype, device=weight.device)[None]
    return bool(torch.equal(module(row), last(nn.functional.silu(gate(row)) * other(row))))


def _factors(layer: Any, x: Tensor) -> tuple[Any, ...] | None:
    """Weight, bias, A and B in the dtype of the computation on x; None if their dtypes differ."""
    name = layer.active_adapters[0]
    factors = layer.base_layer.weight, layer.base_layer.bias, layer.lora_A[name].weight, layer.lora_B[name].weight
    if torch.is_autocast_enabled(x.device.type):
        dtype = torch.get_autocast_dtype(x.device.type)
        return tuple(factor if factor is None else factor.to(dtype) for factor in factors)
    return factors if all(factor is None or factor.dtype == x.dtype for factor in factors) else None


def _computes_plainly(layer: Any) -> bool:
    return not layer.disable_adapters and not layer.merged and is_plain_lora(layer)


def _forward_of(layer: Any, rounding: Rounding) -> Any:
    usual = layer.forward

    def forward(x: Tensor, *others: Any, **more: Any) -> Tensor:
        factors = _factors(layer, x)
        if factors is None or others or more or not _computes_plainly(layer):
            unfused: Tensor = usual(x, *others, **more)
            return unfused
        rows = rounding(x, factors[0].dtype)
        output: Tensor = Product.apply(  # type: ignore[no-untyped-call]
            x.flatten(0, -2), rows.flatten(0, -2), *factors, layer.scaling[layer.active_adapters[0]]
        )
        shaped: Tensor = output.unflatten(0, x.shape[:-1])
        return shaped

    return forward


def _gated_forward_of(module: Any) -> Any:
    usual, last = module.forward, module.down_proj

    def forward(x: Tensor) -> Tensor:
        factors = _factors(last, x)
        if factors is None or not _computes_plainly(last):
            unfused: Tensor = usual(x)
            return unfused
        gate, other = module.gate_proj(x), module.up_proj(x)
        output: Tensor = GatedProduct.apply(  # type: ignore[no-untyped-call]
            gate.flatten(0, -2),
            other.flatten(0, -2),
            *factors,
            last.scaling[last.active_adapters[0]],
        )
        shaped: Tensor = output.unflatten(0, x.shape[:-1])
        return shaped

    return forward
