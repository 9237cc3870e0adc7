"""Whole transformer layers as one function of autograd each, where a network has layers of a known kind."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from mllm_tailor.models.patches import decoder_layer, vision_layer
from mllm_tailor.models.patches.fused_lora import fused_lora

KINDS: dict[str, Callable[[nn.Module], Callable[..., Tensor] | None]] = {
    vision_layer.NAME: vision_layer.fused_forward,
    **dict.fromkeys(decoder_layer.NAMES, decoder_layer.fused_forward),
}


@contextmanager
def fused_layers(network: nn.Module) -> Iterator[None]:
    """Inside the block, layers and LoRA of `network` are fused where they can be; what they compute is unchanged."""
    changed = [(module, _fused_forward(module)) for module in network.modules()]
    with fused_lora(network):
        for module, forward in changed:
            if forward is not None:
                module.forward = forward
        try:
            yield
        finally:
            for module, forward in changed:
                if forward is not None:
                    del module.forward


def _fused_forward(module: nn.Module) -> Callable[..., Tensor] | None:
    kind = KINDS.get(type(module).__name__)
    if kind is None or any("forward" in vars(inner) for inner in module.modules()):
        return None
    return kind(module)
