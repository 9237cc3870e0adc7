"""Version 1 of the pixel shuffle, which the first InternVL checkpoints were trained with."""

from __future__ import annotations

import types
from typing import Any

from torch import Tensor


def use_first_pixel_shuffle(model: Any) -> None:
    """Make a native InternVL join patches as version 1 did: the same tokens, columns before rows."""
    second = model.pixel_shuffle

    def pixel_shuffle(self: Any, vision_features: Tensor, scale_factor: float = 0.5) -> Tensor:
        joined: Tensor = second(vision_features, scale_factor)  # (tiles, rows, columns, width)
        return joined.transpose(1, 2).contiguous()

    model.pixel_shuffle = types.MethodType(pixel_shuffle, model)
