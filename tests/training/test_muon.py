"""Muon against its equations, and beside Adam for what is no hidden matrix."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from mllm_tailor.training.optim import muon
from mllm_tailor.training.optim.muon import MOMENTUM, SIZE, orthogonalise
from mllm_tailor.training.optim.registry import OptimizerConfig, ParamGroup, make_optimizer_step


def step(weights: dict[str, nn.Parameter], gradients: dict[str, Tensor], optimizer: object) -> None:
    def passes(each: object) -> float:
        each(sum((weights[name] * gradient).sum() for name, gradient in gradients.items()))  # type: ignore[operator]
        return 0.0

    optimizer.step(passes, 1.0, 0)  # type: ignore[attr-defined]


@pytest.mark.parametrize(("bf16", "error"), [(False, 0.02), (True, 0.05)])
@pytest.mark.parametrize("shape", [(12, 20), (20, 12)])
def test_every_direction_of_a_hidden_matrix_counts_alike(
    shape: tuple[int, int], bf16: bool, error: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first step goes along U V^T of the gradient, however weak a direction is, and has Adam's size."""
    monkeypatch.setattr(muon, "fast_bf16", lambda device: bf16)
    torch.manual_seed(0)
    left, _, right = torch.linalg.svd(torch.randn(shape), full_matrices=False)
    gradient = left @ torch.diag(torch.logspace(0, -2, 12)) @ right
    weights = {"layer.weight": nn.Parameter(torch.zeros(shape))}
    step(
        weights,
        {"layer.weight": gradient},
        make_optimizer_step("muon", OptimizerConfig([ParamGroup(weights, 1.0, 0.0)], None, nn.Module())),
    )
    found = -weights["layer.weight"].detach() / (SIZE * 20**0.5)
    sizes = (left.T @ found @ right.T).diagonal()
    assert (sizes > 0.6).all() and (sizes < 1.3).all()
    assert float((found - left @ torch.diag(sizes) @ right).norm()) < error * float(found.norm())


def test_shapes_taken_together_come_out_as_alone() -> None:
    torch.manual_seed(0)
    matrices = torch.randn(3, 8, 5)
    together = orthogonalise(matrices)
    alone = torch.cat([orthogonalise(one[None]) for one in matrices])
    assert (together - alone).abs().max() < 1e-5


@pytest.mark.parametrize("shape", [(40, 160), (160, 40), (40, 48)])
def test_iterations_equal_their_definition_in_float64(shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """In float32, also on the Gram matrix of an oblong one, and with singular values over five orders of magnitude."""
    monkeypatch.setattr(muon, "fast_bf16", lambda device: False)
    torch.manual_seed(0)
    left, _, right = torch.linalg.svd(torch.randn(shape, dtype=torch.float64), full_matrices=False)
    matrix = left @ torch.diag(torch.logspace(0, -5, 40, dtype=torch.float64)) @ right
    values = torch.logspace(0, -5, 40, dtype=torch.float64) / float(matrix.norm())
    for _ in range(5):
        values = 3.4445 * values - 4.775 * values**3 + 2.0315 * values**5
    wanted = left @ torch.diag(values) @ right
    found = orthogonalise(matrix.float()[None])[0].double()
    assert float((found - wanted).norm()) < 1e-3 * float(wanted.norm())


def test_embeddings_head_and_scales_go_by_adam_and_decay_is_decoupled() -> None:
    """Adam's first step is the rate in every place, whatever the gradient's size."""
    torch.manual_seed(0)
    shapes = {"embed_tokens.weight": (7, 4), "lm_head.weight": (7, 4), "norm.weight": (4,), "kernel": (4, 3, 2, 2)}
    weights = {name: nn.Parameter(torch.ones(shape)) for name, shape in shapes.items()}
    gradients = {name: torch.randn(shape) for name, shape in shapes.items()}
    step(
        weights,
        gradients,
        make_optimizer_step("muon", OptimizerConfig([ParamGroup(weights, 0.01, 0.5)], None, nn.Module())),
    )
    for name, weight in weights.items():
        wanted = 1 - 0.01 * 0.5 - 0.01 * gradients[name].sign()
        assert (weight.detach() - wanted).abs().max() < 1e-5, name


def test_what_it_remembers_is_stored_and_restored() -> None:
    torch.manual_seed(0)
    weights = {"layer.weight": nn.Parameter(torch.randn(6, 4)), "norm.weight": nn.Parameter(torch.ones(4))}
    gradients = [{name: torch.randn(weight.shape) for name, weight in weights.items()} for _ in range(2)]
    setup = OptimizerConfig([ParamGroup(weights, 0.01, 0.0)], None, nn.Module())
    optimizer = make_optimizer_step("muon", setup)
    step(weights, gradients[0], optimizer)
    tensors, values = optimizer.state()
    assert torch.allclose(
        tensors["layer.weight|momentum_buffer"], (1 - MOMENTUM) * gradients[0]["layer.weight"], atol=1e-6
    )
    kept = {name: weight.detach().clone() for name, weight in weights.items()}
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    step(weights, gradients[1], optimizer)
    gone_on = {name: weight.detach().clone() for name, weight in weights.items()}
    with torch.no_grad():
        for name, weight in weights.items():
            weight.copy_(kept[name])
    resumed = make_optimizer_step("muon", setup)
    resumed.restore(tensors, values)
    step(weights, gradients[1], resumed)
    assert all(torch.equal(weights[name], gone_on[name]) for name in weights)
