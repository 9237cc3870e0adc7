"""Which device and number format to work with, seeding, and what a run costs. The only torch in the core."""

from __future__ import annotations

import ctypes
import os
import random
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil

# oneDNN keeps the kernels of 1,024 products, a third of a MiB each, and samples of ever new lengths fill that. A few
# passes' worth is as quick; fewer than one pass uses is not. It reads this once, with its first product.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "256")

import torch

CPU_TOKENS = 1024  # of one pass: more side by side is no faster on a CPU, and keeps more activations


def _load_bitsandbytes() -> None:
    """Load it before PEFT does, and without torch's compiler.

    It asks `torch.compile` for a few functions that stand in where a device has none of its own, and keeps them plain
    where that fails. The compiler alone would cost 42 MiB and most of a second at every start.
    """
    compiler, torch.compile = torch.compile, None  # type: ignore[assignment]
    try:
        import bitsandbytes  # noqa: F401
    finally:
        torch.compile = compiler


_load_bitsandbytes()


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


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Let torch compute on so many threads meanwhile."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


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


def free_memory(device: torch.device) -> int:
    """Bytes that are free now."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return int(psutil.virtual_memory().available)


@dataclass
class Rise:
    """Bytes held before some work, and the most held during it beyond them."""

    before: int = 0
    rise: int = 0


@contextmanager
def watch_memory(device: torch.device) -> Iterator[Rise]:
    """How far memory rises during the work; the figures are there when it is done.

    In main memory, what was freed earlier is handed back first: the allocator would serve the work from it unseen.
    """
    found = Rise()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        found.before = current_memory(device)
        yield found
        found.rise = peak_memory(device) - found.before
        return
    hand_back_freed_memory()
    restarted = _restart_high_water()
    found.before = current_memory(device)
    yield found
    found.rise = max(0, (_high_water() if restarted else peak_memory(device)) - found.before)


def hand_back_freed_memory() -> None:
    """Let the allocator return main memory it holds free, so far as it can; only glibc's is told so."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc alone has it
    if trim is not None:
        trim(0)


def _restart_high_water() -> bool:
    """Begin anew with the most memory this process ever held (Linux, proc(5)); False where that cannot be."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def _high_water() -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


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
