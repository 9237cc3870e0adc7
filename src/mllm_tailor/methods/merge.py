"""Merge adapters exactly into the weights of their base model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from mllm_tailor.core.errors import ModelError
from mllm_tailor.core.model import TunableModel
from mllm_tailor.core.optional import need
from mllm_tailor.methods.adapters import adapter_state, restore
from mllm_tailor.methods.base import InjectedAdapter
from mllm_tailor.methods.method import MethodSet

MergeWay = Literal["dequantised", "repacked"]


def merge(model: TunableModel, how: MergeWay = "dequantised") -> None:
    """Merge every adapter into the weights, in place; afterwards the model has no adapters.

    A quantised base is dequantised before the update is added, which keeps the trained function (measured relative
    error 4e-7). `repacked` then rounds every sum to 4 bits, which loses part of the update: the result is what a model
    served in 4 bits computes.

    Raises:
        ModelError: for adapters whose function no single weight matrix can express, and for `repacked` with a
            base that is not in 4 bits.
    """
    packed = [name for name, module in model.model.named_modules() if _is_packed(module)]
    if how == "repacked" and not packed:
        raise ModelError("this base is not quantised to 4 bits — leave out `repacked`")
    adapters: list[InjectedAdapter] = []
    if model.applied is not None:
        check_mergeable(model.applied.method)
        adapters = [adapter for adapter in model.applied.adapters if adapter.config is not None]
    for adapter in adapters:
        if not hasattr(adapter.tuner, "merge_and_unload"):
            kind = adapter.config.peft_type if adapter.config else ""
            raise ModelError(f"{kind} cannot be merged into the weights — use the adapter as it is")
    if model.quantize:
        adapters = _onto_dequantised(model, adapters)
    _untie_adapted_head(model.model)
    if adapters:
        _merge_and_unload(adapters)
    if how == "repacked":
        _pack_and_unpack(model.model, [name.replace(".base_layer", "") for name in packed])
    model.applied = None
    model.model.to(model.dtype)


def _is_packed(module: nn.Module) -> bool:
    """Whether this is a 4-bit layer of bitsandbytes (which need not be installed); PEFT's layer around it is not."""
    kind = type(module)
    return kind.__name__ == "Linear4bit" and kind.__module__.startswith("bitsandbytes")


@torch.no_grad()
def _pack_and_unpack(network: nn.Module, names: Sequence[str]) -> None:
    """Round layers to NF4 with double quantisation (arXiv 2305.14314), as quantised loading does."""
    functional = need("bitsandbytes", "quantize", "merging into 4 bits", ModelError).functional
    for name in names:
        weight = network.get_submodule(name.removeprefix("base_model.model.")).get_parameter("weight")
        codes, state = functional.quantize_4bit(weight.float(), quant_type="nf4", compress_statistics=True)
        weight.copy_(functional.dequantize_4bit(codes, state))


def check_mergeable(method: MethodSet) -> None:
    """Refuse methods whose function no weight matrix can express; no model is needed.

    Raises:
        ModelError: naming the method and what works instead.
    """
    for assignment in method.assignments:
        if not assignment.tuning_method.mergeable:
            raise ModelError(
                f"`method.name` {assignment.tuning_method.name} cannot be merged into the weights — use the run or its "
                "adapter as it is, or train with lora"
            )


def _merge_and_unload(adapters: list[InjectedAdapter]) -> None:
    try:
        for adapter in adapters:
            adapter.tuner._check_merge_allowed()
        with torch.no_grad():
            adapters[0].tuner.merge_and_unload(safe_merge=True)  # visits the layers of all adapters
    except (ValueError, AttributeError, NotImplementedError) as error:
        raise ModelError(f"this adapter cannot be merged ({error}) — use it as it is") from None


def _onto_dequantised(model: TunableModel, adapters: list[InjectedAdapter]) -> list[InjectedAdapter]:
    """The same adapters on dequantised weights: PEFT's layers for quantised weights would quantise the sum again."""
    saved = []
    for adapter in adapters:
        assert adapter.config is not None
        saved.append((adapter.config, {name: tensor.clone() for name, tensor in adapter_state(adapter).items()}))
    if adapters:
        adapters[0].tuner.unload()
    model.model.dequantize(dtype=torch.float32)
    model.quantize = None
    return [restore(model.model, config, state) for config, state in saved]


def _untie_adapted_head(network: Any) -> None:
    """Untie an adapted output head: its update must not reach the input embeddings that share its weight."""
    head = network.get_output_embeddings()
    if not isinstance(head, BaseTunerLayer):
        return
    embeddings = network.get_input_embeddings()
    layer: Any = head.get_base_layer()
    if layer.weight is embeddings.weight:
        layer.weight = nn.Parameter(embeddings.weight.detach().clone(), requires_grad=False)
        network.config.tie_word_embeddings = False
        network.config.get_text_config().tie_word_embeddings = False
