"""What the machine offers, asked in ways that exist on every platform. No torch."""

from __future__ import annotations

import ctypes
import importlib
import os
import sys
from pathlib import Path

import psutil

_STATUS = Path("/proc/self/status")


def cpu_count() -> int:
    """CPU cores this process may use; at least 1."""
    affinity = getattr(psutil.Process(), "cpu_affinity", None)  # not on macOS
    return max(1, len(affinity()) if affinity is not None else os.cpu_count() or 1)


def total_memory() -> int:
    """Bytes of main memory."""
    return int(psutil.virtual_memory().total)


def free_memory() -> int:
    """Bytes of main memory that can be taken without swapping."""
    return int(psutil.virtual_memory().available)


def resident_memory() -> int:
    """Bytes of main memory this process holds now."""
    return int(psutil.Process().memory_info().rss)


def peak_memory() -> int:
    """Bytes: the most main memory this process has held; what it holds now where the system keeps no maximum."""
    info = psutil.Process().memory_info()
    peak = _linux_peak() or getattr(info, "peak_wset", 0) or _rusage_peak()
    return max(int(peak), int(info.rss))


def restart_peak_memory() -> bool:
    """Forget the maximum so far (Linux, proc(5)); False where that is impossible."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def release_freed_memory() -> None:
    """Ask the C library to return freed memory to the system; only glibc can be asked."""
    if not sys.platform.startswith("linux"):
        return
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def limit_address_space(limit: int) -> None:
    """Refuse this process more than `limit` bytes of address space, where the system supports it (not on Windows)."""
    try:
        resource = importlib.import_module("resource")
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        soft = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    except (ImportError, AttributeError, OSError, ValueError):  # macOS knows the limit but refuses to lower it
        return


def _linux_peak() -> int:
    try:
        lines = _STATUS.read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")), 0)


def _rusage_peak() -> int:
    """getrusage(2): macOS counts bytes, the other systems KiB."""
    try:
        resource = importlib.import_module("resource")
        peak = int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    except (ImportError, AttributeError):
        return 0
    return peak if sys.platform == "darwin" else peak * 1024
