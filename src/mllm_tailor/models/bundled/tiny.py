"""`model: tiny`: an untrained InternVL of 1.8 million weights, for data unlike any pretraining data.

The embedded model was pretrained on print, which does not help with speech units or drawings: a smaller untrained model
learns them as well in a tenth of the time. The weights are drawn by numpy's generator, which gives the same bits on
every machine, so an adapter trained on them fits wherever the model is rebuilt.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import nn
from transformers.utils.logging import disable_progress_bar, enable_progress_bar

from mllm_tailor.core.io import atomic_folder, cache_folder
from mllm_tailor.core.manifest import seal
from mllm_tailor.models.bundled.build import build_internvl, build_processor, build_tokenizer, save

NAME = "tiny"
VERSION = 2  # of the built model; adapters of another version do not load
WIDTH, LAYERS, HEAD_WIDTH = 128, 4, 32  # of the tower and of the language model
TILE = 56  # pixels per side: 16 patches, 4 tokens
CONTEXT = 4096  # tokens
FINEST = 0.18  # cycles per pixel: cutoff of the initial filters
EVEN = 8  # every such filter responds to brightness and colour only
POSITION_SPREAD = 0.3  # patches have about 0.5, so positions are distinguishable from the first step


def tiny_folder() -> Path:
    """The folder of the tiny model, built on first use and kept in the cache (`TAILOR_CACHE`)."""
    folder = cache_folder() / f"{NAME}-{VERSION}"
    if not (folder / "config.json").exists():
        with atomic_folder(folder, replace=folder.is_dir()) as partial:
            build_tiny(partial)
            seal(partial)
    return folder


def build_tiny(folder: Path) -> None:
    """Write the model: weights, byte tokenizer, processor."""
    tokenizer = build_tokenizer()
    with torch.random.fork_rng():
        model = build_internvl(
            tokenizer,
            vision_width=WIDTH,
            vision_layers=LAYERS,
            text_width=WIDTH,
            text_layers=LAYERS,
            image_size=TILE,
            head_width=HEAD_WIDTH,
            max_length=CONTEXT,
            tie_embeddings=False,
        )
    draw_weights(model)
    disable_progress_bar()
    save(model, build_processor(tokenizer, TILE, max_tiles=1, thumbnail=False, frame_text=""), folder)
    enable_progress_bar()


@torch.no_grad()
def draw_weights(model: nn.Module) -> None:
    """Draw every matrix so that activations keep their scale from layer to layer; norms and biases stay the same.

    Layers at the end of a residual branch are divided by the root of the number of branches (Radford et al. 2019,
    section 2.3).
    """
    generator = np.random.default_rng(0)
    for name, weight in sorted(model.named_parameters()):
        if "lambda_" in name:
            weight.fill_(1.0)
        if weight.dim() < 2:
            continue
        spread = 1 / np.sqrt(weight[0].numel())  # number of inputs of a unit
        if name.endswith(("o_proj.weight", "projection_layer.weight", "down_proj.weight", "fc2.weight")):
            spread /= np.sqrt(2 * LAYERS)
        if name.endswith(("position_embeddings", "embed_tokens.weight")):
            spread = POSITION_SPREAD
        drawn = generator.standard_normal(tuple(weight.shape), np.float32)
        if name.endswith("patch_embeddings.projection.weight"):
            drawn = smooth_filters(drawn)
        weight.copy_(torch.from_numpy(drawn * np.float32(spread)))


def smooth_filters(noise: np.ndarray) -> np.ndarray:
    """Kernels (filters, colours, side, side) for strokes and edges, made from noise; the norm of each is kept.

    Patches of images are smooth and mostly brightness, so a filter of white noise responds to little else. High
    frequencies are therefore removed and the sum of each filter made zero; one in EVEN sees only brightness and colour.
    """
    side = noise.shape[-1]
    waves = np.fft.fftfreq(side)  # cycles per pixel
    kept = np.exp(-((waves[:, None] ** 2 + waves[None] ** 2) / FINEST**2))
    shades = 1 + 0.5 * noise.mean(axis=(2, 3), keepdims=True) * side  # a filter's share in each colour
    smooth = np.fft.ifft2(np.fft.fft2(noise[:, :1]) * kept).real * shades
    smooth -= smooth.mean(axis=(1, 2, 3), keepdims=True)
    smooth[::EVEN] = np.broadcast_to(shades, noise.shape)[::EVEN]
    norms = np.sqrt((smooth**2).sum(axis=(1, 2, 3), keepdims=True) / noise[0].size)
    filters: np.ndarray = (smooth / norms).astype(np.float32)
    return filters
