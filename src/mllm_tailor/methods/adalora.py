"""AdaLoRA: one budget of ranks, moved to the layers where it matters (Zhang et al. 2023, 2303.10512).

`W + s P diag(E) Q` in PEFT's layers. While the mean rank of a layer falls from `rank` to `target`, the least important
triplets are set to zero. PEFT's allocator keeps its averages outside of the state dict, where checkpoints lose them,
and reads gradients that no longer exist after a step. This allocator keeps the averages as buffers of the layers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from peft import AdaLoraConfig, LoraConfig, PeftConfig
from pydantic import Field, model_validator
from torch import Tensor, distributed, nn

from mllm_tailor.core.errors import RecipeError
from mllm_tailor.methods.adapters import ADAPTER, inject, tuner_layers
from mllm_tailor.methods.base import InjectedAdapter, TuningMethod, TuningMethodSettings
from mllm_tailor.methods.lora import check_rank
from mllm_tailor.methods.target_modules import Targets
from mllm_tailor.recipe import Train

HALVES = ("lora_A", "lora_B", "lora_E")
WITHOUT_GRADIENTS = ("lomo", "adalomo", "mezo")


class AdaloraSettings(TuningMethodSettings):
    """Ranks that move between layers."""

    rank: int = Field(32, ge=2, le=4096, description="rank every layer starts with")
    target: int | None = Field(None, ge=1, description="mean rank of a layer at the end; default: half of `rank`")
    alpha: float | None = Field(None, gt=0, description="scale of the update is alpha/rank; default: twice the rank")
    dropout: float = Field(0.0, ge=0, lt=1, description="share of the inputs dropped before the update")
    targets: list[str] | None = Field(None, description="last names of linear layers, such as q_proj; default: all")
    start: float = Field(0.1, ge=0, lt=1, description="share of the steps before the ranks begin to fall")
    end: float = Field(0.3, gt=0, lt=1, description="share of the steps after the ranks are fixed")
    orthogonal: float = Field(0.5, ge=0, description="weight of the penalty that keeps P and Q orthogonal")

    @model_validator(mode="after")
    def _in_order(self) -> AdaloraSettings:
        if self.target is not None and self.target >= self.rank:
            raise ValueError(f"`target` {self.target} must be below `rank` {self.rank}; for a fixed rank use lora")
        if self.start + self.end >= 1:
            raise ValueError("`start` and `end` leave no steps in which the ranks can fall")
        return self


class Adalora(TuningMethod):
    """AdaLoRA; saved as a plain LoRA of the largest remaining rank, so that it loads everywhere."""

    Settings: ClassVar[type[TuningMethodSettings]] = AdaloraSettings
    rate: ClassVar[float] = 2e-3

    def check(self, train: Train) -> None:
        """Refuse optimizers that keep no gradients, from which the importance is computed."""
        if train.optimizer in WITHOUT_GRADIENTS:
            raise RecipeError(
                f"`train.optimizer` {train.optimizer}: adalora ranks its triplets by gradients, which this optimizer "
                "does not keep — use adamw, or method lora"
            )

    def attach(self, targets: Targets) -> InjectedAdapter:
        """Inject, and record the gradients by hooks."""
        settings = self.settings
        check_rank(settings.rank, targets)
        config = AdaLoraConfig(
            init_r=settings.rank,
            target_r=self._target,
            lora_alpha=settings.alpha if settings.alpha is not None else 2 * settings.rank,
            lora_dropout=settings.dropout,
            target_modules=targets.pattern,
            total_step=1_000_000,  # PEFT requires a number; its schedule is not used
        )
        attached = inject(targets.model, config)
        layers = _layers(targets.model)
        self.fresh: set[str] = set()  # halves whose penalty is not yet in this step's gradient
        self.gradients: dict[str, Tensor] = {}
        for name, layer in layers.items():
            layer.register_buffer("kept", torch.ones_like(layer.lora_E[ADAPTER], dtype=torch.bool), persistent=False)
            for half in HALVES:
                weight = layer.get_parameter(f"{half}.{ADAPTER}")
                for kind in ("importance", "uncertainty"):
                    layer.register_buffer(f"{kind}_{half}", torch.zeros_like(weight), persistent=False)
                weight.register_post_accumulate_grad_hook(self._listener(f"{name}.{half}"))
                if half != "lora_E" and settings.orthogonal:
                    weight.register_hook(self._penalty(f"{name}.{half}", weight, 2 * len(layers)))
        return attached

    @property
    def _target(self) -> int:
        return int(self.settings.target or max(1, self.settings.rank // 2))

    def _listener(self, key: str) -> Any:
        def arrived(weight: nn.Parameter) -> None:
            self.gradients[key] = weight.grad  # type: ignore[assignment]

        return arrived

    def _penalty(self, key: str, weight: Tensor, count: int) -> Any:
        """The gradient of the mean of |Q Q^T - I| (equation 4, unsquared as in the authors' code), once a step."""

        def add(gradient: Tensor) -> Tensor | None:
            if key not in self.fresh or (distributed.is_initialized() and distributed.get_rank()):
                return None
            self.fresh.discard(key)
            rows = weight.detach() if "lora_A" in key else weight.detach().T  # (rank, width)
            off = rows @ rows.T - torch.eye(len(rows), device=rows.device)
            slope = 2 * off @ rows / off.norm().clamp(min=1e-12) * (self.settings.orthogonal / count)
            penalised: Tensor = gradient + (slope if "lora_A" in key else slope.T)
            return penalised

        return add

    def begin_step(self, attached: InjectedAdapter, step: int, seed: int) -> None:
        """The penalty is added once to the gradient of every half."""
        self.fresh = {f"{name}.{half}" for name in _layers(attached.model) for half in ("lora_A", "lora_B")}

    @torch.no_grad()
    def end_step(self, attached: InjectedAdapter, step: int, steps: int) -> None:
        """Update the importance of every triplet; set those beyond the budget to zero."""
        layers = _layers(attached.model)
        last_change = round((1 - self.settings.end) * steps)
        if step <= last_change:
            self._update_importance(layers)
            self._allocate(list(layers.values()), self.budget(step, steps))
        for layer in layers.values():
            layer.lora_E[ADAPTER].mul_(layer.kept)
        self.gradients.clear()

    def budget(self, step: int, steps: int) -> float:
        """Mean rank of a layer after `step`: a cubic fall between `start` and `end` (equation 12)."""
        first, last = float(self.settings.start) * steps, (1 - float(self.settings.end)) * steps
        left = 1 - min(1.0, max(0.0, (step - first) / max(1.0, last - first)))
        return self._target + (int(self.settings.rank) - self._target) * left**3

    def _update_importance(self, layers: Mapping[str, Any]) -> None:
        """Running means of |w g| and of its deviation (equations 9 and 10)."""
        for name, layer in layers.items():
            for half in HALVES:
                gradient = self.gradients.get(f"{name}.{half}")
                if gradient is None:
                    continue
                now = (layer.get_parameter(f"{half}.{ADAPTER}") * gradient).abs()
                mean = layer.get_buffer(f"importance_{half}").lerp_(now, 0.15)
                layer.get_buffer(f"uncertainty_{half}").lerp_((now - mean).abs(), 0.15)

    def _allocate(self, layers: list[Any], budget: float) -> None:
        """Keep the most important triplets over all layers (equation 7)."""
        scores = [_triplets(layer) for layer in layers]
        count = round(budget * len(layers))
        ranked = torch.cat(scores).argsort(descending=True, stable=True)
        kept = torch.zeros(len(ranked), dtype=torch.bool, device=ranked.device)
        kept[ranked[:count]] = True
        for layer, mask in zip(layers, kept.split([len(score) for score in scores]), strict=True):
            layer.kept.copy_(mask[:, None])

    def export(
        self, attached: InjectedAdapter, state: Mapping[str, Tensor]
    ) -> tuple[PeftConfig | None, dict[str, Tensor]]:
        """B = s P, A = diag(E) Q of the remaining triplets, padded with zeros to a common rank."""
        config: Any = attached.config
        names = [name.removesuffix(".lora_E") for name in state if name.endswith(".lora_E")]
        kept = {name: state[f"{name}.lora_E"].flatten().nonzero().flatten() for name in names}
        rank = max(1, *(len(rows) for rows in kept.values()))
        scale = config.lora_alpha / (self.settings.rank + 1e-5)  # as PEFT's layer computes it
        plain = {}
        for name, rows in kept.items():
            up, down = state[f"{name}.lora_B"], state[f"{name}.lora_A"] * state[f"{name}.lora_E"]
            padding = rank - len(rows)
            plain[f"{name}.lora_A.weight"] = nn.functional.pad(down[rows], (0, 0, 0, padding))
            plain[f"{name}.lora_B.weight"] = nn.functional.pad(up[:, rows] * scale, (0, padding))
        return LoraConfig(r=rank, lora_alpha=rank, target_modules=config.target_modules), plain

    def num_trainable_parameters(self, targets: Targets) -> int:
        """rank * (in + out + 1) per layer."""
        check_rank(self.settings.rank, targets)
        return sum(
            self.settings.rank * (layer.in_features + layer.out_features + 1) for layer in targets.linears.values()
        )


def _layers(model: nn.Module) -> dict[str, Any]:
    return {name: layer for name, layer in tuner_layers(model).items() if ADAPTER in getattr(layer, "lora_E", {})}


def _triplets(layer: Any) -> Tensor:
    """(rank,) importance of every triplet: that of its singular value plus the means of its two vectors."""
    score = {half: layer.get_buffer(f"importance_{half}") * layer.get_buffer(f"uncertainty_{half}") for half in HALVES}
    importance: Tensor = score["lora_E"].flatten() + score["lora_A"].mean(dim=1) + score["lora_B"].mean(dim=0)
    return importance
