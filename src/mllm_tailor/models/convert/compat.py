"""What the original computes otherwise than the native class, set right in an opened model."""

from __future__ import annotations

import types
from typing import Any

from torch import Tensor


def match_original_numerics(model: Any) -> None:
    """Set a converted InternVL (the inner model) right: pixel shuffle, and epsilon of query and key norms."""
    config = model.config
    if config.ps_version == "v1":
        use_first_pixel_shuffle(model)
    for module in model.vision_tower.modules():
        for norm in (getattr(module, "q_norm", None), getattr(module, "k_norm", None)):
            if hasattr(norm, "variance_epsilon"):
                norm.variance_epsilon = config.vision_config.layer_norm_eps  # the native class always takes 1e-6


def use_first_pixel_shuffle(model: Any) -> None:
    """Join patches as the first checkpoints were trained to: the same tokens, columns before rows."""
    second = model.pixel_shuffle

    def pixel_shuffle(self: Any, vision_features: Tensor, scale_factor: float = 0.5) -> Tensor:
        joined: Tensor = second(vision_features, scale_factor)  # (tiles, rows, columns, width)
        return joined.transpose(1, 2).contiguous()

    model.pixel_shuffle = types.MethodType(pixel_shuffle, model)
