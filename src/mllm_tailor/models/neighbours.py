"""A fresh vision tower whose heads begin by looking at neighbouring patches, as a convolution does.

Positions are written as cosines and sines of row and column into the first channels. To shift such a code is to turn
each of its pairs, so with queries turned by an offset, and keys left as they are, attention peaks at that offset. After
"Mimetic Initialization of Self-Attention Layers" (Trockman and Kolter, 2023), whose queries and keys imitate trained
ones; here they imitate a convolution.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

FREQUENCIES = np.pi * np.array([0.95, 0.78, 0.62, 0.47, 0.33, 0.20, 0.10, 0.05])  # radians a patch
CODES = 4 * len(FREQUENCIES)  # channels: cosine and sine of each, for row and column
OFFSETS = ((0, -1), (0, 1), (-1, 0), (1, 0), (-1, -1), (-1, 1), (1, -1), (1, 1))  # (row, column)


def place_codes(grid: int, strength: float) -> Tensor:
    """The codes of a grid's patches, row by row: [grid * grid, CODES], every pair (cosine, sine) of norm `strength`."""
    angle = np.arange(grid)[:, None] * FREQUENCIES
    pairs = strength * np.stack([np.cos(angle), np.sin(angle)], -1).reshape(grid, -1)
    rows = np.repeat(pairs, grid, axis=0)
    columns = np.tile(pairs, (grid, 1))
    return torch.from_numpy(np.concatenate([rows, columns], 1).astype(np.float32))


def turned(offset: tuple[int, int]) -> Tensor:
    """The matrix [CODES, CODES] that makes the code of one place that of the place `offset` patches away."""
    found = np.zeros((CODES, CODES))
    for pair, angle in enumerate(np.concatenate([step * FREQUENCIES for step in offset])):
        cosine, sine = np.cos(angle), np.sin(angle)
        found[2 * pair : 2 * pair + 2, 2 * pair : 2 * pair + 2] = [[cosine, -sine], [sine, cosine]]
    return torch.from_numpy(found.astype(np.float32))


@torch.no_grad()
def look_at_neighbours(tower: nn.Module, strength: float, sharpness: float) -> None:
    """Write the codes, add the looks to what queries and keys are, and keep the code's channels free of all else.

    `tower` is an InternVLVisionModel whose heads are at least CODES wide.
    """
    config = tower.config
    size = config.hidden_size // config.num_attention_heads
    if size < CODES:
        raise ValueError(f"a head of {size} channels does not hold a code of {CODES}")
    embeddings = tower.embeddings
    embeddings.position_embeddings[0, 1:, :CODES] = place_codes(config.image_size[0] // config.patch_size[0], strength)
    embeddings.cls_token[..., :CODES] = 0
    filters = embeddings.patch_embeddings.projection
    filters.weight[:CODES] = 0
    filters.bias[:CODES] = 0
    number = 0
    for layer in tower.encoder.layer:
        for linear in (layer.attention.projection_layer, layer.mlp.fc2):
            linear.weight[:CODES] = 0
        for head in range(config.num_attention_heads):
            rows = slice(head * size, head * size + CODES)
            layer.attention.q_proj.weight[rows, :CODES] += sharpness * turned(OFFSETS[number % len(OFFSETS)])
            layer.attention.k_proj.weight[rows, :CODES] += torch.eye(CODES)
            number += 1
