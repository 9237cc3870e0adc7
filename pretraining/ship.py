"""Write the joined model as a folder that plain transformers opens: bf16 weights, configuration, processor."""

from __future__ import annotations

from pathlib import Path

import torch

from mllm_tailor.models.build import build_processor, save
from pretraining import assembling, checkpoint
from pretraining.join import PARTS, assemble_from_stages

MOST_TILES = 3


def ship(name: str, folder: Path) -> dict:
    """Export checkpoint `name`; the glyph head and the symbol embedding stay behind. Returns the checkpoint's facts."""
    parts = assemble_from_stages("", "", torch.device("cpu"), {})
    facts = checkpoint.load(name, parts)
    processor = build_processor(assembling.TOKENIZER, max_tiles=MOST_TILES, thumbnail=False)
    folder.mkdir(parents=True, exist_ok=True)
    save(parts[PARTS[0]].to(torch.bfloat16), processor, folder)
    return facts
