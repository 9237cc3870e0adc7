"""Memory of a training: tokens per micro-batch, and whether activations are recomputed."""

from __future__ import annotations

import torch

from mllm_tailor.core.device import CPU_TOKENS, free_memory
from mllm_tailor.models import LoadedModel
from mllm_tailor.recipe import Train
from mllm_tailor.training.distributed import all_reduce_min
from mllm_tailor.training.trainable import set_train_mode

CPU_PADDING = 32  # tokens: on a CPU padding costs as much as text, and one more micro-batch as much as this many tokens
ACTIVATION_SHARE = 0.5  # of the free memory


def token_bytes(model: LoadedModel, *, gradient_checkpointing: bool) -> int:
    """Bytes of activations that one token keeps for the backward pass.

    About 34 values of 2 bytes per layer and channel (Korthikanti et al. 2022, 2205.05198, equation 2, without the
    attention scores, which SDPA does not keep), or one when activations are recomputed.
    """
    text = model.model.config.get_text_config()
    values = 2 if gradient_checkpointing else 34
    return int(text.num_hidden_layers * text.hidden_size * values * 2)


def needs_checkpointing(model: LoadedModel, longest: int) -> bool:
    """Whether the activations of a single sample of `longest` tokens would exceed their share of memory."""
    return longest * token_bytes(model, gradient_checkpointing=False) > ACTIVATION_SHARE * free_memory(model.device)


def prepare_memory(model: LoadedModel, settings: Train, longest: int) -> int:
    """Set training modes and gradient checkpointing; returns the tokens of a micro-batch, padding included."""
    wanted = settings.gradient_checkpointing
    recompute = needs_checkpointing(model, longest) if wanted == "auto" else wanted
    if recompute:
        model.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    set_train_mode(model)
    return all_reduce_min(token_budget(model, gradient_checkpointing=recompute), model.device)


def max_padding(device: torch.device) -> int | None:
    """Padding tokens allowed per sample; None: any, where one more micro-batch costs more than its arithmetic."""
    return CPU_PADDING if device.type == "cpu" else None


def token_budget(model: LoadedModel, *, gradient_checkpointing: bool) -> int:
    """Tokens of a micro-batch, padding included."""
    per_token = token_bytes(model, gradient_checkpointing=gradient_checkpointing)
    fitting = int(ACTIVATION_SHARE * free_memory(model.device) / per_token)
    return min(CPU_TOKENS, fitting) if model.device.type == "cpu" else fitting
