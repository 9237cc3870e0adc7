"""MeZO: learn from two forward passes and no backward pass (Malladi et al. 2023, 2305.17333, algorithm 1).

`g = (L(w + e z) - L(w - e z)) / 2e` with z drawn from a seed, then `w -= rate * g * z` with z drawn again. Nothing is
kept but (seed, g, factor) of each step, from which the whole run can be replayed.

Adding and taking away e z does not give bf16 weights back what they were (after 100 steps they have drifted by 4 % of
their spread), so there each module is perturbed only while it runs and then given its own tensor back.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from mllm_tailor.training.optim.registry import MicroBatches, OptimizerConfig, ParamGroup, StepResult

Row = tuple[int, float, float]  # seed, projected gradient, share of the peak rate


class MezoStep:
    """Two forward passes a step, dropout off."""

    accumulates = True

    def __init__(self, setup: OptimizerConfig) -> None:
        self.groups, self.network = setup.groups, setup.network
        self.weights = setup.weights
        self.epsilon = float(setup.options.get("epsilon", 1e-3))
        exact = setup.options.get("exact", "auto")
        rounding = any(weight.dtype != torch.float32 for weight in self.weights.values())
        self.exact = rounding if exact == "auto" else bool(exact)
        self.log: list[Row] = []

    @torch.no_grad()
    def step(self, passes: MicroBatches, factor: float, seed: int) -> StepResult:
        """Try both directions, step along the better one."""
        was_training = self.network.training
        self.network.eval()
        trial = self._trial_of_modules if self.exact else self._trial_in_place
        with trial(seed, self.epsilon):
            above = passes(lambda share: None)
        with trial(seed, -self.epsilon):
            below = passes(lambda share: None)
        self.network.train(was_training)
        row = (seed, (above - below) / (2 * self.epsilon), factor)
        replay(self.groups, [row])
        self.log.append(row)
        return StepResult((above + below) / 2, abs(row[1]))

    @contextmanager
    def _trial_in_place(self, seed: int, size: float) -> Iterator[None]:
        """All weights moved by size * z, and back."""
        for name, weight in self.weights.items():
            weight.add_(direction(seed, name, weight), alpha=size)
        yield
        for name, weight in self.weights.items():
            weight.add_(direction(seed, name, weight), alpha=-size)

    @contextmanager
    def _trial_of_modules(self, seed: int, size: float) -> Iterator[None]:
        """Each module's own weights moved while it runs; the tensors they had are put back, not computed back."""
        names = {id(weight): name for name, weight in self.weights.items()}
        kept: dict[int, Tensor] = {}

        def move(module: nn.Module, _: Any) -> None:
            for weight in module.parameters(recurse=False):
                if id(weight) in names and id(weight) not in kept:
                    kept[id(weight)] = weight.data
                    weight.data = torch.add(weight.data, direction(seed, names[id(weight)], weight), alpha=size)

        def put_back(module: nn.Module, _: Any, __: Any) -> None:
            for weight in module.parameters(recurse=False):
                if id(weight) in kept:
                    weight.data = kept.pop(id(weight))

        handles = []
        for module in self.network.modules():
            if any(id(weight) in names for weight in module.parameters(recurse=False)):
                handles.append(module.register_forward_pre_hook(move))
                handles.append(module.register_forward_hook(put_back, always_call=True))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The log: a few bytes a step."""
        return {}, {"log": [list(row) for row in self.log]}

    def restore(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """The log as it was."""
        self.log = [(int(seed), float(slope), float(factor)) for seed, slope, factor in values["log"]]


def direction(seed: int, name: str, weight: Tensor) -> Tensor:
    """z for one weight: standard normal, the same whenever it is asked for."""
    mixed = int.from_bytes(hashlib.sha256(f"{seed}:{name}".encode()).digest()[:8]) >> 1
    generator = torch.Generator(weight.device).manual_seed(mixed)
    return torch.randn(weight.shape, generator=generator, device=weight.device, dtype=weight.dtype)


@torch.no_grad()
def replay(groups: Sequence[ParamGroup], log: Sequence[Row]) -> None:
    """Make the steps of a log again, on the weights they began from."""
    for seed, slope, factor in log:
        for group in groups:
            rate = group.learning_rate * factor
            for name, weight in group.weights.items():
                if group.weight_decay:
                    weight.mul_(1 - rate * group.weight_decay)
                weight.add_(direction(seed, name, weight), alpha=-rate * slope)  # rounded once, from float32


def mezo(setup: OptimizerConfig) -> MezoStep:
    """Memory of inference and one tensor."""
    return MezoStep(setup)
