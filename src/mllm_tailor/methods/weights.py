"""Train the model's own weights: whole parts, the top layers, the norms, or nothing."""

from __future__ import annotations

from typing import ClassVar

from torch import nn

from mllm_tailor.core.errors import ModelError
from mllm_tailor.methods.base import Attached, Technique
from mllm_tailor.methods.targets import Targets


class Full(Technique):
    """Every weight of the chosen parts (and layers). Trained weights are float32; 16 bytes each with AdamW."""

    default_parts: ClassVar[tuple[str, ...]] = ("vision", "projector", "language", "head")

    def chosen(self, targets: Targets) -> dict[str, nn.Parameter]:
        """Name and tensor of what will move."""
        packed = [name for name, weight in targets.weights().items() if not weight.is_floating_point()]
        if packed:
            raise ModelError(f"{packed[0]} is packed into few bits and cannot be trained itself — use lora there")
        return targets.weights()

    def attach(self, targets: Targets) -> Attached:
        """Nothing is added; the chosen weights become float32."""
        chosen = self.chosen(targets)
        for weight in chosen.values():
            weight.data = weight.data.float()
            weight.requires_grad_(True)
        return Attached(targets.model, tuple(chosen))

    def expected_weights(self, targets: Targets) -> int:
        """Their count."""
        return sum(weight.numel() for weight in self.chosen(targets).values())


class Norms(Full):
    """Only scales and shifts of LayerNorm and RMSNorm (LN tuning, Zhao et al. 2023, 2312.11420)."""

    default_parts: ClassVar[tuple[str, ...]] = ("vision", "projector", "language")

    def chosen(self, targets: Targets) -> dict[str, nn.Parameter]:
        """Weights of modules whose class is some norm."""
        norms = {name for name, module in targets.model.named_modules() if type(module).__name__.endswith("Norm")}
        return {name: weight for name, weight in targets.weights().items() if name.rpartition(".")[0] in norms}


class Freeze(Full):
    """Nothing moves."""

    def chosen(self, targets: Targets) -> dict[str, nn.Parameter]:
        """No weight."""
        return {}
