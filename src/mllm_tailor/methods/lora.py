"""LoRA and QLoRA, by PEFT.

`y = W x + s B A x`, `A` (rank, in) random, `B` (out, rank) zero, `s = alpha / rank` (Hu et al. 2021, 2106.09685).
"""

from __future__ import annotations

from typing import ClassVar, Literal

from peft import LoraConfig
from pydantic import Field, field_validator

from mllm_tailor.core.errors import RecipeError
from mllm_tailor.methods.adapters import inject
from mllm_tailor.methods.base import InjectedAdapter, TuningMethod, TuningMethodSettings
from mllm_tailor.methods.target_modules import Targets


class LoraSettings(TuningMethodSettings):
    """Low-rank updates."""

    rank: int = Field(32, ge=1, le=4096, description="rank of the update")
    alpha: float | None = Field(None, gt=0, description="scale of the update is alpha/rank; default: twice the rank")
    dropout: float = Field(0.0, ge=0, lt=1, description="share of the inputs dropped before the update")
    targets: list[str] | None = Field(None, description="last names of linear layers, such as q_proj; default: all")
    rslora: bool = Field(False, description="scale by alpha/sqrt(rank) (2312.03732); steadier at high ranks")
    dora: bool = Field(False, description="learn length and direction separately (2402.09353); slower")
    init: Literal["default", "gaussian", "orthogonal"] = Field("default", description="initialisation of `A`")

    @field_validator("init", mode="before")
    @classmethod
    def _no_loftq(cls, value: object) -> object:
        if value == "loftq":
            raise ValueError(
                "loftq quantises the base anew: only on a GPU, and the adapter would not fit the original base — "
                "use method qlora with init default, or pissa"
            )
        return value


class Lora(TuningMethod):
    """`rank * (in + out)` weights beside every targeted linear layer."""

    Settings: ClassVar[type[TuningMethodSettings]] = LoraSettings

    def config(self, targets: Targets) -> LoraConfig:
        """PEFT's configuration for these layers."""
        settings = self.settings
        check_rank(settings.rank, targets)
        return LoraConfig(
            r=settings.rank,
            lora_alpha=settings.alpha if settings.alpha is not None else 2 * settings.rank,
            lora_dropout=settings.dropout,
            target_modules=targets.pattern,
            use_rslora=settings.rslora,
            use_dora=settings.dora,
            init_lora_weights=True if settings.init == "default" else settings.init,
        )

    def attach(self, targets: Targets) -> InjectedAdapter:
        """Inject the adapter."""
        return inject(targets.model, self.config(targets))

    def num_trainable_parameters(self, targets: Targets) -> int:
        """rank * (in + out) per layer, and for DoRA a length per output."""
        check_rank(self.settings.rank, targets)
        lengths = sum(layer.out_features for layer in targets.linears.values()) if self.settings.dora else 0
        rank = int(self.settings.rank)
        return lengths + sum(rank * (layer.in_features + layer.out_features) for layer in targets.linears.values())


class Qlora(Lora):
    """LoRA over NF4 weights with double quantisation (Dettmers et al. 2023, 2305.14314): 4.127 bits per weight.

    PEFT's `prepare_model_for_kbit_training` is not called: it would convert every unquantised weight (embeddings, a
    skipped vision tower) to float32, which costs more memory than quantising saved. Trained weights are float32 anyway.
    """

    quantize: ClassVar[str | None] = "nf4"


def check_rank(rank: int, targets: Targets) -> None:
    """Refuse a rank above the width of a layer, which adds parameters but no expressiveness.

    Raises:
        RecipeError: naming the narrowest layer.
    """
    name, layer = min(targets.linears.items(), key=lambda item: min(item[1].in_features, item[1].out_features))
    width = min(layer.in_features, layer.out_features)
    if rank > width:
        raise RecipeError(f"`method.rank` {rank} is above the width {width} of {name} — choose {width} or less")
