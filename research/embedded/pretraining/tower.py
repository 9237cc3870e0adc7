"""The vision tower (transformers' own InternVL class), initialised so that it looks at its neighbours at once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn
from transformers import InternVLForConditionalGeneration, InternVLVisionConfig, InternVLVisionModel

from pretraining import checkpoint, glyph_slots

MEAN = torch.tensor([0.485, 0.456, 0.406])  # ImageNet, as InternVL's preprocessing
STD = torch.tensor([0.229, 0.224, 0.225])
FREQUENCIES = math.pi * torch.tensor([0.95, 0.78, 0.62, 0.47, 0.33, 0.20, 0.10, 0.05])  # radians a patch
OFFSETS = [(0, -1), (0, 1), (-1, 0), (1, 0), (-1, -1), (-1, 1), (1, -1), (1, 1)]  # (row, column) head h looks at


def build_tower(
    width: int = 256, layers: int = 6, heads: int = 8, ratio: int = 3, patch: int = glyph_slots.PATCH
) -> InternVLVisionModel:
    config = InternVLVisionConfig(
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=ratio * width,
        image_size=[448, 448],
        patch_size=[patch, patch],
        attention_bias=True,
        use_qk_norm=False,
        norm_type="layer_norm",
        layer_norm_eps=1e-6,
        layer_scale_init_value=1.0,
        use_mean_pooling=True,
        initializer_range=0.02,
        hidden_dropout_prob=0.0,
        attention_dropout=0.0,
    )
    config._attn_implementation = "sdpa"
    return InternVLVisionModel(config)


def normalise(grey: torch.Tensor) -> torch.Tensor:
    """Grey uint8 [tiles, 448, 448] to InternVL pixel values [tiles, 3, 448, 448]."""
    unit = grey.float().unsqueeze(1) / 255
    return (unit - MEAN.view(1, 3, 1, 1).to(unit)) / STD.view(1, 3, 1, 1).to(unit)


def _position_table(grid: int, strength: float) -> torch.Tensor:
    """Sin/cos of row and column: [grid*grid, 32] with every (cos, sin) pair of norm `strength`."""
    place = torch.arange(grid).float()
    angle = place[:, None] * FREQUENCIES  # [grid, 8]
    pair = torch.stack([angle.cos(), angle.sin()], -1).flatten(1) * strength  # [grid, 16]
    rows = pair[:, None].expand(grid, grid, -1)
    columns = pair[None].expand(grid, grid, -1)
    return torch.cat([rows, columns], -1).reshape(grid * grid, -1)


def _rotation(offset: tuple[int, int]) -> torch.Tensor:
    """32x32 map that shifts the position code by `offset`: a rotation of each (cos, sin) pair."""
    blocks = []
    for step in offset:
        for frequency in FREQUENCIES.tolist():
            turn = frequency * step
            blocks.append(torch.tensor([[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]]))
    return torch.block_diag(*blocks)


@torch.no_grad()
def initialise_local(
    tower: InternVLVisionModel,
    sample: torch.Tensor,
    strength: float = 2.0,
    sharpness: float = 1.6,
    offsets: Sequence[tuple[int, int]] = tuple(OFFSETS),
) -> None:
    """Make a fresh tower start as a small convolution: each head attends to one neighbouring patch.

    Position codes are sin/cos in the first 32 channels, and a shift of a sin/cos code is a rotation, so with
    W_q = a R_offset P and W_k = P the attention peaks at that offset. After "Mimetic Initialization of
    Self-Attention Layers" (Trockman and Kolter, 2023), whose queries and keys imitate trained ones; here they imitate
    a convolution. The patch embedding starts as a whitening of real tiles: `sample` is grey uint8 [n, 448, 448].
    """
    config = tower.config
    width, heads, codes = config.hidden_size, config.num_attention_heads, 32
    size = width // heads
    grid = config.image_size[0] // config.patch_size[0]
    embeddings = tower.embeddings
    embeddings.position_embeddings.zero_()
    embeddings.position_embeddings[0, 1:, :codes] = _position_table(grid, strength)
    embeddings.cls_token.zero_()
    _whiten(embeddings.patch_embeddings.projection, sample, codes)
    for layer in tower.encoder.layer:
        attention = layer.attention
        for linear in (attention.v_proj, attention.projection_layer, layer.mlp.fc1, layer.mlp.fc2):
            nn.init.normal_(linear.weight, std=linear.in_features**-0.5)
            nn.init.zeros_(linear.bias)
        attention.projection_layer.weight.mul_(0.5)
        layer.mlp.fc2.weight.mul_(0.3)
        for linear in (attention.projection_layer, layer.mlp.fc2):
            linear.weight[:codes] = 0  # position codes stay clean at first
        for linear in (attention.q_proj, attention.k_proj):
            nn.init.normal_(linear.weight, std=0.01)
            nn.init.zeros_(linear.bias)
        for head in range(heads):
            rows = slice(head * size, head * size + codes)
            attention.q_proj.weight[rows, :codes] += sharpness * _rotation(offsets[head % len(offsets)])
            attention.k_proj.weight[rows, :codes] += torch.eye(codes)


def _whiten(projection: nn.Conv2d, sample: torch.Tensor, codes: int) -> None:
    patch = projection.kernel_size[0]
    pixels = normalise(sample)[:, :1]
    patches = pixels.unfold(2, patch, patch).unfold(3, patch, patch).reshape(-1, patch * patch)
    mean = patches.mean(0)
    covariance = (patches - mean).T @ (patches - mean) / len(patches)
    values, vectors = torch.linalg.eigh(covariance)
    channels = projection.out_channels - codes
    kept = min(channels, patch * patch)  # a patch of more pixels than channels is seen through its main components
    whiten = torch.diag((values + 0.02 * values.mean() * 10).rsqrt())[-kept:] @ vectors.T
    mix = torch.randn(channels, kept)
    mix /= mix.norm(dim=1, keepdim=True)
    filters = mix @ whiten  # [channels, patch * patch]
    scale = ((patches - mean) @ filters.T).std()
    filters = filters / scale
    projection.weight.zero_()
    projection.weight[codes:] = (filters / 3).view(channels, 1, patch, patch)  # three equal colour channels
    projection.bias.zero_()
    projection.bias[codes:] = -(filters @ mean)


@torch.no_grad()
def start_from(tower: InternVLVisionModel, folder: Path) -> None:
    """Take the tower of a model folder; wider layers of `tower` keep what the narrow ones compute.

    New hidden units get random inputs and outputs of zero (after Net2WiderNet: Chen, Goodfellow and Shlens, 2016). A
    tower of larger patches starts by seeing an enlarged picture as the other sees it as it is, its patches being those
    of the upper left.
    """
    found = InternVLForConditionalGeneration.from_pretrained(folder).model.vision_tower.state_dict()
    for name, parameter in tower.named_parameters():
        old = found.pop(name).float()
        if name == "embeddings.position_embeddings":
            old = _upper_left(old, parameter.shape[1])
        if name == "embeddings.patch_embeddings.projection.weight":
            old = _enlarged(old, parameter.shape[-1] // old.shape[-1])
        if old.shape != parameter.shape:
            if name.endswith("fc1.weight"):
                nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5)
            else:
                parameter.zero_()
        parameter[tuple(slice(size) for size in old.shape)] = old


def _upper_left(places: torch.Tensor, count: int) -> torch.Tensor:
    """The code of the class token and of the upper left square of patches, `count` in all."""
    old, new = math.isqrt(places.shape[1] - 1), math.isqrt(count - 1)
    square = places[:, 1:].unflatten(1, (old, old))[:, :new, :new].flatten(1, 2)
    return torch.cat([places[:, :1], square], 1)


def _enlarged(filters: torch.Tensor, factor: int) -> torch.Tensor:
    """Filters [..., size, size] that see a picture enlarged by `factor` as `filters` see it as it is."""
    return filters.repeat_interleave(factor, -1).repeat_interleave(factor, -2) / factor**2


def patch_features(tower: InternVLVisionModel, pixels: torch.Tensor, windows: int = 1) -> torch.Tensor:
    """Last hidden states of the patches [tiles, 1024, width].

    With `windows` > 1 the tile is cut into that many strips of rows which attend only within themselves and without the
    class token: reading is local, and this saves most of the attention's cost early in training.
    """
    if windows == 1:
        return tower(pixel_values=pixels).last_hidden_state[:, 1:]
    hidden = tower.embeddings(pixels)[:, 1:]
    tiles, count, width = hidden.shape
    hidden = hidden.reshape(tiles * windows, count // windows, width)
    return tower.encoder(hidden).last_hidden_state.reshape(tiles, count, width)


class GlyphHead(nn.Module):
    """Names up to `slots` characters of every patch: [..., width] to logits [..., slots, classes]."""

    def __init__(self, width: int, slots: int = glyph_slots.SLOTS, classes: int = glyph_slots.CLASSES) -> None:
        super().__init__()
        self.shape = (slots, classes)
        self.norm = nn.LayerNorm(width)
        self.linear = nn.Linear(width, slots * classes)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.linear(self.norm(features)).unflatten(-1, self.shape)


def load_tower(name: str) -> tuple[InternVLVisionModel, GlyphHead]:
    """The tower and the head of a checkpoint of the vision stage."""
    vision = build_tower(**tower_sizes(name))
    head = GlyphHead(vision.config.hidden_size)
    checkpoint.load(name, {"tower": vision, "head": head})
    return vision.eval(), head.eval()


def tower_sizes(name: str, prefix: str = "tower/") -> dict[str, int]:
    """Arguments of `build_tower` for the tower stored in a checkpoint, where they differ from the defaults."""
    inner, width = checkpoint.shape(name, f"{prefix}encoder.layer.0.mlp.fc1.weight")
    return {"width": width, "ratio": inner // width}
