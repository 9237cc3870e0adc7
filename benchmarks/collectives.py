"""What processes say to each other in a step: bytes by strategy and number of processes, from 1 to 64.

    python benchmarks/collectives.py --save

One process runs the product's own training as rank 0 of N. Its collectives are replaced: their bytes are counted, and
nothing is sent. A ring sends (N-1)/N of a message for an all-gather or a reduce-scatter and twice that for an
all-reduce (Thakur et al. 2005, doi 10.1177/1094342005051521, section 4). The counts are compared with the formula of
docs/scale.md, which then gives the bytes of a model of published size; the command fails when they differ.
"""

from __future__ import annotations

import argparse
import tempfile
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from gpu_parts import SIZES, VOCABULARY, build_model, make_samples, make_settings
from rich.console import Console
from rich.table import Table
from torch import Tensor, distributed
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode

from mllm_tailor.core.conversation import as_conversation
from mllm_tailor.core.device import describe_machine
from mllm_tailor.core.io import human_bytes, write_json
from mllm_tailor.methods import make_method
from mllm_tailor.models import load_model
from mllm_tailor.training import TrainingConfig, TrainingEvent, TrainingHooks, train
from mllm_tailor.training.loop import Training

RESULTS = Path(__file__).parent / "results" / "collectives.json"
RANKS = (1, 2, 4, 8, 16, 32, 64)
SMALL = 64  # bytes: messages up to here carry a loss or a flag
SLACK = 1e-6  # of the bytes: nothing but rounding
STRATEGIES = [(method, shard) for method in ("lora", "qlora", "full") for shard in ("none", "fsdp")]
GATHER = {torch.ops.c10d._allgather_base_.default}
SCATTER = {torch.ops.c10d._reduce_scatter_base_.default}
REDUCE = {torch.ops.c10d.allreduce_.default}


class CountedCollectives(TorchDispatchMode):
    """Counts the bytes of a message's whole and lets every other rank hold what this one does."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in GATHER:
            output, source = args[0], args[1]
            self._count("all-gather", output)
            output.copy_(source.repeat(output.numel() // source.numel(), *[1] * (source.dim() - 1)).view_as(output))
        elif func in SCATTER:
            self._count("reduce-scatter", args[1])
            args[0].copy_(args[1].flatten()[: args[0].numel()].view_as(args[0]))
        elif func in REDUCE:
            for tensor in args[0]:
                self._count("all-reduce", tensor)
        return func(*args, **(kwargs or {}))

    def _count(self, name: str, tensor: Tensor) -> None:
        size = tensor.numel() * tensor.element_size()
        if size > SMALL:
            self.bytes[name] += size


def sent(messages: Counter[str], ranks: int) -> float:
    """Bytes that a rank sends in a ring for these messages."""
    share = (ranks - 1) / ranks
    return share * (2 * messages["all-reduce"] + messages["all-gather"] + messages["reduce-scatter"])


@dataclass(frozen=True)
class Sizes:
    """Bytes of a model's weights, by how they are gathered, and of its gradients."""

    layers: int  # of the transformer layers, gathered in the forward and again in the backward pass
    rest: int  # everything else, gathered once a pass
    gradients: int

    def formula(self, ranks: int, shard: str, passes: int) -> float:
        """Bytes that a rank sends in a step of so many passes for each rank."""
        share = (ranks - 1) / ranks
        if shard == "none":
            return share * 2 * self.gradients
        return share * passes * (2 * self.layers + self.rest + self.gradients)


def sizes_of(network: torch.nn.Module, slices: int) -> Sizes:
    """Of a model with a method applied, its weights padded to so many equal slices of rows.

    A frozen vision tower runs once, before the steps, which do not gather it.
    """
    layers = rest = gradients = 0
    weights = dict(network.named_parameters())
    tower_runs = any("vision_tower" in name and weight.requires_grad for name, weight in weights.items())
    for name, weight in weights.items():
        if "vision_tower" in name and ".layer." in name and not tower_runs:
            continue
        rows = weight.shape[0] if weight.dim() else 1
        size = -(-rows // slices) * slices * weight.numel() // rows * weight.element_size()
        if ".layers." in name or ".layer." in name:
            layers += size
        else:
            rest += size
        gradients += size if weight.requires_grad else 0
    return Sizes(layers, rest, gradients)


def count_step(folder: Path, work: Path, method_name: str, shard: str, ranks: int) -> tuple[float, Sizes]:
    """Bytes that rank 0 of so many sends in its second step, one pass each, and the sizes they follow from."""
    distributed.init_process_group("fake", rank=0, world_size=ranks, store=FakeStore())
    recipe = make_settings(method_name, steps=2, dtype="float32", tiles=2, batch_size=ranks)
    settings = recipe.train.model_copy(update={"micro_batch_size": 1, "shard": shard, "checkpoint_every": 60})
    recipe = recipe.model_copy(update={"train": settings})
    method = make_method(recipe)
    model = load_model(folder, dtype="float32", device="cpu", quantize=method.quantize)
    method.apply(model)
    sizes = sizes_of(model.model, ranks if shard == "fsdp" else 1)
    counted: list[Counter[str]] = []

    with CountedCollectives() as mode:

        def on_event(event: TrainingEvent) -> None:
            if event.kind == "step":
                counted.append(mode.bytes)
                mode.bytes = Counter()

        (sample,) = make_samples(work / "pictures", 1, (1, 2))
        samples = [as_conversation(replace(sample, id=str(number))) for number in range(ranks)]
        run = work / f"{method_name}-{shard}-{ranks}"
        with mock.patch.object(Training, "_save", lambda _: None):  # other ranks would have to write their slices
            train(model, samples, TrainingConfig.from_recipe(recipe), run, TrainingHooks(on_event=on_event))
    distributed.destroy_process_group()
    return sent(counted[1], ranks), sizes


def published_sizes(method_name: str) -> Sizes:
    """Of the 2B architecture of gpu.py: frozen weights in bf16 or NF4, trained ones in float32."""
    sizes: Any = SIZES[False]
    text, vision = sizes["text"], sizes["vision"]
    width, inner = text["hidden_size"], text["intermediate_size"]
    layer = 2 * width * width + 2 * width * (width // 2) + 3 * width * inner
    language = text["num_hidden_layers"] * layer
    tower = vision["num_hidden_layers"] * (4 * vision["hidden_size"] ** 2 + 2 * vision["hidden_size"] * 4096)
    rest = 2 * VOCABULARY * width + (4 * vision["hidden_size"] + width) * width
    if method_name == "full":
        return Sizes(4 * (language + tower), 4 * rest, 4 * (language + tower + rest))
    factors = 16 * text["num_hidden_layers"] * (2 * (width + width) + 2 * (width + width // 2) + 3 * (width + inner))
    # NF4: 4 bits and, for each 64 weights, an 8-bit scale; scales are not gathered.
    frozen = round(language * (0.5 if method_name == "qlora" else 2))
    return Sizes(frozen + 4 * factors, 2 * rest, 4 * factors)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--save", action="store_true", help=f"write {RESULTS.name}")
    parser.add_argument("--ranks", type=int, nargs="+", default=RANKS)
    arguments = parser.parse_args()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work) / "model"
        build_model(folder, torch.device("cpu"), torch.float32, tiny=True)
        for method, shard in STRATEGIES:
            for ranks in arguments.ranks:
                counted, sizes = count_step(folder, Path(work), method, shard, ranks)
                wanted = sizes.formula(ranks, shard, passes=1)
                published = published_sizes(method).formula(ranks, shard, passes=1)
                rows.append(
                    {
                        "method": method,
                        "shard": shard,
                        "ranks": ranks,
                        "counted_bytes": round(counted),
                        "formula_bytes": round(wanted),
                        "published_2b_bytes": round(published),
                    }
                )
    table = Table("method", "shard", "ranks", "counted", "formula", "2B by the formula")
    for row in rows:
        cells = [human_bytes(row[name]) for name in ("counted_bytes", "formula_bytes", "published_2b_bytes")]
        table.add_row(row["method"], row["shard"], str(row["ranks"]), *cells)
    Console().print(table)
    if arguments.save:
        write_json(RESULTS, {"machine": describe_machine(), "passes": 1, "rows": rows})
    wrong = [
        row for row in rows if abs(row["counted_bytes"] - row["formula_bytes"]) > SLACK * max(1, row["formula_bytes"])
    ]
    raise SystemExit(f"the formula does not hold: {wrong}" if wrong else 0)


if __name__ == "__main__":
    main()
