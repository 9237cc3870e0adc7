"""`model: tiny`: an untrained InternVL of 1.8 million weights, for data unlike anything a model at hand has seen.

Print, as the embedded model learned it, is no start for spoken units or drawn hands: a smaller model that begins from
nothing learns them as well and in a tenth of the time. The weights are drawn by numpy's generator, which gives the same
bits everywhere, so an adapter trained on them fits again wherever the model is built anew.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import nn
from transformers.utils.logging import disable_progress_bar, enable_progress_bar

from mllm_tailor.core.io import atomic_folder, cache_folder
from mllm_tailor.models.bundled.build import build_internvl, build_processor, build_tokenizer, save

NAME = "tiny"
VERSION = 2  # of what is built; another one never meets the adapters of this one
WIDTH, LAYERS, HEAD_WIDTH = 128, 4, 32  # of the tower and of the language model alike
TILE = 56  # pixels a side: 16 patches, 4 tokens
CONTEXT = 4096  # tokens
FINEST = 0.18  # cycles a pixel beyond which a fresh filter sees little
EVEN = 8
POSITION_SPREAD = 0.3  # beside patches of about 0.5, so that places can be told apart from the first step


def tiny_folder() -> Path:
    """The folder of the tiny model, built at first use and kept in the cache (`TAILOR_CACHE`)."""
    folder = cache_folder() / f"{NAME}-{VERSION}"
    if not (folder / "config.json").exists():
        with atomic_folder(folder, replace=folder.is_dir()) as partial:
            build_tiny(partial)
    return folder


def build_tiny(folder: Path) -> None:
    """Write the model: weights, tokenizer of bytes, processor."""
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
    """Every matrix anew, so that signals keep their size from layer to layer; norms and biases stay as they are.

    Layers that end a branch begin smaller, by the root of the number of branches (Radford et al. 2019, section 2.3).
    """
    generator = np.random.default_rng(0)
    for name, weight in sorted(model.named_parameters()):
        if "lambda_" in name:
            weight.fill_(1.0)
        if weight.dim() < 2:
            continue
        spread = 1 / np.sqrt(weight[0].numel())  # of what a unit adds up
        if name.endswith(("o_proj.weight", "projection_layer.weight", "down_proj.weight", "fc2.weight")):
            spread /= np.sqrt(2 * LAYERS)
        if name.endswith(("position_embeddings", "embed_tokens.weight")):
            spread = POSITION_SPREAD
        drawn = generator.standard_normal(tuple(weight.shape), np.float32)
        if name.endswith("patch_embeddings.projection.weight"):
            drawn = smooth_filters(drawn)
        weight.copy_(torch.from_numpy(drawn * np.float32(spread)))


def smooth_filters(noise: np.ndarray) -> np.ndarray:
    """Kernels (filters, colours, side, side) that see strokes and edges, made from noise; each has its norm at first.

    Patches of a picture are smooth, and most of what they hold is brightness: a filter of plain noise answers to little
    else. So fine grain is taken out and a filter's sum made zero; one in EVEN sees brightness and colour alone.
    """
    side = noise.shape[-1]
    waves = np.fft.fftfreq(side)  # cycles a pixel
    kept = np.exp(-((waves[:, None] ** 2 + waves[None] ** 2) / FINEST**2))
    shades = 1 + 0.5 * noise.mean(axis=(2, 3), keepdims=True) * side  # a filter's share in each colour
    smooth = np.fft.ifft2(np.fft.fft2(noise[:, :1]) * kept).real * shades
    smooth -= smooth.mean(axis=(1, 2, 3), keepdims=True)
    smooth[::EVEN] = np.broadcast_to(shades, noise.shape)[::EVEN]
    norms = np.sqrt((smooth**2).sum(axis=(1, 2, 3), keepdims=True) / noise[0].size)
    return (smooth / norms).astype(np.float32)
