"""How samples are turned into the inputs of a loaded model."""

from __future__ import annotations

from dataclasses import dataclass

from mllm_tailor.recipe.schema import ModelSpec, Tiles, Units


@dataclass(frozen=True)
class InputSettings:
    """Settings that replace those of the checkpoint; None keeps them."""

    tiles: Tiles | None = None
    tile_size: int | None = None  # pixels along a tile's side; position embeddings are interpolated
    frames: int = 8  # per video
    trim: bool = False  # crop blank margins of images and videos before tiling
    system: str | None = None  # system text of samples that have none
    units: Units | None = None  # recordings as speech-unit tokens
    reflow: bool | None = None  # set the printed lines of images one after the other

    @classmethod
    def of(cls, spec: ModelSpec) -> InputSettings:
        """The settings of a recipe's `model`."""
        return cls(spec.tiles, spec.tile_size, spec.frames, spec.trim, spec.system, spec.units, spec.reflow)
