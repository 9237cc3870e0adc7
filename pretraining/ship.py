"""Write the joined model as a folder that plain transformers opens: bf16 weights, configuration, processor."""

from __future__ import annotations

from pathlib import Path

import torch

from mllm_tailor.models.build import build_processor, save
from pretraining import assembling, checkpoint
from pretraining.assembling import SymbolEmbedding
from pretraining.join import from_checkpoint
from pretraining.language import language_parts

MOST_TILES = 3


def keep_language(name: str) -> dict:
    """Keep the language stage's checkpoint `name` beside the code, for the stages after it; returns its facts."""
    model = assembling.build_model()
    parts = language_parts(model, SymbolEmbedding(model.config.text_config.hidden_size))
    facts = checkpoint.load(name, parts)
    checkpoint.keep(checkpoint.LANGUAGE, parts)
    return facts


def ship(name: str, folder: Path) -> dict:
    """Export checkpoint `name`; the glyph head and the symbol embedding, which only training needs, stay here.

    Returns the checkpoint's facts.
    """
    parts, facts = from_checkpoint(name)
    checkpoint.keep(checkpoint.HEADS, {"head": parts["head"], "symbols": parts["symbols"]})
    processor = build_processor(assembling.TOKENIZER, max_tiles=MOST_TILES, thumbnail=False)
    folder.mkdir(parents=True, exist_ok=True)
    save(parts["model"].to(torch.bfloat16), processor, folder)
    return facts
