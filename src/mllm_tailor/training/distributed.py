"""Data-parallel training: the process group, and reductions over it. In a single process every function is free."""

from __future__ import annotations

import os
from collections.abc import Iterable
from datetime import timedelta
from pathlib import Path

import torch
from torch import Tensor, distributed, nn
from torch.distributed import FileStore, Store
from torch.distributed.tensor import DTensor

TIMEOUT = timedelta(days=1)  # other ranks wait in a collective while rank 0 predicts more or saves


def init_process_group(device: torch.device) -> None:
    """Join the process group that torchrun describes in the environment, unless there is none or it is joined.

    `device` holds the model: on a machine with several GPUs, each process has loaded it on its own (`pick_device`).
    """
    if is_initialized() or int(os.environ.get("WORLD_SIZE", "1")) == 1 or "RANK" not in os.environ:
        return
    distributed.init_process_group(_backend(device), timeout=TIMEOUT)


def join_process_group(device: torch.device, meeting: Path | Store, rank: int, world_size: int) -> None:
    """Join a group of processes that meet at a store, or at a file that none of them has made before."""
    # Not by the file's address, which torch does not decode.
    store = FileStore(str(meeting), world_size) if isinstance(meeting, Path) else meeting
    distributed.init_process_group(_backend(device), rank=rank, world_size=world_size, timeout=TIMEOUT, store=store)


def _backend(device: torch.device) -> str:
    """NCCL between GPUs, of which this process uses `device` from now on; gloo between CPU processes."""
    if device.type != "cuda":
        return "gloo"
    torch.cuda.set_device(device if device.index is not None else torch.cuda.current_device())
    return "nccl"


def destroy_process_group() -> None:
    """Leave the process group, whatever became of the other processes."""
    if is_initialized():
        distributed.destroy_process_group()


def is_initialized() -> bool:
    """Whether this process belongs to a group."""
    return distributed.is_available() and distributed.is_initialized()


def world_size() -> int:
    """The number of processes that train together."""
    return distributed.get_world_size() if is_initialized() else 1


def rank() -> int:
    """The index of this process among them, from 0."""
    return distributed.get_rank() if is_initialized() else 0


def barrier() -> None:
    """Wait until every process has come this far."""
    if world_size() > 1:
        distributed.barrier()


def broadcast(tensor: Tensor, owner: int) -> None:
    """Give every process the values that the tensor has on rank `owner`."""
    if world_size() > 1:
        distributed.broadcast(tensor, owner)


def broadcast_parameters(weights: Iterable[nn.Parameter]) -> None:
    """Give every process the weights of rank 0."""
    for weight in weights:
        if not isinstance(weight, DTensor):  # each process has its slice of rank 0's weights already
            broadcast(weight.data, 0)


def all_reduce_sum(value: float, device: torch.device) -> float:
    """The sum of a number over all processes."""
    if world_size() == 1:
        return value
    total = torch.tensor(value, dtype=torch.float64, device=device)
    distributed.all_reduce(total)
    return float(total)


def all_reduce_min(value: int, device: torch.device) -> int:
    """The smallest of a number over all processes."""
    if world_size() == 1:
        return value
    smallest = torch.tensor(value, device=device)
    distributed.all_reduce(smallest, op=distributed.ReduceOp.MIN)
    return int(smallest)


def any_rank(device: torch.device, *, condition: bool) -> bool:
    """Whether the condition holds on any process: all must save, score and stop after the same step."""
    return all_reduce_sum(float(condition), device) > 0


def sum_gradients(weights: Iterable[nn.Parameter]) -> None:
    """Add up the gradients of all processes, in one message per device and number format.

    Ranks may have run different numbers of micro-batches, which DistributedDataParallel does not support. Those of
    sharded weights are summed in the backward pass.
    """
    whole_weights = [weight for weight in weights if not isinstance(weight, DTensor)]
    if world_size() == 1 or not whole_weights:
        return
    gradients: list[Tensor] = []
    for weight in whole_weights:
        if weight.grad is None:
            weight.grad = torch.zeros_like(weight)
        gradients.append(weight.grad)
    flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
    distributed.all_reduce(flat)
    offset = 0
    for gradient in gradients:
        gradient.copy_(flat[offset : offset + gradient.numel()].view_as(gradient))
        offset += gradient.numel()
