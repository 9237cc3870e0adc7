"""Numerical differences between the original InternVL code and the native class, corrected in a loaded model."""

from __future__ import annotations

import types
from typing import Any

from torch import Tensor

from mllm_tailor.core.handle import Handle


def install(model: Any) -> Handle:
    """Give a converted InternVL (the inner model) the original pixel shuffle and the epsilon of its query-key norms."""
    config = model.config
    shuffle = install_first_pixel_shuffle(model) if config.ps_version == "v1" else None
    norms: list[Any] = [
        norm
        for module in model.vision_tower.modules()
        for norm in (getattr(module, "q_norm", None), getattr(module, "k_norm", None))
        if hasattr(norm, "variance_epsilon")
    ]
    native = [norm.variance_epsilon for norm in norms]
    for norm in norms:
        norm.variance_epsilon = config.vision_config.layer_norm_eps  # the native class always uses 1e-6

    def undo() -> None:
        for norm, epsilon in zip(norms, native, strict=True):
            norm.variance_epsilon = epsilon
        if shuffle is not None:
            shuffle.remove()

    return Handle(undo)


def install_first_pixel_shuffle(model: Any) -> Handle:
    """Join patches as the first checkpoints (`ps_version: v1`) do: the same tokens, columns before rows."""
    second = model.pixel_shuffle

    def pixel_shuffle(_self: Any, vision_features: Tensor, scale_factor: float = 0.5) -> Tensor:
        joined: Tensor = second(vision_features, scale_factor)  # (tiles, rows, columns, width)
        return joined.transpose(1, 2).contiguous()

    model.pixel_shuffle = types.MethodType(pixel_shuffle, model)

    def undo() -> None:
        del model.pixel_shuffle

    return Handle(undo)
