"""`tailor compare`: two runs on the held-out samples they share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mllm_tailor.commands.console import show
from mllm_tailor.core.errors import RunError
from mllm_tailor.core.io import human_bytes, read_json
from mllm_tailor.core.terminal import Table
from mllm_tailor.reporting.tables import gain_table
from mllm_tailor.run.run_dir import RunFolder, open_run, read_scores
from mllm_tailor.scoring import Scores, compare


def compare_runs(first: Path, second: Path) -> None:
    """Print the difference of the tuned models with its interval, and what each cost.

    Raises:
        RunError: when a run is unfinished or the two share no held-out sample.
    """
    runs = [open_run(first), open_run(second)]
    one, other = (_tuned(run) for run in runs)
    shared = [identifier for identifier in one.ids if identifier in set(other.ids)]
    if not shared:
        raise RunError(f"{first} and {second} share no held-out sample — compare runs on the same data")
    gains = compare(_only(one, shared), _only(other, shared))
    left_out = len(one.ids) + len(other.ids) - 2 * len(shared)
    note = f"; {left_out} samples that only one of them has are left out" if left_out else ""
    title = f"{len(shared)} shared held-out samples{note}"
    show(gain_table(gains, title, first=first.name, second=second.name))
    show(_costs(runs))


def _tuned(run: RunFolder) -> Scores:
    row = read_scores(run)
    return Scores.from_row(row["systems"][f"tuned_{row['mode']}"])


def _only(scores: Scores, ids: list[str]) -> Scores:
    places = {identifier: place for place, identifier in enumerate(scores.ids)}
    return scores.subset([places[identifier] for identifier in ids])


def _costs(runs: list[RunFolder]) -> Table:
    """What each run trained and cost."""
    table = Table("Cost", "", *(run.path.name for run in runs))
    facts: list[dict[str, Any]] = []
    for run in runs:
        facts.append(read_json(run.training) | {"method": run.recipe().method["name"]})
    rows = {
        "method": [fact["method"] for fact in facts],
        "trained weights": [f"{sum(fact['trained_by_part'].values()):,}" for fact in facts],
        "training": [f"{fact['seconds'] / 60:.1f} min" for fact in facts],
        "samples/s": [f"{fact['samples_per_second']:.2f}" for fact in facts],
        "peak memory": [human_bytes(fact["peak_bytes"]) for fact in facts],
    }
    for name, values in rows.items():
        table.add_row(name, *values)
    return table
