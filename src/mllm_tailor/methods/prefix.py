"""Prefix and prompt tuning in place: learned keys and values that every token of every layer can attend to.

They enter neither the text nor the KV cache nor the positions: each attention layer concatenates them with its keys
and values. Batching, cached decoding and schemas therefore work unchanged; PEFT would wrap `forward` and `generate`.
"""

from __future__ import annotations

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
START = 0.1  # standard deviation of the initial keys and values


def attend(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **named: Any
) -> tuple[Tensor, None]:
    """SDPA over the keys of the layer and its prefix, if there is one: (batch, heads, length, channels) each."""
    prefix = getattr(module, "prefix", None)
    if prefix is None or key.shape[-2] == 0:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **named)
    if prefix == "collect":
        module.prefix = (key[0], value[0])
        return sdpa_attention_forward(module, query, key, value, attention_mask, **named)
    front = [side.to(key.dtype).expand(len(key), -1, -1, -1) for side in prefix[:2]]
    if len(prefix) == 3:  # a separate softmax with a gate that starts at zero
        own, _ = sdpa_attention_forward(module, query, key, value, attention_mask, **named)
        not_causal = {**named, "is_causal": False}
        added, _ = sdpa_attention_forward(module, query, front[0], front[1], None, **not_causal)
        return own + added * prefix[2].tanh().to(added.dtype)[:, None], None
    length, cached = query.shape[-2], key.shape[-2]
    if attention_mask is None and length > 1:
        attention_mask = torch.ones(length, cached, dtype=torch.bool, device=key.device).tril(cached - length)[
            None, None
        ]
    if attention_mask is not None:
        seen = attention_mask.new_ones if attention_mask.dtype == torch.bool else attention_mask.new_zeros
        beside = seen((*attention_mask.shape[:-1], front[0].shape[-2]))
        attention_mask = torch.cat([beside, attention_mask], dim=-1)
    keys, values = torch.cat([front[0], key], dim=-2), torch.cat([front[1], value], dim=-2)
    return sdpa_attention_forward(module, query, keys, values, attention_mask, **named)


class PrefixSettings(TuningMethodSettings):
    """Learned keys and values."""

    length: int = Field(20, ge=1, le=4096, description="learned keys and values before those of each layer")
    gated: bool = Field(
        True,
        description="a separate softmax with a gate that starts at zero (2303.16199), so that training starts from the "
        "base; false: a single softmax, as first published",
    )


class Prefix(TuningMethod):
    """Learned keys and values before those of every layer (Li and Liang 2021, 2101.00190).

    Only the language part. Learning rates are higher than LoRA's: 1e-2 to 3e-2. Cannot be merged into weights.
    """

    Settings: ClassVar[type[TuningMethodSettings]] = PrefixSettings
    rate: ClassVar[float] = 2e-2
    mergeable: ClassVar[bool] = False
    only_parts: ClassVar[tuple[str, ...]] = ("language",)

    def attach(self, targets: Targets) -> InjectedAdapter:
        """Register keys and values in every attention layer."""
        names = []
        for name, module in attentions(targets).items():
            for key, start in self._weights(module).items():
                module.register_parameter(key, nn.Parameter(start))
                names.append(f"{name}.{key}")
            module.register_forward_pre_hook(_hand_over)
        _use_attention(targets)
        return InjectedAdapter(targets.model, tuple(names))

    def create_empty(self, targets: Targets) -> None:
        """Create the parameters, to be filled from a file."""
        self.attach(targets)

    def num_trainable_parameters(self, targets: Targets) -> int:
        """2 * length * key-value heads * channels per layer, and a gate per head."""
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


def _hand_over(module: Any, _: Any) -> None:
    names = ("prefix_key", "prefix_value", "prefix_gate")
    module.prefix = tuple(getattr(module, name) for name in names if hasattr(module, name))


class PromptSettings(TuningMethodSettings):
    """Learned embeddings."""

    length: int = Field(20, ge=1, le=4096, description="learned embeddings before the text")


class Prompt(TuningMethod):
    """Learned embeddings before the text (Lester et al. 2021, 2104.08691); very few weights.

    They precede the text and cannot attend to it, so their keys and values depend on them alone: these are computed
    separately, at positions below zero, and given to every layer as a prefix. They start as embeddings of random
    tokens, so the untrained output differs from that of the base. Learning rates are high: 1e-2 to 0.3. Cannot be
    merged into weights.
    """

    Settings: ClassVar[type[TuningMethodSettings]] = PromptSettings
    rate: ClassVar[float] = 0.1
    mergeable: ClassVar[bool] = False
    only_parts: ClassVar[tuple[str, ...]] = ("language",)

    def attach(self, targets: Targets) -> InjectedAdapter:
        """Register a matrix on the decoder, and a hook that computes keys and values from it."""
        name, decoder = _decoder(targets)
        network: Any = targets.model
        words: Tensor = network.get_input_embeddings().weight
        chosen = torch.randint(len(words), (self.settings.length,)).to(words.device)
        decoder.register_parameter("prompt", nn.Parameter(words.detach()[chosen].float().clone()))
        _use_attention(targets)
        decoder.register_forward_pre_hook(_PromptPrefix(list(attentions(targets).values())))
        return InjectedAdapter(targets.model, (f"{name}.prompt",))

    def create_empty(self, targets: Targets) -> None:
        """Create the matrix, to be filled from a file."""
        self.attach(targets)

    def num_trainable_parameters(self, targets: Targets) -> int:
        """length * width."""
        network: Any = targets.model
        return int(self.settings.length * network.get_input_embeddings().weight.shape[1])


class _PromptPrefix:
    """Runs the decoder over the learned embeddings before it runs over the text; only once while they do not change."""

    def __init__(self, modules: list[Any]) -> None:
        self.modules = modules
        self.running = False
        self.computed_for: tuple[int, int, bool] | None = None

    def __call__(self, decoder: nn.Module, _: Any) -> None:
        if self.running:
            return
        weight = decoder.get_parameter("prompt")
        now = (weight.data_ptr(), weight._version, torch.is_autocast_enabled(weight.device.type))
        if torch.is_grad_enabled() or self.computed_for != now:
            self._run(decoder, weight)
        self.computed_for = None if torch.is_grad_enabled() else now

    def _run(self, decoder: nn.Module, weight: Tensor) -> None:
        recomputing: list[Any] = [
            module for module in decoder.modules() if getattr(module, "gradient_checkpointing", False)
        ]
        self.running = True
        for module in self.modules:
            module.prefix = "collect"
        for module in recomputing:  # recomputing would collect the keys and values twice
            module.gradient_checkpointing = False
        try:
            length = len(weight)
            positions = torch.arange(-length, 0, device=weight.device)[None]
            dtype = next(weight.dtype for weight in self.modules[0].parameters() if weight.is_floating_point())
            decoder(inputs_embeds=weight.to(dtype)[None], position_ids=positions, use_cache=False)
        finally:
            self.running = False
            for module in recomputing:
                module.gradient_checkpointing = True


def attentions(targets: Targets) -> dict[str, nn.Module]:
    """The self-attention of every targeted layer, by name.

    Raises:
        ModelError: when the model has no attention that takes a prefix.
    """
    modules = {
        name: module
        for name, module in targets.model.named_modules()
        if targets.within(name) and name.endswith("self_attn") and hasattr(module, "config")
    }
    if not modules:
        raise ModelError("the attention of this model takes no prefix — use lora instead")
    return modules


def _decoder(targets: Targets) -> tuple[str, nn.Module]:
    """The module that holds the layers with these attentions."""
    if targets.last_layers is not None:
        raise RecipeError("`method.last_layers`: a prompt precedes all layers — leave the setting out, or use prefix")
    name = next(iter(attentions(targets))).rpartition(".layers.")[0]
    return name, targets.model.get_submodule(name)


def _use_attention(targets: Targets) -> None:
    AttentionInterface.register(ATTENTION, attend)
    AttentionMaskInterface.register(ATTENTION, sdpa_mask)
    for module in attentions(targets).values():
        config: Any = module.config
        if "sdpa" not in config._attn_implementation:  # transformers' or a variant of it
            raise ModelError(f"`method`: this needs SDPA attention, not {config._attn_implementation} — use lora")
        config._attn_implementation = ATTENTION


def _channels(module: nn.Module) -> int:
    config: Any = module.config
    return int(getattr(module, "head_dim", None) or config.hidden_size // config.num_attention_heads)
