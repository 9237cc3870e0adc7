"""How much of a training is padding: what samples of like length leave, and what packing end to end could still save.

    python benchmarks/padding.py ../shared/data/sroie recipes/sroie.yaml
    python benchmarks/padding.py FOLDER RECIPE ...

Counts tokens, measures nothing: an epoch's passes are planned as the training plans them. Beside them stand a step
padded to its longest sample, as most trainers pad, and one sample a pass, as the published recipe trains.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from mllm_tailor.models import measure_length
from mllm_tailor.recipe import read_recipe
from mllm_tailor.run.dataset import prepare
from mllm_tailor.run.predict import open_base
from mllm_tailor.run.resolve import resolve
from mllm_tailor.training.batches import LENGTH_MULTIPLE
from mllm_tailor.training.memory import max_padding, token_budget
from mllm_tailor.training.sampler import epoch_micro_batches, make_batch_schedule


def computed(passes: Sequence[Sequence[int]], tokens: Sequence[int], whole: int = LENGTH_MULTIPLE) -> int:
    """Tokens that go through the layers, padding included."""
    return sum(len(one) * -(-max(tokens[number] for number in one) // whole) * whole for one in passes)


def count(folder: str, path: str) -> tuple[int, int, dict[str, int]]:
    """Samples and tokens of an epoch, and the tokens computed for them, by how they are laid together."""
    run = resolve(read_recipe(Path(path), [f"data.train={folder}"]))
    recipe = run.recipe
    splits, _ = prepare(run, exclude_faulty=True, decode=False)
    model = open_base(run)
    tokens = [measure_length(sample, model).tokens for sample in splits.learned]
    course = make_batch_schedule([sample.modality for sample in splits.learned], recipe.train, recipe.seed)
    steps = [course.samples(step) for step in range(course.steps_per_epoch)]
    budget, padding = token_budget(model, gradient_checkpointing=False), max_padding(torch.device("cpu"))
    planned = epoch_micro_batches(
        course, tokens, max_samples=recipe.train.micro_batch_size, token_budget=budget, max_padding=padding
    )
    ways = {
        "ours": computed(planned, tokens),
        "a step padded to its longest": computed(steps, tokens, 1),
        "one sample a pass": computed([[number] for number in range(len(tokens))], tokens, 1),
    }
    return len(tokens), sum(tokens), ways


def main() -> None:
    if len(sys.argv) < 3 or len(sys.argv) % 2 == 0:
        sys.exit(__doc__)
    pairs = list(zip(sys.argv[1::2], sys.argv[2::2], strict=True))
    found = {path: count(folder, path) for folder, path in pairs}
    names = list(next(iter(found.values()))[2])
    table = Table("recipe", "samples", "tokens", *(f"padding, {name}" for name in names))
    for path, (samples, tokens, ways) in found.items():
        shares = (f"{1 - tokens / ways[name]:.1%}" for name in names)
        table.add_row(Path(path).stem, f"{samples:,}", f"{tokens:,}", *shares)
    Console().print(table)


if __name__ == "__main__":
    main()
