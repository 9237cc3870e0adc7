"""Save a loaded model as an ordinary checkpoint folder."""

from __future__ import annotations

from pathlib import Path

from transformers import PreTrainedModel

from mllm_tailor.core.errors import ModelError
from mllm_tailor.models.chat_template import state_system
from mllm_tailor.models.inputs.internvl_processor import state_tiles
from mllm_tailor.models.inputs.speech_units import FILE
from mllm_tailor.models.model import LoadedModel


def save_model(model: LoadedModel, folder: Path) -> None:
    """Write weights, tokenizer, processor and chat template, with the current tiles and system text.

    Raises:
        ModelError: while the model has an adapter or quantised weights, which plain folders cannot hold.
    """
    adapters = getattr(model.model, "peft_config", None)  # PEFT sets it with its adapters and removes it with them
    if not isinstance(model.model, PreTrainedModel) or adapters or model.quantize:
        raise ModelError("this model still has an adapter or quantised weights — merge it first (`tailor merge`)")
    if model.family.tiled:
        model.processor.keep(model.tiles, model.system, reflow=model.reflow)
        state_tiles(model.model.config, model.tiles)
    if model.system:
        state_system(model.processor, model.system)
    # An InternVL is saved under the native names of its weights: llama.cpp finds no vision tower under the older ones.
    model.model.save_pretrained(folder, save_original_format=not model.family.tiled)
    model.processor.save_pretrained(folder)
    if model.codebook is not None:
        model.codebook.save(folder / FILE)
