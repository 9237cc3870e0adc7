"""What there is to know about a model family that its files do not say. A family is a few lines of data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import nn


@dataclass(frozen=True)
class Family:
    """A kind of model: where its parts lie, and what it takes.

    `parts` maps a part (vision, projector, language, audio, head) to the prefixes of its module names.
    """

    name: str
    parts: Mapping[str, tuple[str, ...]]
    media: tuple[str, ...] = ("image",)
    linear_names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # filled in from the opened model


FAMILIES: dict[str, Family] = {
    "internvl": Family(
        "internvl",
        {
            "vision": ("model.vision_tower",),
            "projector": ("model.multi_modal_projector",),
            "language": ("model.language_model",),
            "head": ("lm_head",),
        },
    ),
}


def linear_names(model: nn.Module, parts: Mapping[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
    """For each part the last names of its linear layers (`q_proj`, `fc1`, ...), which is what adapters aim at."""
    found: dict[str, dict[str, None]] = {part: {} for part in parts}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            for part, prefixes in parts.items():
                if any(name == prefix or name.startswith(prefix + ".") for prefix in prefixes):
                    found[part][name.rpartition(".")[2]] = None
    return {part: tuple(names) for part, names in found.items()}
