"""Compile and load fake_cuda.cpp. To be called before torch is imported."""

from __future__ import annotations

import ctypes
import importlib.util
import subprocess
from pathlib import Path

SOURCE = Path(__file__).with_name("fake_cuda.cpp")


def compile_library(folder: Path) -> Path:
    """The shared library, compiled by g++ in three seconds."""
    torch = _torch_folder()
    library = folder / "fake_cuda.so"
    includes = [f"-I{torch / 'include'}", f"-I{torch / 'include/torch/csrc/api/include'}"]
    links = [f"-L{torch / 'lib'}", "-ltorch_cpu", "-lc10"]
    command = ["g++", "-std=c++20", "-O0", "-fPIC", "-shared", *includes, str(SOURCE), "-o", str(library), *links]
    subprocess.run(command, check=True, capture_output=True, text=True)
    return library


def load_library(library: Path) -> None:
    """torch's own libraries first, on which it depends."""
    for name in ("libc10.so", "libtorch_cpu.so"):
        ctypes.CDLL(str(_torch_folder() / "lib" / name), ctypes.RTLD_GLOBAL)
    ctypes.CDLL(str(library))


def _torch_folder() -> Path:
    found = importlib.util.find_spec("torch")
    assert found is not None
    assert found.origin is not None
    return Path(found.origin).parent
