"""`tailor demo`: everything on drawn receipts of a shop chain that the embedded model has never seen."""

from __future__ import annotations

from pathlib import Path

from mllm_tailor.commands.console import show
from mllm_tailor.commands.run import run_recipe
from mllm_tailor.core.io import write_atomic
from mllm_tailor.synthetic.folder import draw_folder

TRAIN, HELD_OUT = 120, 40

RECIPE = """# The recipe of `tailor demo`: drawn receipts of one shop chain, on the embedded model.
name: demo
seed: {seed}
model: embedded
data:
  train: {data}
  held_out: {{column: split, value: dev}}
  dev: 0
task:
  extract: {{company: string, date: date, address: string, total: amount}}
method: {{name: qlora, rank: 32, alpha: 64, parts: [language]}}
train: {{epochs: 6, batch_size: 8, learning_rate: 1.0e-3}}
predict: {{max_new_tokens: 256}}
score: [fuzzy, exact, f1]
output: {output}
"""


def run_demo(output: Path, overrides: list[str], seed: int) -> None:
    """Draw, write the recipe, run it. Called again, it continues or shows the finished report."""
    data = output / "demo-receipts"
    if not (data / "metadata.jsonl").exists():
        show(f"Drawing {TRAIN + HELD_OUT} receipts of one shop chain into {data}")
        draw_folder(data, TRAIN, HELD_OUT, seed)
    recipe = output / "demo-recipe.yaml"
    write_atomic(recipe, RECIPE.format(seed=seed, data=data, output=output))
    run_recipe(recipe, overrides, exclude_faulty=False, fresh=False)
