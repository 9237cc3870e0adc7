"""What merging an adapter and rounding the sum to bfloat16 costs: LoRA beside DoRA, trained on drawn receipts.

    python benchmarks/merge.py                  # the embedded model, 40 receipts; about twenty minutes on one thread
    python benchmarks/merge.py --epochs 1       # quicker, a smaller update

The base is stored in bfloat16, as published models are, so all that rounding changes comes from the update. Everything
is computed in float32; only the merged weights are rounded. Results go to benchmarks/results/merge.json.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from rich.console import Console
from rich.table import Table

from mllm_tailor.commands.run import run_recipe
from mllm_tailor.commands.verify import agreement, observe
from mllm_tailor.core.device import describe_machine
from mllm_tailor.core.io import write_json
from mllm_tailor.core.sample import Sample
from mllm_tailor.methods import merge
from mllm_tailor.models import LoadedModel
from mllm_tailor.recipe import DecodingMode
from mllm_tailor.run.data_record import read_held_out
from mllm_tailor.run.predict import generate, open_base, open_tuned
from mllm_tailor.run.resolve import ResolvedRun, resolve
from mllm_tailor.run.run_dir import RunFolder
from mllm_tailor.run.scores import score_replies
from mllm_tailor.synthetic.folder import draw_folder

RESULTS = Path(__file__).parent / "results" / "merge.json"
OBSERVED = 4  # held-out samples whose logits and free replies are compared; all are scored
METHODS = {name: {"name": name, "rank": 32, "alpha": 64, "parts": ["language"]} for name in ("lora", "dora")}


def train(folder: Path, name: str, epochs: int) -> RunFolder:
    """A run with one method; called again, it is found finished."""
    recipe = {
        "name": name,
        "model": {"path": "embedded", "dtype": "float32"},
        "data": {"train": str(folder / "data"), "held_out": {"column": "split", "value": "dev"}, "dev": 0},
        "task": {"extract": {"company": "string", "date": "date", "address": "string", "total": "amount"}},
        "method": METHODS[name],
        "train": {"epochs": epochs, "batch_size": 8, "learning_rate": 1e-3},
        "predict": {"max_new_tokens": 128},
        "score": ["fuzzy", "exact", "f1"],
        "output": str(folder / "runs"),
    }
    file = folder / f"{name}.yaml"
    file.write_text(yaml.safe_dump(recipe))
    return run_recipe(file, [], exclude_faulty=True, fresh=False)


@torch.no_grad()
def measure(run: RunFolder) -> dict[str, Any]:
    """The adapter as trained, and merged with its sum rounded: scores, logits, and what is left of the update."""
    resolved, held_out = resolve(run.recipe()), read_held_out(run).samples
    samples = [resolved.task.phrase(sample) for sample in held_out[:OBSERVED]]
    tuned, base = open_tuned(resolved, run.adapter), open_base(resolved)
    before, exact = observe(tuned, samples), scores(tuned, resolved, held_out)
    merge(tuned)
    merged = agreement("merged", before, observe(tuned, samples))
    update = lost = vanished = count = 0.0
    kept = dict(base.model.named_parameters())
    for name, weight in tuned.model.named_parameters():
        if torch.equal(weight, kept[name]):
            continue
        rounded = weight.bfloat16().float()
        update += float((weight - kept[name]).square().sum())
        lost += float((rounded - weight).square().sum())
        vanished += float((rounded == kept[name]).sum())
        count += weight.numel()
        weight.copy_(rounded)
    rounded_too = agreement("rounded", before, observe(tuned, samples))
    return {
        "update_lost": (lost / update) ** 0.5,
        "weights_unmoved": vanished / count,
        "logits_merged": merged.relative,
        "logits_rounded": rounded_too.relative,
        "same_replies": rounded_too.same_replies,
        "samples": len(samples),
        "scores_adapter": exact,
        "scores_rounded": scores(tuned, resolved, held_out),
    }


def scores(model: LoadedModel, run: ResolvedRun, samples: Sequence[Sample]) -> dict[str, float]:
    """Scores on the held-out receipts, constrained decoding."""
    return score_replies(run, samples, generate(DecodingMode.CONSTRAINED, model, run, samples))


def show(found: dict[str, dict[str, Any]]) -> None:
    """The table docs/models.md quotes."""
    table = Table(title="Merged and rounded to bfloat16, against the adapter as trained", title_justify="left")
    for column in ("method", "update lost", "weights unmoved", "logits", "same replies", "fuzzy", "exact", "f1"):
        table.add_column(column)
    for name, row in found.items():
        one, other = row["scores_adapter"], row["scores_rounded"]
        table.add_row(
            name,
            f"{100 * row['update_lost']:.1f} %",
            f"{100 * row['weights_unmoved']:.1f} %",
            f"{100 * row['logits_rounded']:.2f} %",
            f"{row['same_replies']} of {row['samples']}",
            *(f"{one[metric]:.1f} -> {other[metric]:.1f}" for metric in ("fuzzy", "exact", "f1")),
        )
    Console().print(table)


def main() -> None:
    """Draw, train, measure, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "merge-benchmark")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--receipts", type=int, default=40)
    parser.add_argument("--held-out", type=int, default=10)
    asked = parser.parse_args()
    if not (asked.folder / "data" / "metadata.jsonl").exists():
        asked.folder.mkdir(parents=True, exist_ok=True)
        draw_folder(asked.folder / "data", asked.receipts, asked.held_out, 0)
    found = {name: measure(train(asked.folder, name, asked.epochs)) for name in METHODS}
    settings = {"epochs": asked.epochs, "receipts": asked.receipts, "held_out": asked.held_out}
    write_json(RESULTS, {"machine": describe_machine(), **settings, "methods": found})
    show(found)


if __name__ == "__main__":
    main()
