"""DyLoRA: trained once, usable at any lower rank (Valipour et al. 2022, 2210.07558).

Each step draws a rank b, the same for all layers, and trains `h = W x + (alpha / b) B[:, :b] A[:b] x` (equation 7).
It runs in PEFT's LoRA: a hook masks the rows above b, and the scale is set to match. Other ports scale differently.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from peft import PeftConfig
from pydantic import Field
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mllm_tailor.core.errors import ModelError
from mllm_tailor.methods.adapter_metadata import read_metadata, write_metadata
from mllm_tailor.methods.adapters import ADAPTER, WEIGHTS_FILE, tuner_layers
from mllm_tailor.methods.base import InjectedAdapter, TuningMethodSettings
from mllm_tailor.methods.lora import Lora, LoraSettings
from mllm_tailor.methods.target_modules import Targets


class DyloraSettings(LoraSettings):
    """LoRA that can be cut to any lower rank."""

    rslora: Literal[False] = Field(False, description="incompatible with this method")
    dora: Literal[False] = Field(False, description="incompatible with this method")
    lowest: int = Field(1, ge=1, description="smallest rank drawn")
    frozen: bool = Field(
        True,
        description="gradients reach only row b of A and column b of B, as the authors train; the momenta of AdamW "
        "still move the rows of earlier steps",
    )


class Dylora(Lora):
    """Between steps, and therefore in evaluations and on disk, it is a plain LoRA of the full rank."""

    Settings: ClassVar[type[TuningMethodSettings]] = DyloraSettings
    rate: ClassVar[float] = 1e-3  # a step trains one row and column

    def attach(self, targets: Targets) -> InjectedAdapter:
        """Inject, and register the hooks."""
        attached = super().attach(targets)
        attached.state["rank"] = self.settings.rank

        def drawn() -> int:
            return int(attached.state["rank"])

        for layer in _layers(targets.model):
            layer.lora_A[ADAPTER].register_forward_hook(_masking(drawn))
            if self.settings.frozen:
                layer.lora_A[ADAPTER].weight.register_hook(_only(drawn, 0, self.settings.rank))
                layer.lora_B[ADAPTER].weight.register_hook(_only(drawn, 1, self.settings.rank))
        return attached

    def begin_step(self, attached: InjectedAdapter, step: int, seed: int) -> None:
        """Draw this step's rank."""
        self.use_rank(attached, random.Random(seed).randint(self.settings.lowest, self.settings.rank))

    def end_step(self, attached: InjectedAdapter, step: int, steps: int) -> None:
        """Return to the full rank."""
        self.use_rank(attached, self.settings.rank)

    def use_rank(self, attached: InjectedAdapter, rank: int) -> None:
        """Compute with the first `rank` rows and their scale."""
        attached.state["rank"] = rank
        for layer in _layers(attached.model):
            layer.scaling[ADAPTER] = attached.config.lora_alpha / rank  # type: ignore[union-attr]


def _layers(model: nn.Module) -> list[Any]:
    return [layer for layer in tuner_layers(model).values() if ADAPTER in getattr(layer, "lora_A", {})]


def _masking(drawn: Callable[[], int]) -> Callable[[nn.Module, Any, Tensor], Tensor]:
    def hook(_: nn.Module, __: Any, output: Tensor) -> Tensor:
        rank = drawn()
        return (
            output if rank == output.shape[-1] else nn.functional.pad(output[..., :rank], (0, output.shape[-1] - rank))
        )

    return hook


def _only(drawn: Callable[[], int], axis: int, full: int) -> Callable[[Tensor], Tensor]:
    """Keep only the gradient of the drawn row (axis 0) or column (axis 1)."""

    def hook(gradient: Tensor) -> Tensor:
        kept = (torch.arange(full, device=gradient.device) == drawn() - 1).to(gradient.dtype)
        return gradient * (kept[:, None] if axis == 0 else kept)

    return hook


def truncate(adapter: Path, rank: int, out: Path) -> None:
    """Truncate a saved DyLoRA adapter to `rank`: a plain LoRA folder with the same alpha.

    Raises:
        ModelError: when the folder holds no DyLoRA adapter, or its rank is lower.
    """
    metadata = read_metadata(adapter)
    if metadata["adapters"] != {".": "dylora"}:
        raise ModelError(f"{adapter}: not a DyLoRA adapter, so its first {rank} rows mean nothing — train with dylora")
    config = PeftConfig.from_pretrained(str(adapter))
    if not 1 <= rank <= config.r:
        raise ModelError(f"{adapter}: has rank {config.r} — choose a rank from 1 to {config.r}")
    config.r = rank
    out.mkdir(parents=True, exist_ok=True)
    tensors = load_file(adapter / WEIGHTS_FILE)
    cut = {name: tensor[:rank] if ".lora_A." in name else tensor[:, :rank] for name, tensor in tensors.items()}
    save_file(
        {name: tensor.contiguous() for name, tensor in cut.items()}, out / WEIGHTS_FILE, metadata={"format": "pt"}
    )
    config.save_pretrained(str(out))
    write_metadata(out, metadata["base"], {"method": "lora", "adapters": {".": "lora"}, "weights": False})
