"""Optimizers of torch and bitsandbytes, which need the whole gradient."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from mllm_tailor.core.errors import RecipeError
from mllm_tailor.core.optional import need
from mllm_tailor.training.distributed import sum_gradients
from mllm_tailor.training.optim.registry import OptimizerConfig, RunMicroBatches, StepResult
from mllm_tailor.training.sharding import like, whole


@contextmanager
def _without_paging_warning() -> Iterator[None]:
    """A CPU has nothing to page to; a recipe with a paged optimizer works there all the same."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Paged optimizers are not supported on CPU")
        yield


MakeOptimizer = Callable[[list[dict[str, Any]]], Optimizer]


class GradientStep:
    """Backward through every micro-batch, then one clipped update."""

    accumulates = True

    def __init__(self, config: OptimizerConfig, make: MakeOptimizer) -> None:
        groups = config.groups
        self.max_grad_norm, self.weights = config.max_grad_norm, config.weights
        self.peaks = [group.learning_rate for group in groups]
        self.optimizer = make(
            [
                {"params": list(group.weights.values()), "lr": group.learning_rate, "weight_decay": group.weight_decay}
                for group in groups
            ]
        )

    def step(self, micro_batches: RunMicroBatches, factor: float, seed: int) -> StepResult:
        """Accumulate, clip, update."""
        self.optimizer.zero_grad(set_to_none=True)
        loss = micro_batches(lambda share: share.backward())
        sum_gradients(self.weights.values())
        norm = torch.nn.utils.clip_grad_norm_(self.weights.values(), self.max_grad_norm or torch.inf)
        for group, peak in zip(self.optimizer.param_groups, self.peaks, strict=True):
            group["lr"] = peak * factor
        with _without_paging_warning() if getattr(self.optimizer, "is_paged", False) else nullcontext():
            self.optimizer.step()
        for weight in self.weights.values():
            if not weight.requires_grad:  # frozen for now (LISA): its state would only use memory
                self.optimizer.state.pop(weight, None)
        self.optimizer.zero_grad(set_to_none=True)
        return StepResult(loss, float(whole(norm)))

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """`weight|key` -> tensor, sliced as the weight is, and numbers likewise."""
        tensors: dict[str, Tensor] = {}
        values: dict[str, Any] = {}
        for name, weight in self.weights.items():
            for key, value in self.optimizer.state.get(weight, {}).items():
                if key.startswith("qmap"):  # one table shared by all weights, which safetensors refuses
                    value = value.clone()
                if isinstance(value, Tensor):
                    tensors[f"{name}|{key}"] = value
                else:
                    values[f"{name}|{key}"] = value
        return tensors, values

    def restore(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """Load the state of each weight, into paged memory where the optimizer uses it."""
        for source in (tensors, values):
            for name_and_key, value in source.items():
                name, _, key = name_and_key.rpartition("|")
                weight = self.weights[name]
                if isinstance(value, Tensor):
                    value = self._on_device(weight, key, value)
                self.optimizer.state[weight][key] = value

    def _on_device(self, weight: Tensor, key: str, value: Tensor) -> Tensor:
        if key == "step":
            return value.cpu()  # torch keeps its counters there
        if hasattr(self.optimizer, "get_state_buffer") and value.shape == weight.shape:
            buffer: Tensor = self.optimizer.get_state_buffer(weight, dtype=value.dtype)
            return buffer.copy_(value)
        return like(value, weight) if value.shape == weight.shape else value.to(weight.device)


def adamw(config: OptimizerConfig) -> GradientStep:
    """AdamW (Loshchilov & Hutter 2017, 1711.05101) of torch."""
    return GradientStep(config, torch.optim.AdamW)


def sgd(config: OptimizerConfig) -> GradientStep:
    """Plain gradient descent."""
    return GradientStep(config, torch.optim.SGD)


def _bitsandbytes(optimizer: str) -> Any:
    return need("bitsandbytes", "quantize", f"`train.optimizer` {optimizer}", RecipeError).optim


def adamw_8bit(config: OptimizerConfig) -> GradientStep:
    """State quantised in blocks (Dettmers et al. 2021, 2110.02861)."""
    return GradientStep(config, _bitsandbytes("adamw_8bit").AdamW8bit)


def paged_adamw_32bit(config: OptimizerConfig) -> GradientStep:
    """State in memory that the driver may move off the GPU; on a CPU the same as AdamW."""
    return GradientStep(config, _bitsandbytes("paged_adamw_32bit").PagedAdamW32bit)


def paged_adamw_8bit(config: OptimizerConfig) -> GradientStep:
    """8-bit state in paged memory."""
    return GradientStep(config, _bitsandbytes("paged_adamw_8bit").PagedAdamW8bit)
