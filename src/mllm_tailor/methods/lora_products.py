"""LoRA's products summed where they arise.

`y = W x + b + s B A x` as PEFT computes it writes the adapter's share, scales it and adds it, each a pass over memory
as large as the layer's output, and back again. Here the products add into one buffer (Hu et al. 2021, 2106.09685,
equation 3; the same sums, in another order), and for the backward pass nothing is kept but the input and `A x`. Under
autocast the factors are rounded as autocast rounds them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft.tuners.lora.layer import Linear
from torch import Tensor, nn


class Product(torch.autograd.Function):
    """`x W' + b + s (x A') B'` for rows x, with gradients for x, A and B."""

    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, weight: Tensor, bias: Tensor | None, down: Tensor, up: Tensor, scale: float
    ) -> Tensor:
        """(rows, outputs) from rows (rows, inputs); down (rank, inputs) is A, up (outputs, rank) B."""
        inner = rows @ down.t()
        found = rows @ weight.t() if bias is None else torch.addmm(bias, rows, weight.t())
        ctx.save_for_backward(rows, weight, down, up, inner)
        ctx.scale = scale
        return found.addmm_(inner, up.t(), alpha=scale)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Only what somebody asks for."""
        rows, weight, down, up, inner = ctx.saved_tensors
        gradient = gradients[0]
        asked, _, _, down_asked, up_asked, _ = ctx.needs_input_grad
        to_inner = gradient @ up * ctx.scale if asked or down_asked else None
        to_rows = (gradient @ weight).addmm_(to_inner, down) if asked else None
        to_down = to_inner.t() @ rows if down_asked else None
        to_up = (gradient.t() @ inner).mul_(ctx.scale) if up_asked else None
        return to_rows, None, None, to_down, to_up, None


@contextmanager
def summed_products(network: nn.Module) -> Iterator[None]:
    """Within, plain LoRA layers of `network` compute in this way; others, and whatever they are asked else, as ever."""
    layers = [module for module in network.modules() if _is_plain(module)]
    for layer in layers:
        layer.forward = _forward_of(layer)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


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


def _forward_of(layer: Linear) -> Any:
    usual, base = layer.forward, layer.base_layer

    def forward(x: Tensor, *others: Any, **more: Any) -> Tensor:
        name = layer.active_adapters[0]
        factors = x.flatten(0, -2), base.weight, base.bias, layer.lora_A[name].weight, layer.lora_B[name].weight
        if layer.disable_adapters or layer.merged or others or more or not _is_plain(layer):
            return usual(x, *others, **more)
        if torch.is_autocast_enabled(x.device.type):
            number = torch.get_autocast_dtype(x.device.type)
            factors = tuple(one if one is None else one.to(number) for one in factors)
        elif any(one is not None and one.dtype != x.dtype for one in factors):
            return usual(x)
        found: Tensor = Product.apply(*factors, layer.scaling[name])  # type: ignore[no-untyped-call]
        return found.unflatten(0, x.shape[:-1])

    return forward
