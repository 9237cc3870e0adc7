"""Write the joined model as a folder that plain transformers opens: bf16 weights, configuration, processor."""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from mllm_tailor.models.bundled.build import build_processor, save
from torch import nn
from transformers import InternVLForConditionalGeneration

from pretraining import architecture, checkpoint, flow_join
from pretraining.architecture import SymbolEmbedding
from pretraining.language import language_parts
from pretraining.stage3_joint import from_checkpoint

MOST_TILES = 3


def keep_language(name: str) -> dict:
    """Keep the language stage's checkpoint `name` beside the code, for the stages after it; returns its facts."""
    model = architecture.build_model()
    parts = language_parts(model, SymbolEmbedding(model.config.text_config.hidden_size))
    facts = checkpoint.load(name, parts)
    checkpoint.keep(checkpoint.LANGUAGE, parts)
    return facts


@torch.no_grad()
def blend(parts: dict[str, nn.Module], folder: Path, share: float) -> None:
    """`share` of the parts' weights, and the rest of those shipped before."""
    before = {name: copy.deepcopy(parts[name]) for name in ("head", "symbols")}
    checkpoint.step(checkpoint.HEADS, before)
    before["model"] = InternVLForConditionalGeneration.from_pretrained(folder).float()
    for name, module in before.items():
        old = module.state_dict()
        for key, weight in parts[name].state_dict().items():
            weight.lerp_(old[key], 1 - share)


def ship(name: str, folder: Path, share: float = 1.0) -> dict:
    """Export checkpoint `name`; the glyph head and the symbol embedding, which only training needs, stay here.

    With a `share` under 1 the rest is what `folder` and this one hold already: weights between two ends of a training
    often read better than either (Wortsman et al. 2022, "Model soups", arXiv 2203.05482). Returns the facts.
    """
    parts, facts = from_checkpoint(name)
    if share < 1:
        blend(parts, folder, share)
    checkpoint.keep(checkpoint.HEADS, {"head": parts["head"], "symbols": parts["symbols"]})
    processor = build_processor(architecture.TOKENIZER, max_tiles=MOST_TILES, thumbnail=False)
    folder.mkdir(parents=True, exist_ok=True)
    save(parts["model"].to(torch.bfloat16), processor, folder)
    return facts


def ship_reader(name: str, folder: Path) -> dict:
    """Export checkpoint `name` of the stage `read`: a folder whose processor states that it reads reflowed pages."""
    parts = flow_join.build()
    facts = checkpoint.load(name, parts)
    processor = build_processor(architecture.TOKENIZER, max_tiles=MOST_TILES, thumbnail=False, reflow=True)
    folder.mkdir(parents=True, exist_ok=True)
    save(parts["model"].to(torch.bfloat16), processor, folder)
    return facts
