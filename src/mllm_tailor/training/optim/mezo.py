"""MeZO: training by two forward passes and no backward pass (Malladi et al. 2023, 2305.17333, algorithm 1).

`g = (L(w + e z) - L(w - e z)) / 2e` with z drawn from a seed, then `w -= rate * g * z` with z drawn again. The state is
(seed, g, factor) of each step, from which the whole run can be replayed.

Adding and subtracting e z does not restore bf16 weights exactly (after 100 steps they have drifted by 4 % of their
standard deviation), so for them each module is perturbed only while it runs, and then gets its own tensor back.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from mllm_tailor.training.optim.registry import OptimizerConfig, ParamGroup, RunMicroBatches, StepResult

Row = tuple[int, float, float]  # seed, projected gradient, share of the peak rate


class MezoStep:
    """Two forward passes per step, without dropout."""

    accumulates = True

    def __init__(self, config: OptimizerConfig) -> None:
        self.groups, self.network = config.groups, config.network
        self.weights = config.weights
        self.epsilon = float(config.options.get("epsilon", 1e-3))
        exact = config.options.get("exact", "auto")
        rounding = any(weight.dtype != torch.float32 for weight in self.weights.values())
        self.exact = rounding if exact == "auto" else bool(exact)
        self.log: list[Row] = []

    @torch.no_grad()
    def step(self, micro_batches: RunMicroBatches, factor: float, seed: int) -> StepResult:
        """Evaluate both directions, then step."""
        was_training = self.network.training
        self.network.eval()
        perturbed = self._perturbed_modules if self.exact else self._perturbed_in_place
        with perturbed(seed, self.epsilon):
            plus = micro_batches(lambda _: None)
        with perturbed(seed, -self.epsilon):
            minus = micro_batches(lambda _: None)
        self.network.train(was_training)
        row = (seed, (plus - minus) / (2 * self.epsilon), factor)
        replay(self.groups, [row])
        self.log.append(row)
        return StepResult((plus + minus) / 2, abs(row[1]))

    @contextmanager
    def _perturbed_in_place(self, seed: int, size: float) -> Iterator[None]:
        """Within, all weights are moved by size * z."""
        for name, weight in self.weights.items():
            weight.add_(direction(seed, name, weight), alpha=size)
        yield
        for name, weight in self.weights.items():
            weight.add_(direction(seed, name, weight), alpha=-size)

    @contextmanager
    def _perturbed_modules(self, seed: int, size: float) -> Iterator[None]:
        """Within, each module's weights are moved while it runs; then it gets its original tensors back."""
        names = {id(weight): name for name, weight in self.weights.items()}
        originals: dict[int, Tensor] = {}

        def move(module: nn.Module, _: Any) -> None:
            for weight in module.parameters(recurse=False):
                if id(weight) in names and id(weight) not in originals:
                    originals[id(weight)] = weight.data
                    weight.data = torch.add(weight.data, direction(seed, names[id(weight)], weight), alpha=size)

        def restore(module: nn.Module, _: Any, __: Any) -> None:
            for weight in module.parameters(recurse=False):
                if id(weight) in originals:
                    weight.data = originals.pop(id(weight))

        handles = []
        for module in self.network.modules():
            if any(id(weight) in names for weight in module.parameters(recurse=False)):
                handles.append(module.register_forward_pre_hook(move))
                handles.append(module.register_forward_hook(restore, always_call=True))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The log: a few bytes per step."""
        return {}, {"log": [list(row) for row in self.log]}

    def restore(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """Load the log."""
        self.log = [(int(seed), float(slope), float(factor)) for seed, slope, factor in values["log"]]


def direction(seed: int, name: str, weight: Tensor) -> Tensor:
    """z for a weight: standard normal, determined by seed and name."""
    mixed = int.from_bytes(hashlib.sha256(f"{seed}:{name}".encode()).digest()[:8]) >> 1
    generator = torch.Generator(weight.device).manual_seed(mixed)
    return torch.randn(weight.shape, generator=generator, device=weight.device, dtype=weight.dtype)


@torch.no_grad()
def replay(groups: Sequence[ParamGroup], log: Sequence[Row]) -> None:
    """Apply the steps of a log to the weights they started from."""
    for seed, slope, factor in log:
        for group in groups:
            rate = group.learning_rate * factor
            for name, weight in group.weights.items():
                if group.weight_decay:
                    weight.mul_(1 - rate * group.weight_decay)
                weight.add_(direction(seed, name, weight), alpha=-rate * slope)  # rounded once, from float32


def mezo(config: OptimizerConfig) -> MezoStep:
    """The memory of inference plus one tensor."""
    return MezoStep(config)
