"""What each optimisation of a training step saves: the same passes with one of them left out, in turns.

    python benchmarks/savings.py
    python benchmarks/savings.py --rounds 5
    python benchmarks/savings.py --full      # every weight trained, vision tower included

Four drawn receipts through the embedded model with LoRA on its language part, forward and backward, as a training makes
its passes, in bf16 where the CPU has it; CPU seconds of one thread, the best of the rounds. That each
leaves losses and gradients as they are is tested (tests/training/test_equivalences.py, tests/training/test_loop.py,
tests/training/test_fused_layers.py, tests/models/test_attention.py, tests/models/test_attention_kernel.py); in bf16 the
losses differ by its rounding. Results, by precision: benchmarks/results/savings.json.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from rich.console import Console
from rich.table import Table
from torch.nn import functional
from train import QUICK, prepare

from mllm_tailor.core.device import Stopwatch, computes_in_bf16, describe_machine, seed_everything
from mllm_tailor.core.io import write_json
from mllm_tailor.methods import make_method
from mllm_tailor.models import LoadedModel, collate, encode, load_model
from mllm_tailor.models.patches import cpu_attention, last_layer
from mllm_tailor.models.patches.fused_layers import fused_layers
from mllm_tailor.models.patches.fused_lora import fused_lora
from mllm_tailor.models.vision_cache import image_features
from mllm_tailor.recipe import make_recipe
from mllm_tailor.training import batches as feed
from mllm_tailor.training.batches import collate_right
from mllm_tailor.training.memory import CPU_PADDING, CPU_TOKENS
from mllm_tailor.training.objectives import cross_entropy as losses
from mllm_tailor.training.precision import autocast
from mllm_tailor.training.sampler import micro_batches
from mllm_tailor.training.trainable import set_train_mode
from mllm_tailor.training.vision_cache import as_inputs

sys.path.insert(0, str(Path(__file__).parent / "trainers"))
from ours import samples_of

OF_FULL = ("ours", "blocks", "layers")  # what concerns a training of every weight
FULL = {"name": "full", "parts": ["vision", "projector", "language", "head"]}
LORA = {"name": "lora", "rank": 16, "alpha": 32, "dropout": 0.0, "parts": ["language"]}
RESULTS = Path(__file__).parent / "results" / "savings.json"
SAMPLES = 4
WAYS = {
    "ours": "",
    "cache": "vision tower run in each pass",
    "frozen": "the same, and in the graph",
    "padding": "passes of any lengths up to 4,096 tokens, with a mask",
    "logits": "logits, and so the last layer, at every position",
    "last layer": "last layer at every position",
    "products": "LoRA as PEFT computes it",
    "sdpa": "eager attention",
    "blocks": "torch's own attention",
    "layers": "layers as transformers computes them, LoRA in place",
    "few lengths": "lengths not met before, so that kernels are built anew",
}


def full_logits(network: Any, batch: dict[str, Any]) -> tuple[torch.Tensor, int]:
    """The answers' loss the usual way: logits of the whole vocabulary at every position, most of them thrown away."""
    inputs = dict(batch)
    labels = inputs.pop("labels")[:, 1:]
    logits = network(**inputs, use_cache=False).logits[:, :-1].float()
    return functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum"), int((labels >= 0).sum())


class MicroBatches:
    """The passes of one step, with or without one thing."""

    def __init__(self, folder: Path, *, full: bool = False) -> None:
        words, self.full = FULL if full else LORA, full
        self.model: LoadedModel = load_model(folder / "model", dtype="auto")
        self.new = itertools.count(33, 2)
        self.bf16 = computes_in_bf16("auto", self.model.device)
        seed_everything(0)
        make_method(make_recipe({"data": "unused", "task": "answer", "method": words})).apply(self.model)
        set_train_mode(self.model)
        rows = [json.loads(line) for line in (folder / "unique.jsonl").read_text("utf-8").splitlines()]
        self.items = [encode(sample, self.model) for sample in samples_of(rows[:SAMPLES])]
        self.features = (
            []
            if full
            else [
                image_features(self.model, item.media["pixel_values"], bf16=self.bf16).flatten(0, 1)
                for item in self.items
            ]
        )

    def batches(self, without: str) -> Iterator[dict[str, Any]]:
        """Each pass's inputs, pictures as features or as pixels."""
        lengths = [item.length for item in self.items]
        usual = without == "padding"
        budget, padding = (4096, None) if usual else (CPU_TOKENS, CPU_PADDING)
        for places in micro_batches(
            range(SAMPLES), lengths, max_samples=None, token_budget=budget, max_padding=padding
        ):
            items = [self.items[place] for place in places]
            batch = collate(items, self.model) if usual else collate_right(items, self.model)
            if without == "frozen":
                batch["pixel_values"].requires_grad_()
            elif without != "cache" and not self.full:
                del batch["pixel_values"]
                batch["image_features"] = torch.cat([self.features[place] for place in places])[None]
            yield as_inputs(batch)

    @contextmanager
    def way(self, without: str) -> Iterator[None]:
        """The network as it is while one thing is left out."""
        network = self.model.model
        network.set_attn_implementation("eager" if without == "sdpa" else cpu_attention.NAME)
        fused = {"products": lambda _: nullcontext(), "layers": fused_lora}.get(without, fused_layers)
        with ExitStack() as stack:
            stack.enter_context(fused(network))
            if without == "last layer":
                stack.enter_context(patch.object(last_layer, "MIN_SKIPPED", 1 << 40))
            if without == "few lengths":
                stack.enter_context(patch.object(feed, "LENGTH_MULTIPLE", next(self.new)))
            stack.enter_context(cpu_attention.torch_attention() if without == "blocks" else nullcontext())
            yield

    def seconds(self, without: str) -> tuple[float, float]:
        """Processor seconds of the step, and its loss."""
        loss = full_logits if without == "logits" else losses.answer_loss
        self.model.model.zero_grad(set_to_none=True)
        summed = 0.0
        with self.way(without):
            watch = Stopwatch()
            for batch in self.batches(without):
                with autocast(self.model.device, bf16=self.bf16):
                    found = loss(self.model.model, batch)[0]
                found.backward()
                summed += float(found.detach())
            return watch.cpu_seconds(), summed


def measure(rounds: int, left_out: Sequence[str] = tuple(WAYS), *, full: bool = False) -> list[dict[str, Any]]:
    """One row for everything left out, and one for ours: seconds of each round, loss, and the least seconds to ours."""
    chosen = [name for name in dict.fromkeys(["ours", *left_out]) if not full or name in OF_FULL]
    with tempfile.TemporaryDirectory() as folder:
        prepare(QUICK, Path(folder))
        passes = MicroBatches(Path(folder), full=full)
    passes.seconds("ours")
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in chosen}
    for number in range(rounds):
        for name in chosen if number % 2 == 0 else reversed(chosen):
            found[name].append(passes.seconds(name))
            print(f"round {number + 1}: {name} {found[name][-1][0]:.2f} s", file=sys.stderr, flush=True)
    best = {name: min(seconds for seconds, _ in runs) for name, runs in found.items()}
    return [
        {
            "left_out": name,
            "instead": WAYS[name],
            "to_ours": best[name] / best["ours"],
            "loss": runs[0][1],
            "seconds": [seconds for seconds, _ in runs],
        }
        for name, runs in found.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=list(WAYS), default=list(WAYS), help="beside ours")
    parser.add_argument("--full", action="store_true", help="every weight is trained, as the receipt recipe does")
    arguments = parser.parse_args()
    part = "full" if arguments.full else "lora"
    torch.set_num_threads(1)
    rows = measure(arguments.rounds, arguments.only, full=arguments.full)
    table = Table(
        "left out", "instead", "seconds a step", "to ours", "loss", title="What each saves", title_justify="left"
    )
    for row in rows:
        table.add_row(
            row["left_out"] if row["instead"] else "nothing",
            row["instead"],
            f"{min(row['seconds']):.2f}",
            f"{row['to_ours']:.2f}",
            f"{row['loss']:.4f}",
        )
    Console(width=140).print(table)
    stored = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    precision = "bf16" if computes_in_bf16("auto", torch.device("cpu")) else "float32"
    own, run = stored.get(precision, {}), {row["left_out"] for row in rows}
    kept = [row for row in own.get(part, []) if row["left_out"] not in run]  # each is a ratio to ours of its own run
    facts = {"machine": describe_machine(), "receipts": SAMPLES, part: kept + rows}
    write_json(RESULTS, {**stored, precision: {**own, **facts}})


if __name__ == "__main__":
    main()
