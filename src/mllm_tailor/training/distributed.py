"""Several processes (torchrun): who am I, and sums over all of us. With one process everything here is free."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import timedelta

import torch
from accelerate import PartialState
from torch import Tensor, distributed, nn

WAITING = timedelta(days=1)  # at most, for the process that scores the dev part alone


def join(device: torch.device) -> PartialState:
    """Join the group of processes we were started in, if we were.

    `cpu=True` matters: without it accelerate leaves CPU processes strangers to each other, each training alone.
    """
    return PartialState(cpu=device.type == "cpu", timeout=WAITING)


def leave() -> None:
    """Be alone again, whatever became of the others."""
    if distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()
    PartialState._reset_state()


def broadcast_parameters(weights: Iterable[nn.Parameter]) -> None:
    """Give every process the weights of the first."""
    if world_size() > 1:
        for weight in weights:
            distributed.broadcast(weight.data, 0)


def world_size() -> int:
    """How many processes train together."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def rank() -> int:
    """The number of this process among them, from 0."""
    return distributed.get_rank() if world_size() > 1 else 0


def all_reduce_sum(value: float, device: torch.device) -> float:
    """The sum of a number over all processes."""
    if world_size() == 1:
        return value
    summed = torch.tensor(value, dtype=torch.float64, device=device)
    distributed.all_reduce(summed)
    return float(summed)


def any_rank(wish: bool, device: torch.device) -> bool:
    """Whether any process wishes it: all must save, score and stop after the same step."""
    return all_reduce_sum(float(wish), device) > 0


def sum_gradients(weights: Iterable[nn.Parameter]) -> None:
    """Add the gradients of all processes, in one message a device and number format.

    Each process may have run another number of passes, which DistributedDataParallel would not survive.
    """
    if world_size() == 1:
        return
    gradients: list[Tensor] = []
    for weight in weights:
        if weight.grad is None:
            weight.grad = torch.zeros_like(weight)
        gradients.append(weight.grad)
    flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
    distributed.all_reduce(flat)
    offset = 0
    for gradient in gradients:
        gradient.copy_(flat[offset : offset + gradient.numel()].view_as(gradient))
        offset += gradient.numel()


def all_reduce_min(value: int, device: torch.device) -> int:
    """The smallest of a number over all processes."""
    if world_size() == 1:
        return value
    found = torch.tensor(value, device=device)
    distributed.all_reduce(found, op=distributed.ReduceOp.MIN)
    return int(found)
