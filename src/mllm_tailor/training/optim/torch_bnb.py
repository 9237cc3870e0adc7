"""Optimizers that want the whole gradient: torch's and bitsandbytes'."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import bitsandbytes
import torch
from torch import Tensor
from torch.optim import Optimizer

from mllm_tailor.training.distributed import sum_gradients
from mllm_tailor.training.optim.registry import MicroBatches, OptimizerConfig, StepResult


@contextmanager
def _without_paging_warning() -> Iterator[None]:
    """On a CPU there is nothing to page to; the same recipe works there, which is all a user needs to know."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Paged optimizers are not supported on CPU")
        yield


class GradientStep:
    """Backward through every pass, one clipped update."""

    accumulates = True

    def __init__(self, setup: OptimizerConfig, make: Callable[[list[dict[str, Any]]], Optimizer]) -> None:
        groups = setup.groups
        self.clip, self.weights = setup.max_grad_norm, setup.weights
        self.peaks = [group.learning_rate for group in groups]
        self.optimizer = make(
            [
                {"params": list(group.weights.values()), "lr": group.learning_rate, "weight_decay": group.weight_decay}
                for group in groups
            ]
        )

    def step(self, passes: MicroBatches, factor: float, seed: int) -> StepResult:
        """Accumulate, clip, update."""
        self.optimizer.zero_grad(set_to_none=True)
        loss = passes(lambda share: share.backward())
        sum_gradients(self.weights.values())
        norm = torch.nn.utils.clip_grad_norm_(self.weights.values(), self.clip or torch.inf)
        for group, peak in zip(self.optimizer.param_groups, self.peaks, strict=True):
            group["lr"] = peak * factor
        with _without_paging_warning() if getattr(self.optimizer, "is_paged", False) else nullcontext():
            self.optimizer.step()
        for weight in self.weights.values():
            if not weight.requires_grad:  # at rest (LISA): its state would only fill the memory
                self.optimizer.state.pop(weight, None)
        self.optimizer.zero_grad(set_to_none=True)
        return StepResult(loss, float(norm))

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """`weight|key` -> tensor, and numbers likewise."""
        tensors: dict[str, Tensor] = {}
        values: dict[str, Any] = {}
        for name, weight in self.weights.items():
            for key, value in self.optimizer.state.get(weight, {}).items():
                if key.startswith("qmap"):  # one table shared by all weights, which safetensors would refuse
                    value = value.clone()
                (tensors if isinstance(value, Tensor) else values)[f"{name}|{key}"] = value
        return tensors, values

    def restore(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """Put the state back under its weights, in paged memory where the optimizer pages."""
        for source in (tensors, values):
            for name_and_key, value in source.items():
                name, _, key = name_and_key.rpartition("|")
                weight = self.weights[name]
                if isinstance(value, Tensor):
                    value = self._place(weight, key, value)
                self.optimizer.state[weight][key] = value

    def _place(self, weight: Tensor, key: str, value: Tensor) -> Tensor:
        if key == "step":
            return value.cpu()  # torch keeps its counters there
        if hasattr(self.optimizer, "get_state_buffer") and value.shape == weight.shape:
            buffer: Tensor = self.optimizer.get_state_buffer(weight, dtype=value.dtype)
            return buffer.copy_(value)
        return value.to(weight.device)


def adamw(setup: OptimizerConfig) -> GradientStep:
    """AdamW (Loshchilov & Hutter 2017, 1711.05101) of torch, all weights in one call on a GPU."""
    return GradientStep(setup, torch.optim.AdamW)


def sgd(setup: OptimizerConfig) -> GradientStep:
    """Plain gradient descent."""
    return GradientStep(setup, torch.optim.SGD)


def adamw_8bit(setup: OptimizerConfig) -> GradientStep:
    """State quantised in blocks (Dettmers et al. 2021, 2110.02861)."""
    return GradientStep(setup, bitsandbytes.optim.AdamW8bit)


def paged_adamw_32bit(setup: OptimizerConfig) -> GradientStep:
    """State in memory that the driver may move off the GPU; on a CPU simply AdamW."""
    return GradientStep(setup, bitsandbytes.optim.PagedAdamW32bit)


def paged_adamw_8bit(setup: OptimizerConfig) -> GradientStep:
    """8-bit state in paged memory."""
    return GradientStep(setup, bitsandbytes.optim.PagedAdamW8bit)
