"""GaLore and APOLLO against their equations, and the size of what they keep."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from fixtures.small_job import make_conversations, prepare, train
from torch import Tensor, nn

from mllm_tailor.core.errors import RecipeError
from mllm_tailor.training.optim.registry import OptimizerConfig, ParamGroup, make_optimizer_step


def make(name: str, weights: dict[str, nn.Parameter], rate: float = 0.01, **options: Any) -> Any:
    return make_optimizer_step(name, OptimizerConfig([ParamGroup(weights, rate, 0.0)], None, nn.Module(), options))


def steps(optimizer: Any, weight: nn.Parameter, gradients: list[Tensor]) -> None:
    for gradient in gradients:
        optimizer.step(lambda each, gradient=gradient: (each((weight * gradient).sum()), 0.0)[1], 1.0, 0)


@pytest.mark.parametrize("shape", [(12, 20), (20, 12), (12, 5, 2, 2)])
def test_galore_is_adam_in_the_largest_directions(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    weight = nn.Parameter(torch.randn(shape))
    gradients = [torch.randn(shape) for _ in range(3)]
    start = weight.detach().clone()
    optimizer = make("galore", {"w": weight}, rank=4, interval=2, scale=0.5)
    steps(optimizer, weight, gradients)

    wanted, flat = start.flatten(1), [gradient.flatten(1) for gradient in gradients]
    turned = flat[0].shape[0] > flat[0].shape[1]
    mean = square = torch.zeros(())
    for number, gradient in enumerate(one.T if turned else one for one in flat):
        if number % 2 == 0:
            basis = torch.linalg.svd(gradient)[0][:, :4]
        reduced = basis.T @ gradient
        mean, square = 0.9 * mean + 0.1 * reduced, 0.999 * square + 0.001 * reduced**2
        answer = mean / (1 - 0.9 ** (number + 1)) / ((square / (1 - 0.999 ** (number + 1))).sqrt() + 1e-8)
        update = basis @ answer
        wanted = wanted - 0.01 * 0.5 * (update.T if turned else update)
    assert (weight.detach().flatten(1) - wanted).abs().max() < 1e-5


def test_apollo_scales_whole_columns() -> None:
    """Each column steps along its own gradient; its length is Adam's, times sqrt(rank / m) (theorem 1)."""
    torch.manual_seed(0)
    weight = nn.Parameter(torch.zeros(64, 100))
    gradient = torch.randn(64, 100) * torch.logspace(-2, 2, 100)
    optimizer = make("apollo", {"w": weight}, rate=1.0, rank=48)
    steps(optimizer, weight, [gradient])
    ratio = -weight.detach() / gradient
    assert (ratio / ratio[:1] - 1).abs().max() < 1e-4
    norms = weight.detach().norm(dim=0) / 64**0.5  # Adam's first step has 1 in every place
    assert float(norms.mean()) == pytest.approx((48 / 64) ** 0.5, rel=0.05)


def test_apollo_steps_grow_slowly() -> None:
    weight = nn.Parameter(torch.zeros(16, 16))
    optimizer = make("apollo", {"w": weight}, rate=1.0, rank=4)
    places = [weight.detach().clone()]
    for size in (1.0, 100.0, 1e4):
        steps(optimizer, weight, [torch.randn(16, 16, generator=torch.Generator().manual_seed(1)) * size])
        places.append(weight.detach().clone())
    sizes = [float((after - before).norm()) for before, after in pairwise(places)]
    assert sizes[2] <= 1.0101 * sizes[1] <= 1.0101**2 * sizes[0]


def test_apollo_mini_has_one_rate_a_tensor() -> None:
    torch.manual_seed(0)
    weight, gradient = nn.Parameter(torch.zeros(8, 12)), torch.randn(8, 12)
    steps(make("apollo", {"w": weight}, rank=1), weight, [gradient])
    ratio = weight.detach() / gradient
    assert (ratio / ratio[0, 0] - 1).abs().max() < 1e-5


@pytest.mark.parametrize(("name", "kept"), [("galore", 2 * 4 * 50 + 30 * 4), ("apollo", 2 * 4 * 50)])
def test_what_is_kept(name: str, kept: int) -> None:
    weight = nn.Parameter(torch.randn(30, 50))
    optimizer = make(name, {"w": weight}, rank=4)
    steps(optimizer, weight, [torch.randn(30, 50)])
    assert sum(tensor.numel() for tensor in optimizer.state()[0].values()) == kept


@pytest.mark.slow
@pytest.mark.parametrize("name", ["galore", "apollo"])
def test_they_learn(name: str, tiny_model_folder: Path, tmp_path: Path) -> None:
    samples = make_conversations(tmp_path / "pictures", 4)
    spec = {"name": name, "rank": 8, "scale": 1.0}
    model, method, recipe = prepare(tiny_model_folder, spec, epochs=15, learning_rate=3e-3)
    result = train(model, method, samples, recipe, tmp_path / "run")
    assert result.losses[-1] < 0.7 * result.losses[0]


def test_a_rank_above_every_weight() -> None:
    with pytest.raises(RecipeError, match="no trained weight is wider"):
        make("galore", {"w": nn.Parameter(torch.zeros(8, 8))}, rank=8)
