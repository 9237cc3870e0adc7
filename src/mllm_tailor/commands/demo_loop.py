"""`tailor demo --loop`: tune, read new receipts, correct the doubtful values, tune again, print what that brought."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from mllm_tailor.commands.compare import compare_runs
from mllm_tailor.commands.console import show, show_heading
from mllm_tailor.commands.run import run_recipe
from mllm_tailor.core.io import read_jsonl, write_atomic, write_jsonl
from mllm_tailor.data.reviews.desk import Change, Desk, Reviewer
from mllm_tailor.data.reviews.labels import undecided
from mllm_tailor.data.reviews.store import DATABASE, Entry, ReviewStore
from mllm_tailor.run.review import add_files
from mllm_tailor.synthetic.folder import draw_folder

LABELLED, NEW, HELD_OUT = 50, 40, 30
AUDIT = 0.05
REVIEWER = Reviewer("demo", "the labels of the drawn receipts")

RECIPE = """# The recipe of `tailor demo --loop`: few labelled receipts of a shop chain.
name: demo-loop
seed: {seed}
model: embedded
data:
  train: {data}
  held_out: {{column: split, value: dev}}
  dev: 0.2
task:
  extract: {{company: string, date: date, address: string, total: amount}}
method: {{name: qlora, rank: 32, alpha: 64, parts: [language]}}
train: {{epochs: 4, batch_size: 4, learning_rate: 1.0e-3, evaluate_every: 4}}
predict: {{max_new_tokens: 256}}
score: [fuzzy, exact, f1]
accept: {{right: 0.9}}
output: {output}
"""


def run_loop(output: Path, overrides: list[str], seed: int) -> None:
    """The whole loop. Called again, it continues where it stopped."""
    data, new = output / "demo-loop-receipts", output / "demo-loop-new"
    if not new.is_dir():
        show(f"Drawing {LABELLED} labelled receipts, {HELD_OUT} held-out and {NEW} new ones of one shop chain")
        draw_folder(data, LABELLED + NEW, HELD_OUT, seed)
        set_aside(data, new, NEW)
    recipe = output / "demo-loop.yaml"
    write_atomic(recipe, RECIPE.format(seed=seed, data=data, output=output))
    show_heading("1. Tune on the labelled receipts")
    first = run_recipe(recipe, overrides, exclude_faulty=False, fresh=False).path
    show_heading("2. Read the new receipts")
    database = first.with_name(f"{first.name}-review") / DATABASE
    added = add_files(first, [new / "images"], database, AUDIT)
    show(f"{added.doubtful} receipts have doubtful values, {added.accepted} need no eye, {added.audited} are audited")
    show_heading("3. Correct the doubtful values (here from their known labels; you: tailor review)")
    store = ReviewStore(database)
    correct_from_labels(store, new)
    progress = store.progress()
    show(f"{progress.done} receipts finished: {progress.confirmed} values confirmed, {progress.corrected} corrected")
    if not progress.done:
        show("Nothing was doubtful, so there is nothing to learn.")
        return
    show_heading("4. Tune again, with the corrections")
    second = run_recipe(recipe, overrides, exclude_faulty=False, fresh=False, reviews=[database]).path
    show_heading("5. What the corrections brought")
    compare_runs(first, second)


def set_aside(data: Path, new: Path, count: int) -> None:
    """Move the last training receipts out of a drawn folder, their labels too: new documents that nobody labelled."""
    rows = [row for _, row in read_jsonl(data / "metadata.jsonl")]
    moved = {row["id"] for row in [row for row in rows if row["split"] == "train"][-count:]}
    partial = new.with_name(f".{new.name}.partial")
    for name, suffix in (("images", ".jpg"), ("entities", ".json")):
        (partial / name).mkdir(parents=True, exist_ok=True)
        for identifier in moved:
            file = data / name / f"{identifier}{suffix}"
            if file.is_file():
                file.rename(partial / name / file.name)
    write_jsonl(data / "metadata.jsonl", [row for row in rows if row["id"] not in moved])
    partial.rename(new)


def correct_from_labels(store: ReviewStore, folder: Path) -> None:
    """Decide about every waiting document as its label file states it."""
    desk = Desk(store, audit=AUDIT)
    while (entry := desk.take(REVIEWER)) is not None:
        label = json.loads((folder / "entities" / f"{Path(entry.document.file).stem}.json").read_text("utf-8"))
        entry = _decide(desk, entry, label)
        desk.change(REVIEWER, Change(entry.document.sha256, "finish", entry.last))


def _decide(desk: Desk, entry: Entry, label: Mapping[str, str]) -> Entry:
    read = entry.document.reading.get("fields") or {}
    for path in undecided(entry, desk.store.schema):
        right = str(read.get(path, "")) == str(label.get(path, ""))
        after = None if right else label.get(path, "")
        change = Change(entry.document.sha256, "confirm" if right else "correct", entry.last, path, after)
        entry = desk.change(REVIEWER, change)
    return entry
