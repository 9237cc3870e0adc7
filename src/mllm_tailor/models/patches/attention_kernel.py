"""Attention in float32 on one thread of a CPU with AVX2, in C (`attention_kernel.c`): built once, kept in the cache.

It serves training, and decoding steps whose rows share prompts (`generation.shared_prefix_attention`). torch's kernel
multiplies small matrices through a library, takes exponentials that are exact to the last bit, and computes up to a
third of causal scores in vain. Here products of six rows stay in registers, blocks of scores in the first two caches,
and what no query sees is left out; one head after the other, with the blocks of FlashAttention-2 (Dao 2023, 2307.08691,
algorithm 2). Differences from torch are a few units of float32's last place.

Without a C compiler, or where torch has wider vectors or several threads, torch's own kernel is used. The choice
follows from the machine, not from a measurement, so that a training that is resumed computes the same bits.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from ctypes import c_float, c_int64, c_void_p
from pathlib import Path

import torch
from torch import Tensor

from mllm_tailor.core.io import atomic_file, cache_folder

logger = logging.getLogger(__name__)

SOURCE = Path(__file__).with_suffix(".c")
FLAGS = ("-O3", "-march=native", "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math", "-shared", "-fPIC")
COMPILERS = ("cc", "gcc", "clang")
MULTIPLE = 16  # of the width of a head
MAX_SECONDS = 60  # for the compiler


class _Side(ctypes.Structure):
    _fields_ = (("first", c_void_p), ("token", c_int64), ("head", c_int64))

    @classmethod
    def of(cls, tensor: Tensor) -> _Side:
        """(tokens, heads, width)."""
        return cls(tensor.data_ptr(), tensor.stride(0), tensor.stride(1))


class _Shape(ctypes.Structure):
    _fields_ = (
        ("heads", c_int64), ("groups", c_int64), ("queries", c_int64), ("keys", c_int64), ("width", c_int64),
        ("scale", c_float), ("causal", c_int64),
    )  # fmt: skip


class _Prompt(ctypes.Structure):
    _fields_ = (
        ("keys", c_void_p), ("values", c_void_p), ("tokens", c_int64), ("start", c_int64), ("rows", c_int64)
    )  # fmt: skip


class _Cache(ctypes.Structure):
    _fields_ = (("first", c_void_p), ("row", c_int64), ("head", c_int64), ("column", c_int64))

    @classmethod
    def of(cls, tensor: Tensor) -> _Cache:
        """(rows, heads, columns, width)."""
        return cls(tensor.data_ptr(), *tensor.stride()[:3])


class Kernel:
    """The functions of the built library; queries, keys and values are (tokens, heads, width)."""

    def __init__(self, library: Path) -> None:
        functions = ctypes.CDLL(str(library))
        self._size, self._forward, self._backward = (
            functions.scratch_size, functions.attention_forward, functions.attention_backward
        )  # fmt: skip
        self._size.argtypes, self._size.restype = [c_int64] * 3, c_int64
        self._forward.argtypes = [_Side] * 4 + [c_void_p, _Shape, c_void_p]
        self._backward.argtypes = [_Side] * 5 + [c_void_p] + [_Side] * 3 + [_Shape, c_void_p]
        self._forward.restype = self._backward.restype = None
        self._step_size, self._step = functions.step_scratch_size, functions.attention_step
        self._step_size.argtypes, self._step_size.restype = [c_int64] * 4, c_int64
        self._step.argtypes = [c_void_p, c_int64, _Side, _Cache, _Cache, c_void_p, c_void_p, _Shape, c_void_p]
        self._step.restype = None

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, scale: float, *, causal: bool
    ) -> tuple[Tensor, Tensor]:
        """The output, and the logarithms of the sums of exponentials (heads, queries)."""
        output, sums = query.new_empty(query.shape), query.new_empty(query.shape[1], query.shape[0])
        sides = map(_Side.of, (query, key, value, output))
        shape, scratch = _shape(query, key, scale, causal=causal), self._scratch(query, key)
        self._forward(*sides, sums.data_ptr(), shape, scratch.data_ptr())
        return output, sums

    def backward(
        self,
        gradient: Tensor,
        inputs: tuple[Tensor, Tensor, Tensor],
        output: Tensor,
        sums: Tensor,
        scale: float,
        *,
        causal: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of query, key and value."""
        query, key, _ = inputs
        found = query.new_empty(query.shape), key.new_empty(key.shape), key.new_empty(key.shape)
        sides = map(_Side.of, (gradient, *inputs, output))
        shape, scratch = _shape(query, key, scale, causal=causal), self._scratch(query, key)
        self._backward(*sides, sums.data_ptr(), *map(_Side.of, found), shape, scratch.data_ptr())
        return found

    def step(
        self,
        prompts: Sequence[tuple[slice, Tensor, Tensor]],
        query: Tensor,
        own: tuple[Tensor, Tensor],
        scale: float,
        visible: Tensor | None,
    ) -> Tensor:
        """(rows, heads, width) for one query of each row and head, as a decoding step has them.

        `prompts`: neighbouring rows, and the keys (heads, width, tokens) and values (heads, tokens, width) of the
        prompt that they share, contiguous. `own`: the rows' own keys and values (rows, heads, columns, width), of
        which `visible` (rows, columns) bool counts, default all.
        """
        key, value = own
        rows, heads, width = query.shape
        columns = key.shape[2]
        output = query.new_empty(query.shape)
        shape = _Shape(heads, heads // key.shape[1], 1, columns, width, scale, 0)
        table = (_Prompt * len(prompts))(
            *(
                _Prompt(keys.data_ptr(), values.data_ptr(), values.shape[1], span.start, span.stop - span.start)
                for span, keys, values in prompts
            )
        )
        queries = max(span.stop - span.start for span, _, _ in prompts) * shape.groups
        tokens = max(values.shape[1] for _, _, values in prompts)
        scratch = query.new_empty(self._step_size(queries, tokens, columns, width))
        seen = None if visible is None else visible.expand(rows, columns).contiguous()
        self._step(
            table, len(prompts), _Side.of(query), _Cache.of(key), _Cache.of(value),
            None if seen is None else seen.data_ptr(), output.data_ptr(), shape, scratch.data_ptr(),
        )  # fmt: skip
        return output

    def _scratch(self, query: Tensor, key: Tensor) -> Tensor:
        return query.new_empty(self._size(len(query), len(key), query.shape[2]))


def _shape(query: Tensor, key: Tensor, scale: float, *, causal: bool) -> _Shape:
    heads = query.shape[1]
    return _Shape(heads, heads // key.shape[1], len(query), len(key), query.shape[2], scale, int(causal))


def kernel_for(*tensors: Tensor) -> Kernel | None:
    """The kernel, if it computes attention of such sides; None: torch is to."""
    fits = all(
        tensor.dtype == torch.float32 and tensor.stride(-1) == 1 and tensor.shape[-1] % MULTIPLE == 0
        for tensor in tensors
    )
    return kernel() if fits and torch.get_num_threads() == 1 else None


@functools.cache
def kernel() -> Kernel | None:
    """The kernel of this machine; None where torch's is as fast, or no compiler is at hand."""
    if torch.backends.cpu.get_cpu_capability() != "AVX2":
        return None
    try:
        return Kernel(_build())
    except (OSError, subprocess.SubprocessError) as error:
        logger.debug("Attention by torch: the kernel in C cannot be built (%s)", error)
        return None


def _build() -> Path:
    """The shared library for this source, compiler and CPU, from the cache or built now.

    Raises:
        OSError: without a compiler, or where the cache cannot be written.
        subprocess.SubprocessError: when the compiler fails.
    """
    compiler = os.environ.get("CC") or next(filter(None, map(shutil.which, COMPILERS)), None)
    if compiler is None or sys.platform == "win32":
        raise OSError("no C compiler")
    known = f"{compiler} {FLAGS} {_cpu()}".encode() + SOURCE.read_bytes()
    library = cache_folder() / "kernels" / f"attention-{hashlib.sha256(known).hexdigest()[:24]}.so"
    if not library.is_file():
        library.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(library) as partial:
            command = [*compiler.split(), *FLAGS, "-o", str(partial), str(SOURCE), "-lm"]
            subprocess.run(command, check=True, capture_output=True, timeout=MAX_SECONDS)
    return library


def _cpu() -> str:
    """What tells CPUs apart that share a cache: their instructions."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        lines = []
    return next((line for line in lines if line.startswith("flags")), sys.platform)
