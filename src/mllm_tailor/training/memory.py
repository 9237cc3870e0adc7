"""How much fits: tokens of one forward pass, and whether activations are recomputed."""

from __future__ import annotations

import torch

from mllm_tailor.core.device import CPU_TOKENS, free_memory
from mllm_tailor.models import LoadedModel
from mllm_tailor.recipe import Train
from mllm_tailor.training.distributed import all_reduce_min
from mllm_tailor.training.trainable import set_train_mode

CPU_PADDING = 32  # tokens: to a processor padding costs as much as text, and a further pass as much as these
SHARE = 0.5  # of the free memory, for activations


def token_bytes(model: LoadedModel, checkpointing: bool) -> int:
    """Bytes of activations one token leaves behind for the backward pass.

    About 34 values of 2 bytes a layer and channel (Korthikanti et al. 2022, 2205.05198, equation 2, without the
    attention scores, which SDPA does not keep), or one when activations are recomputed.
    """
    text = model.model.config.get_text_config()
    kept = 2 if checkpointing else 34
    return int(text.num_hidden_layers * text.hidden_size * kept * 2)


def wants_checkpointing(model: LoadedModel, longest: int) -> bool:
    """Whether the activations of even one longest sample would take more than their share."""
    return longest * token_bytes(model, False) > SHARE * free_memory(model.device)


def prepare_memory(model: LoadedModel, settings: Train, longest: int) -> int:
    """Set training modes and the recomputing of activations; the padded tokens of one forward pass."""
    wanted = settings.gradient_checkpointing
    recompute = wants_checkpointing(model, longest) if wanted == "auto" else wanted
    if recompute:
        model.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    set_train_mode(model)
    return all_reduce_min(token_budget(model, recompute), model.device)


def most_padding(device: torch.device) -> int | None:
    """Padding tokens a sample may bring into a pass; None: any, where a further pass costs more than arithmetic."""
    return CPU_PADDING if device.type == "cpu" else None


def token_budget(model: LoadedModel, checkpointing: bool) -> int:
    """Padded tokens of one forward pass."""
    fitting = int(SHARE * free_memory(model.device) / token_bytes(model, checkpointing))
    return min(CPU_TOKENS, fitting) if model.device.type == "cpu" else fitting
