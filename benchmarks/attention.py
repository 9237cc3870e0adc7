"""Ways of computing attention on this CPU in bf16, compared: torch's kernel, blocks of queries, plain products.

    python benchmarks/attention.py

A table by shape: CPU milliseconds of one thread for the forward and the backward pass, medians of interleaved rounds,
and the way that `mllm_tailor.models.patches.cpu_attention` chooses here. Results: benchmarks/results/attention.json.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import NamedTuple

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from mllm_tailor.core.device import Stopwatch, describe_machine, has_matrix_tiles
from mllm_tailor.core.io import write_json
from mllm_tailor.models.patches.cpu_attention import FEW_TOKENS, BlockedAttention

RESULTS = Path(__file__).parent / "results" / "attention.json"
ROUNDS = 7
HEADS = 8


class Shape(NamedTuple):
    """What is attended to: `tokens` of each of `samples`, heads of `width` channels."""

    of: str
    samples: int
    tokens: int
    width: int
    causal: bool


SHAPES = (
    Shape("tower, patches of 28 px", 4, 257, 32, False),
    Shape("tower, patches of 14 px", 2, 1025, 32, False),
    Shape("language model, a receipt", 1, 700, 32, True),
    Shape("language model, a transcript too", 1, 1500, 32, True),
    Shape("language model, wider heads", 1, 1500, 64, True),
)


def by_torch(query: Tensor, key: Tensor, value: Tensor, causal: bool) -> Tensor:
    return nn.functional.scaled_dot_product_attention(query, key, value, is_causal=causal)


def in_blocks(query: Tensor, key: Tensor, value: Tensor, causal: bool) -> Tensor:
    return BlockedAttention.apply(query, key, value, query.shape[-1] ** -0.5, causal)


def plainly(query: Tensor, key: Tensor, value: Tensor, causal: bool) -> Tensor:
    scores = (query * query.shape[-1] ** -0.5) @ key.transpose(2, 3)
    if causal:
        scores = scores + torch.full(scores.shape[-2:], -torch.inf, dtype=scores.dtype).triu(1)
    return scores.softmax(-1) @ value


WAYS: dict[str, Callable[..., Tensor]] = {"torch": by_torch, "blocks": in_blocks, "plain": plainly}


def timed(way: Callable[..., Tensor], shape: Shape) -> tuple[float, float]:
    """CPU milliseconds of a forward and of a backward pass."""
    size = (shape.samples, HEADS, shape.tokens, shape.width)
    inputs = [torch.randn(size, dtype=torch.bfloat16, requires_grad=True) for _ in range(3)]
    pull = torch.randn(size, dtype=torch.bfloat16)
    watch = Stopwatch()
    output = way(*inputs, shape.causal)
    forward = watch.cpu_seconds()
    output.backward(pull)
    return 1e3 * forward, 1e3 * (watch.cpu_seconds() - forward)


def chosen(shape: Shape) -> str:
    """The way that the package takes on this CPU."""
    if not has_matrix_tiles():
        return "blocks"
    return "plain" if not shape.causal and shape.tokens <= FEW_TOKENS else "torch"


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    table = Table("shape", *(f"{name}: forward, backward (ms)" for name in WAYS), "chosen")
    rows = []
    for shape in SHAPES:
        rounds: dict[str, list[tuple[float, float]]] = {name: [] for name in WAYS}
        for number in range(ROUNDS + 1):
            for name, way in WAYS.items():
                if number:  # kernels are built in the first
                    rounds[name].append(timed(way, shape))
                else:
                    timed(way, shape)
        found = {name: [round(median(part), 2) for part in zip(*times, strict=True)] for name, times in rounds.items()}
        rows.append({**shape._asdict(), "milliseconds": found, "chosen": chosen(shape)})
        table.add_row(shape.of, *(f"{first:.1f}, {second:.1f}" for first, second in found.values()), chosen(shape))
    Console().print(table)
    write_json(RESULTS, {"machine": describe_machine(), "rounds": ROUNDS, "shapes": rows})


if __name__ == "__main__":
    main()
