"""Sharded training: each process keeps a slice of every weight, gradient and optimizer state (FSDP2 of torch).

A layer's weights are gathered when the layer runs and dropped afterwards (Zhao et al. 2023, 2304.11277; the stages of
ZeRO: Rajbhandari et al. 2019, 1910.02054). Gathering is collective: all processes run the same layers in one order.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from mllm_tailor.training.distributed import world_size


def shard(network: nn.Module, device: torch.device, separate: tuple[str, ...]) -> None:
    """Shard every weight of `network` over all processes, which must hold the same weights.

    The layers below the prefixes `separate` are gathered one at a time, everything else for the whole of a pass: a part
    that not every pass of every process runs must not be among them. Gradients are summed, not averaged.
    """
    # Nothing changes the logits of a pass in place, of which FSDP warns in every pass.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
    mesh = init_device_mesh(device.type, (world_size(),))
    for layer in _layers(network, separate):
        fully_shard(layer, mesh=mesh)
    fully_shard(network, mesh=mesh)
    for module in _units(network):
        module.set_gradient_divide_factor(1.0)
        module.set_force_sum_reduction_for_comms(True)  # gloo has no other reduction


def is_sharded(network: nn.Module) -> bool:
    """Whether `shard` was applied."""
    return isinstance(network, FSDPModule)


@contextmanager
def gathered(network: nn.Module) -> Iterator[None]:
    """Within, every process holds the whole model, so that one of them can run or save it alone. Collective."""
    units = _units(network)
    for module in units:
        module.unshard()
        module.set_reshard_after_forward(False, recurse=False)
    try:
        yield
    finally:
        for module in units:
            module.set_reshard_after_forward(module is not network, recurse=False)
            module.reshard()


def whole(tensor: Tensor) -> Tensor:
    """The tensor itself, or all slices of a sharded one (collective)."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def like(tensor: Tensor, target: Tensor) -> Tensor:
    """This process's slice of a whole `tensor`, where `target` is sharded; otherwise the tensor on its device."""
    if isinstance(tensor, DTensor):
        return tensor
    tensor = tensor.to(target.device)
    if not isinstance(target, DTensor):
        return tensor
    return distribute_tensor(tensor, target.device_mesh, target.placements, src_data_rank=None)


def _units(network: nn.Module) -> list[Any]:
    return [module for module in network.modules() if isinstance(module, FSDPModule)]


def _layers(network: nn.Module, prefixes: tuple[str, ...]) -> list[nn.Module]:
    """The members of the outermost module lists below the prefixes: a transformer's layers."""
    lists = {
        name: module
        for name, module in network.named_modules()
        if isinstance(module, nn.ModuleList) and f"{name}.".startswith(prefixes)
    }
    outermost = [name for name in lists if not any(name.startswith(f"{other}.") for other in lists if other != name)]
    return [layer for name in outermost for layer in lists[name]]
