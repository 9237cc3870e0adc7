"""Prefix and prompt tuning in place: learned keys and values that every token of every layer may look at.

Neither enters the text, the cache or the positions: the attention of each layer is handed them beside its own keys and
values. So batches, cached decoding and schemas work as ever, where PEFT's wrapper would own `forward` and `generate`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from mllm_tailor.core.errors import ModelError, RecipeError
from mllm_tailor.methods.base import InjectedAdapter, TuningMethod, TuningMethodSettings
from mllm_tailor.methods.target_modules import Targets

ATTENTION = "sdpa_prefix"
START = 0.1  # spread of keys and values at the start


def attend(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **named: Any
) -> tuple[Tensor, None]:
    """SDPA over the layer's own keys and, if it has any, those in front: (batch, heads, length, channels) each."""
    found = getattr(module, "in_front", None)
    if found is None or key.shape[-2] == 0:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **named)
    if found == "collect":
        module.in_front = (key[0], value[0])
        return sdpa_attention_forward(module, query, key, value, attention_mask, **named)
    front = [side.to(key.dtype).expand(len(key), -1, -1, -1) for side in found[:2]]
    if len(found) == 3:  # a softmax of its own, behind a gate that starts at zero
        own, _ = sdpa_attention_forward(module, query, key, value, attention_mask, **named)
        free = {**named, "is_causal": False}
        added, _ = sdpa_attention_forward(module, query, front[0], front[1], None, **free)
        return own + added * found[2].tanh().to(added.dtype)[:, None], None
    length, held = query.shape[-2], key.shape[-2]
    if attention_mask is None and length > 1:
        attention_mask = torch.ones(length, held, dtype=torch.bool, device=key.device).tril(held - length)[None, None]
    if attention_mask is not None:
        seen = attention_mask.new_ones if attention_mask.dtype == torch.bool else attention_mask.new_zeros
        beside = seen((*attention_mask.shape[:-1], front[0].shape[-2]))
        attention_mask = torch.cat([beside, attention_mask], dim=-1)
    keys, values = torch.cat([front[0], key], dim=-2), torch.cat([front[1], value], dim=-2)
    return sdpa_attention_forward(module, query, keys, values, attention_mask, **named)


class PrefixSettings(TuningMethodSettings):
    """Learned keys and values."""

    length: int = Field(20, ge=1, le=4096, description="learned keys and values in front of each layer")
    gated: bool = Field(
        True,
        description="a softmax of their own behind a gate that starts at zero (2303.16199), so that training starts "
        "from the base; false: one softmax, as first published",
    )


class Prefix(TuningMethod):
    """Every layer's own keys and values with learned ones in front (Li and Liang 2021, 2101.00190).

    Only the language part. Learning rates are higher than LoRA's: 1e-2 to 3e-2. Cannot be merged into weights.
    """

    Settings: ClassVar[type[TuningMethodSettings]] = PrefixSettings
    rate: ClassVar[float] = 2e-2
    mergeable: ClassVar[bool] = False
    only_parts: ClassVar[tuple[str, ...]] = ("language",)

    def attach(self, targets: Targets) -> InjectedAdapter:
        """Give every attention its keys and values."""
        names = []
        for name, module in attentions(targets).items():
            for key, start in self._weights(module).items():
                module.register_parameter(key, nn.Parameter(start))
                names.append(f"{name}.{key}")
            module.register_forward_pre_hook(_hand_over)
        _use_attention(targets)
        return InjectedAdapter(targets.model, tuple(names))

    def create_empty(self, targets: Targets) -> None:
        """The places of the weights, to be filled from a file."""
        self.attach(targets)

    def num_trainable_parameters(self, targets: Targets) -> int:
        """2 * length * key-value heads * channels a layer, and a gate a head."""
        return sum(
            sum(weight.numel() for weight in self._weights(module).values()) for module in attentions(targets).values()
        )

    def _weights(self, module: nn.Module) -> dict[str, Tensor]:
        config: Any = module.config
        heads, channels = config.num_key_value_heads, _channels(module)
        device = next(module.parameters()).device
        sides = ("prefix_key", "prefix_value")
        start = {side: START * torch.randn(heads, self.settings.length, channels, device=device) for side in sides}
        gate = {"prefix_gate": torch.zeros(config.num_attention_heads, device=device)} if self.settings.gated else {}
        return start | gate


def _hand_over(module: nn.Module, _: Any) -> None:
    names = ("prefix_key", "prefix_value", "prefix_gate")
    module.in_front = tuple(getattr(module, name) for name in names if hasattr(module, name))


class PromptSettings(TuningMethodSettings):
    """Learned embeddings."""

    length: int = Field(20, ge=1, le=4096, description="learned embeddings in front of the text")


class Prompt(TuningMethod):
    """Learned embeddings in front of the text (Lester et al. 2021, 2104.08691); very few weights.

    They stand before the text and cannot see it, so their keys and values depend on them alone: these are computed
    apart, at the positions before zero, and put in front of every layer. They start as embeddings of random words, so
    the untrained output differs from the base's. Learning rates are high: 1e-2 to 0.3. Cannot be merged into weights.
    """

    Settings: ClassVar[type[TuningMethodSettings]] = PromptSettings
    rate: ClassVar[float] = 0.1
    mergeable: ClassVar[bool] = False
    only_parts: ClassVar[tuple[str, ...]] = ("language",)

    def attach(self, targets: Targets) -> InjectedAdapter:
        """One matrix on the decoder, and a hook that turns it into keys and values."""
        name, decoder = _decoder(targets)
        words: Tensor = targets.model.get_input_embeddings().weight  # type: ignore[operator, union-attr, assignment]
        chosen = torch.randint(len(words), (self.settings.length,)).to(words.device)
        decoder.register_parameter("prompt", nn.Parameter(words.detach()[chosen].float().clone()))
        _use_attention(targets)
        decoder.register_forward_pre_hook(_Reader(list(attentions(targets).values())))
        return InjectedAdapter(targets.model, (f"{name}.prompt",))

    def create_empty(self, targets: Targets) -> None:
        """The place of the matrix, to be filled from a file."""
        self.attach(targets)

    def num_trainable_parameters(self, targets: Targets) -> int:
        """length * width."""
        return int(self.settings.length * targets.model.get_input_embeddings().weight.shape[1])  # type: ignore[operator, union-attr]


class _Reader:
    """Runs the decoder over the learned embeddings before it runs over the text; once, where they stay the same."""

    def __init__(self, modules: list[nn.Module]) -> None:
        self.modules, self.busy, self.read = modules, False, None

    def __call__(self, decoder: nn.Module, _: Any) -> None:
        if self.busy:
            return
        weight = decoder.get_parameter("prompt")
        now = (weight.data_ptr(), weight._version, torch.is_autocast_enabled(weight.device.type))
        if torch.is_grad_enabled() or self.read != now:
            self._run(decoder, weight)
        self.read = None if torch.is_grad_enabled() else now

    def _run(self, decoder: nn.Module, weight: Tensor) -> None:
        recomputing = [module for module in decoder.modules() if getattr(module, "gradient_checkpointing", False)]
        self.busy = True
        for module in self.modules:
            module.in_front = "collect"
        for module in recomputing:  # what leaves a layer sideways must not be computed twice
            module.gradient_checkpointing = False
        try:
            length = len(weight)
            positions = torch.arange(-length, 0, device=weight.device)[None]
            number = next(part.dtype for part in self.modules[0].parameters() if part.is_floating_point())
            decoder(inputs_embeds=weight.to(number)[None], position_ids=positions, use_cache=False)
        finally:
            self.busy = False
            for module in recomputing:
                module.gradient_checkpointing = True


def attentions(targets: Targets) -> dict[str, nn.Module]:
    """The self-attention of every layer aimed at, by name.

    Raises:
        ModelError: when the model has none that keys can be put in front of.
    """
    found = {
        name: module
        for name, module in targets.model.named_modules()
        if targets.within(name) and name.endswith("self_attn") and hasattr(module, "config")
    }
    if not found:
        raise ModelError("this model's attention takes no keys in front of its own — use lora instead")
    return found


def _decoder(targets: Targets) -> tuple[str, nn.Module]:
    """The stack of layers the attentions lie in."""
    if targets.last_layers is not None:
        raise RecipeError("`method.last_layers`: a prompt stands in front of all layers — leave it out, or use prefix")
    name = next(iter(attentions(targets))).rpartition(".layers.")[0]
    return name, targets.model.get_submodule(name)


def _use_attention(targets: Targets) -> None:
    AttentionInterface.register(ATTENTION, attend)
    AttentionMaskInterface.register(ATTENTION, sdpa_mask)
    for module in attentions(targets).values():
        config: Any = module.config
        if "sdpa" not in config._attn_implementation:  # transformers' or a variant of it
            raise ModelError(f"`method`: this needs SDPA attention, found {config._attn_implementation} — use lora")
        config._attn_implementation = ATTENTION


def _channels(module: nn.Module) -> int:
    config: Mapping[str, Any] | Any = module.config
    return int(getattr(module, "head_dim", None) or config.hidden_size // config.num_attention_heads)
