"""Which device and number format to work with, seeding, and what a run costs. The only torch in the core."""

from __future__ import annotations

import os
import random
import resource
import time
from dataclasses import dataclass, field

import numpy as np
import psutil
import torch


def pick_device(wanted: str | torch.device | None = None) -> torch.device:
    """The wanted device, or the first GPU, or the CPU."""
    if wanted:
        return torch.device(wanted)
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def fast_bf16(device: torch.device) -> bool:
    """Whether bf16 matrix products run in hardware here; elsewhere bf16 is emulated and slower than fp32."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    check = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return bool(check and check())


def computes_in_bf16(dtype: str, device: torch.device) -> bool:
    """`model.dtype: float32` keeps every product in float32; otherwise bf16 is used where it is fast."""
    return dtype != "float32" and fast_bf16(device)


def seed_everything(seed: int) -> None:
    """Python, NumPy and torch, on every device."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def peak_memory(device: torch.device) -> int:
    """Bytes: the most this process ever held, on the GPU if it works there and in main memory otherwise."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def current_memory(device: torch.device) -> int:
    """Bytes held now."""
    if device.type == "cuda":
        return int(torch.cuda.memory_allocated(device))
    return int(psutil.Process().memory_info().rss)


@dataclass
class Stopwatch:
    """Seconds of wall and processor time since it was made."""

    wall: float = field(default_factory=time.perf_counter)
    cpu: float = field(default_factory=time.process_time)

    def seconds(self) -> float:
        """Wall seconds so far."""
        return time.perf_counter() - self.wall

    def cpu_seconds(self) -> float:
        """Processor seconds of this process so far."""
        return time.process_time() - self.cpu


def describe_machine() -> dict[str, object]:
    """The facts a reader needs to judge a measured second or byte."""
    facts: dict[str, object] = {
        "cpu_cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "torch_threads": torch.get_num_threads(),
        "bf16_in_hardware": fast_bf16(pick_device()),
    }
    if torch.cuda.is_available():
        facts["gpu"] = torch.cuda.get_device_name()
    return facts
