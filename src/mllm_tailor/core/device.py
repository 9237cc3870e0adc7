"""Device and number format, random seeds, memory and time. The only module of the core that loads torch."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch

from mllm_tailor.core import machine

CPU_TOKENS = 1024  # of one forward pass: more side by side is no faster on a CPU, and keeps more activations


def pick_device(wanted: str | torch.device | None = None) -> torch.device:
    """The wanted device, or the best there is: the GPU of this process, or the CPU.

    `LOCAL_RANK`, which torchrun sets, numbers the processes of one machine: each gets its own GPU.
    """
    if wanted and str(wanted) != "cuda":
        return torch.device(wanted)
    if not torch.cuda.is_available():
        return torch.device(wanted or "cpu")
    local_rank = os.environ.get("LOCAL_RANK")
    if local_rank is None:
        return torch.device("cuda")
    return torch.device("cuda", int(local_rank) % torch.cuda.device_count())


def fast_bf16(device: torch.device) -> bool:
    """Whether bf16 matrix products run in hardware here; elsewhere bf16 is emulated and slower than fp32."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    check = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return bool(check and check())


def has_matrix_tiles() -> bool:
    """Whether this CPU multiplies whole tiles of bf16 matrices (Intel AMX)."""
    check = getattr(torch.cpu, "_is_amx_tile_supported", None)
    return bool(check and check())


def computes_in_bf16(dtype: str, device: torch.device) -> bool:
    """`model.dtype: float32` keeps every product in float32; otherwise bf16 is used where it is fast."""
    return dtype != "float32" and fast_bf16(device)


def seed_everything(seed: int) -> None:
    """Python, NumPy and torch, on every device."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Torch computes on `count` threads inside the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def upload(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A copy of a CPU tensor on the device, for which the host does not wait; on a CPU the tensor itself.

    Only copies from pinned memory leave the host free: any other waits until the device has done all work before it.
    """
    if device.type != "cuda" or tensor.device.type != "cpu":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def peak_memory(device: torch.device) -> int:
    """Bytes: the most this process has held, on the GPU if `device` is a GPU, else in main memory."""
    return int(torch.cuda.max_memory_allocated(device)) if device.type == "cuda" else machine.peak_memory()


def current_memory(device: torch.device) -> int:
    """Bytes held now."""
    return int(torch.cuda.memory_allocated(device)) if device.type == "cuda" else machine.resident_memory()


def free_memory(device: torch.device) -> int:
    """Bytes that are free now."""
    return int(torch.cuda.mem_get_info(device)[0]) if device.type == "cuda" else machine.free_memory()


@dataclass
class MemoryRise:
    """Bytes held before some work, and the most held during it beyond them."""

    before: int = 0
    rise: int = 0


@contextmanager
def watch_memory(device: torch.device) -> Iterator[MemoryRise]:
    """How far memory rises during the block; the figures are there when it ends.

    Freed main memory is returned to the system first: the allocator would serve the work from it unnoticed.
    """
    result = MemoryRise()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        machine.release_freed_memory()
        machine.restart_peak_memory()
    result.before = current_memory(device)
    yield result
    result.rise = max(0, peak_memory(device) - result.before)


@dataclass
class Stopwatch:
    """Seconds of wall clock and CPU time since it was made."""

    wall: float = field(default_factory=time.perf_counter)
    cpu: float = field(default_factory=time.process_time)

    def seconds(self) -> float:
        """Wall seconds so far."""
        return time.perf_counter() - self.wall

    def cpu_seconds(self) -> float:
        """CPU seconds of this process so far."""
        return time.process_time() - self.cpu


def describe_machine() -> dict[str, object]:
    """The facts a reader needs to judge a measured second or byte."""
    facts: dict[str, object] = {
        "cpu_cores": machine.cpu_count(),
        "memory_gib": round(machine.total_memory() / 2**30, 1),
        "torch_threads": torch.get_num_threads(),
        "bf16_in_hardware": fast_bf16(pick_device()),
    }
    if torch.cuda.is_available():
        facts["gpu"] = torch.cuda.get_device_name()
    return facts
