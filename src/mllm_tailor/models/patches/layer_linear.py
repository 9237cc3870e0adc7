"""Linear layers inside a fused transformer layer: products with little memory, and their gradients summed over parts.

A layer may have LoRA of one adapter (Hu et al. 2021, 2106.09685): `y = W x + b + s B A x`. Where there are more rows
than channels, `W + s B A` is built first, for as long as the product takes: no further pass over the output.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from peft.tuners.lora.layer import Linear as LoraLinear
from torch import Tensor, nn

from mllm_tailor.models.patches.fused_lora import is_plain_lora

TENSORS = 4  # of an `Affine`
RECORDER = "transformers.utils.output_capturing"


class Affine(NamedTuple):
    """The parameters of a linear layer (outputs, inputs), perhaps with LoRA."""

    weight: Tensor
    bias: Tensor | None
    down: Tensor | None = None  # (rank, inputs), A
    up: Tensor | None = None  # (outputs, rank), B
    factor: float = 1.0  # of LoRA, s

    def prepare(self, rows: int, scale: Tensor | None = None) -> Affine:
        """The layer for products with `rows` rows in all, its outputs multiplied by `scale` (outputs,) if given."""
        weight, bias, down, up = self.weight, self.bias, self.down, self.up
        if down is not None and up is not None and (scale is not None or rows >= max(weight.shape)):
            weight, down, up = torch.addmm(weight, up, down, alpha=self.factor), None, None
        if scale is not None:
            weight, bias = weight * scale[:, None], None if bias is None else bias * scale
        return Affine(weight, bias, down, up, self.factor)

    def product(self, x: Tensor, out: Tensor | None = None) -> Tensor:
        """(rows, outputs) from x (rows, inputs), written to `out` if it is given."""
        weight = self.weight.t()
        y = torch.mm(x, weight, out=out) if self.bias is None else torch.addmm(self.bias, x, weight, out=out)
        return self._add_lora(x, y)

    def add_product(self, x: Tensor, total: Tensor, out: Tensor) -> Tensor:
        """`total` plus the product (rows, outputs), written to `out`."""
        if self.bias is None:
            torch.addmm(total, x, self.weight.t(), out=out)
        else:
            torch.add(total, self.bias, out=out).addmm_(x, self.weight.t())
        return self._add_lora(x, out)

    def add_to_input(self, gradient: Tensor, total: Tensor | None = None) -> Tensor:
        """(rows, inputs): the gradient of the input, added to `total` in place if it is given."""
        total = gradient @ self.weight if total is None else total.addmm_(gradient, self.weight)
        if self.down is not None and self.up is not None:
            total.addmm_(gradient @ self.up, self.down, alpha=self.factor)
        return total

    def _add_lora(self, x: Tensor, y: Tensor) -> Tensor:
        if self.down is not None and self.up is not None:
            y.addmm_(x @ self.down.t(), self.up.t(), alpha=self.factor)
        return y


def affine_layers(tensors: Sequence[Any], factors: Sequence[float]) -> list[Affine]:
    """Linear layers from TENSORS tensors and a factor each."""
    layers = []
    for number, factor in enumerate(factors):
        weight, bias, down, up = tensors[number * TENSORS : (number + 1) * TENSORS]
        layers.append(Affine(weight, bias, down, up, factor))
    return layers


class AffineGradients:
    """Gradients of a linear layer, summed over parts of its rows; only those that are needed."""

    def __init__(
        self, layer: Affine, needed: Sequence[bool], rows: int, scale: Tensor | None = None, *, to_scale: bool = False
    ) -> None:
        """`needed`: for weight, bias, A and B; `rows` in all; `to_scale`: whether the scale's gradient is needed."""
        self.layer, self.needed, self.scale, self.scale_needed = layer, needed, scale, to_scale
        self.prepared = layer.prepare(rows, scale)
        self.sums: list[Tensor | None] = [None] * TENSORS

    def add(self, gradient: Tensor, x: Tensor) -> None:
        """The rows of a part: the gradient of the output (rows, outputs), and the input (rows, inputs)."""
        layer = self.layer
        if self.needed[0] or self.scale_needed:
            self._add_product(0, gradient.t(), x)
        if layer.bias is not None and (self.needed[1] or self.scale_needed):
            self._add(1, gradient.sum(0))
        if layer.down is None or layer.up is None or not any(self.needed[2:]):
            return
        if self.scale is not None:
            gradient = gradient * self.scale
        if self.needed[2]:
            self._add_product(2, (gradient @ layer.up).mul_(layer.factor).t(), x)
        if self.needed[3]:
            self._add_product(3, gradient.t(), (x @ layer.down.t()).mul_(layer.factor))

    def _add(self, index: int, value: Tensor) -> None:
        total = self.sums[index]
        self.sums[index] = value if total is None else total.add_(value)

    def _add_product(self, index: int, left: Tensor, right: Tensor) -> None:
        total = self.sums[index]
        self.sums[index] = left @ right if total is None else total.addmm_(left, right)

    def to_scale(self) -> Tensor | None:
        """The gradient of the scale; to be asked for before `results`."""
        raw, raw_bias = self.sums[:2]
        if not self.scale_needed or raw is None:
            return None
        whole = self.layer.prepare(1 << 40)
        total = (raw * whole.weight).sum(1)
        return total if raw_bias is None or whole.bias is None else total + raw_bias * whole.bias

    def results(self) -> list[Tensor | None]:
        """Of weight, bias, A and B."""
        raw, raw_bias = self.sums[:2]
        if self.scale is not None:
            raw = None if raw is None else raw.mul_(self.scale[:, None])
            raw_bias = None if raw_bias is None else raw_bias.mul_(self.scale)
        found = [raw, raw_bias, *self.sums[2:]]
        return [value if need else None for value, need in zip(found, self.needed, strict=True)]


def parameters_of(layer: Any) -> tuple[Tensor | None, ...] | None:
    """Weight, bias, A and B of a linear layer; None where it is of another kind, or has hooks."""
    if type(layer) is nn.Linear:
        return None if _hooked(layer) else (layer.weight, layer.bias, None, None)
    if type(layer) is not LoraLinear or layer.disable_adapters or layer.merged or not is_plain_lora(layer):
        return None
    base: Any = layer.base_layer
    halves: Any = layer.lora_A[layer.active_adapters[0]], layer.lora_B[layer.active_adapters[0]]
    if _hooked(layer) or _hooked(base):
        return None
    return base.weight, base.bias, halves[0].weight, halves[1].weight


def factor_of(layer: Any) -> float:
    """The factor of LoRA's product; 1 where there is none."""
    return float(layer.scaling[layer.active_adapters[0]]) if type(layer) is LoraLinear else 1.0


def can_fuse(layer: nn.Module, x: Tensor) -> bool:
    """Whether a layer may be computed by its fused function now: in float32 on a CPU, with nothing hooked inside."""
    recomputed = layer.training and getattr(layer, "gradient_checkpointing", False)
    plain = x.device.type == "cpu" and x.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
    inner = (module for module in layer.modules() if module is not layer)
    return plain and not recomputed and not any(map(_hooked, inner))


def _hooked(module: nn.Module) -> bool:
    """Whether anything is hooked to a module, beside transformers' recorder of attention weights: SDPA has none."""
    backward = module._backward_hooks  # noqa: SLF001 - no public way asks for hooks
    hooks = [*module._forward_hooks.values(), *module._forward_pre_hooks.values(), *backward.values()]
    return any(getattr(hook, "__module__", "") != RECORDER for hook in hooks)
