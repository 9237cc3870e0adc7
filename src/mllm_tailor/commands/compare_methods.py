"""`tailor compare-methods`: several methods and objectives on the same data and budget, in one table and one chart.

Each is an ordinary run in a separate process, so that peak memory is measured for each and a failure stops no
other. What all runs share (the base model's predictions, features of the images) is computed once. Called again, the
command keeps finished runs and continues unfinished ones.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from mllm_tailor.commands.console import show, show_heading, show_json
from mllm_tailor.core.errors import RecipeError
from mllm_tailor.core.io import human_bytes, read_json, write_atomic, write_json
from mllm_tailor.core.terminal import Table
from mllm_tailor.recipe import dump_recipe, read_single
from mllm_tailor.reporting.pareto import Point, front, scatter
from mllm_tailor.reporting.sentences import signed
from mllm_tailor.run.budget import Budget, read_budget
from mllm_tailor.run.mapper import Mapper, in_turn
from mllm_tailor.run.resolve import ResolvedRun, resolve
from mllm_tailor.run.run_dir import RunFolder, finished, own_run, read_scores
from mllm_tailor.run.shared_baseline import compute_shared_baseline, hand_over
from mllm_tailor.run.variants import Variant, read_variants, with_variant
from mllm_tailor.scoring import Interval


@dataclass(frozen=True)
class Outcome:
    """The result of a method or objective; `score` is None when its run failed."""

    name: str
    score: Interval | None
    gain: Interval | None = None  # over the base model on the same samples
    rate: float = 0.0  # peak learning rate
    steps: int = 0
    trained: int = 0
    peak_bytes: int = 0
    seconds: float = 0.0  # of training, wall clock
    cpu_seconds: float = 0.0
    disk_bytes: int = 0
    problem: str = ""

    def row(self) -> dict[str, Any]:
        """Plain values for comparison.json."""
        return vars(self) | {key: vars(found) if (found := getattr(self, key)) else None for key in ("score", "gain")}


def compare_methods(
    path: Path, overrides: list[str], words: str, budget: str, mapper: Mapper = in_turn
) -> list[Outcome]:
    """Run every method and objective with the mapper, print the table, write comparison.json and comparison.svg.

    Raises:
        RecipeError: for an unknown method, setting or budget, before anything runs.
        RunError: when the base model cannot predict the samples.
    """
    base, spent = resolve(read_single(path, overrides)), read_budget(budget)
    wanted = read_variants(words)
    folder = Path(base.recipe.output) / f"{base.name}-methods"
    show_heading("base model")
    shared = compute_shared_baseline(base, folder)
    outcomes: list[Outcome] = []
    work = partial(_outcome, base=base, budget=spent, folder=folder, shared=shared)
    for outcome in mapper(work, wanted):
        outcomes.append(outcome)
        write_json(folder / "comparison.json", _row(outcomes, wanted, folder, budget))
    _show(outcomes, folder, lower=base.lower_is_better)
    show_json(read_json(folder / "comparison.json"))
    return outcomes


def _outcome(wanted: Variant, base: ResolvedRun, budget: Budget, folder: Path, shared: RunFolder) -> Outcome:
    """Run it, unless its run is finished, and read the result."""
    try:
        changed = with_variant(base, wanted, budget, folder)
        with own_run(changed.recipe) as run:
            if not finished(run):
                hand_over(shared, run)
    except RecipeError as error:
        return Outcome(wanted.words, None, problem=str(error))
    if not finished(run):
        file = folder / f"{wanted.folder}.yaml"
        write_atomic(file, dump_recipe(changed.recipe))
        show_heading(wanted.words)
        problem = _run(file)
        if problem or not finished(run):
            return Outcome(wanted.words, None, problem=problem or "unfinished")
    return _read(wanted, changed, run, budget)


def _run(file: Path) -> str:
    """Run a recipe in a separate process; returns its last message if it failed."""
    command = [sys.executable, "-m", "mllm_tailor.cli.main", "run", str(file)]
    done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    if done.returncode == 0:
        return ""
    said = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    return said[-1].removeprefix("Error: ") if said else "the process ended without a message"


def _read(wanted: Variant, changed: ResolvedRun, run: RunFolder, budget: Budget) -> Outcome:
    """A finished run's figures."""
    scores, training = read_scores(run), read_json(run.training)
    peak = training["peak_bytes"]
    if budget.exceeded(peak):
        limit = human_bytes(int(budget.amount))
        return Outcome(wanted.words, None, peak_bytes=peak, problem=f"needed {human_bytes(peak)}, more than {limit}")
    gain: dict[str, Any] = scores["gain"][scores["metrics"][0]]
    return Outcome(
        wanted.words,
        Interval(**gain["tuned"]),
        Interval(**gain["difference"]),
        rate=changed.method.peak_learning_rate(changed.recipe.train.learning_rate),
        steps=training["steps"],
        trained=sum(training["trained_by_part"].values()),
        peak_bytes=peak,
        seconds=training["seconds"],
        cpu_seconds=training["cpu_seconds"],
        disk_bytes=sum(file.stat().st_size for file in run.adapter.rglob("*") if file.is_file()),
    )


def _show(outcomes: Sequence[Outcome], folder: Path, *, lower: bool) -> None:
    points = [Point(outcome.name, outcome.peak_bytes / 2**30, outcome.score) for outcome in outcomes if outcome.score]
    best = {point.name for point in front(points, lower=lower)}
    sign = 1 if lower else -1
    columns = ("trained by", "score", "95 %", "gain", "rate", "trained", "memory", "minutes", "CPU min", "on disk")
    title = "Methods and objectives on the same data and budget (● best score for its memory)"
    table = Table(title, *columns, whole=range(len(columns)))
    for outcome in sorted(
        outcomes, key=lambda outcome: (outcome.score is None, sign * outcome.score.value if outcome.score else 0)
    ):
        if outcome.score is None or outcome.gain is None:
            table.add_row(outcome.name, "failed")
            continue
        table.add_row(
            f"{outcome.name} {'●' if outcome.name in best else ''}",
            f"{outcome.score.value:.1f}",
            f"{outcome.score.low:.0f}–{outcome.score.high:.0f}",
            signed(outcome.gain.value),
            f"{outcome.rate:g}",
            f"{outcome.trained / 1e6:.2f} M" if outcome.trained >= 1e5 else f"{outcome.trained:,}",
            human_bytes(outcome.peak_bytes),
            f"{outcome.seconds / 60:.1f}",
            f"{outcome.cpu_seconds / 60:.1f}",
            human_bytes(outcome.disk_bytes),
        )
    show(table)
    for outcome in outcomes:
        if outcome.problem:
            show(f"{outcome.name}: {outcome.problem}")
    if points:
        write_atomic(folder / "comparison.svg", scatter(points, "peak memory, GiB", "score", lower=lower))
        show(f"Chart: {folder / 'comparison.svg'}")


def _row(outcomes: Sequence[Outcome], wanted: Sequence[Variant], folder: Path, budget: str) -> dict[str, Any]:
    """The content of comparison.json; base model and baselines are those of the first run that has scores."""
    rows = [outcome.row() for outcome in outcomes]
    done = next((method for method, outcome in zip(wanted, outcomes, strict=False) if outcome.score), None)
    if done is None:
        return {"budget": budget, "methods": rows}
    scores = read_scores(RunFolder(folder / done.folder))
    metric = scores["metrics"][0]
    baselines = {
        name: found["metrics"][metric]["value"]
        for name, found in scores["systems"].items()
        if name.startswith("baseline_")
    }
    gain = scores["gain"][metric]
    common = {"budget": budget, "metric": metric, "better": gain["better"], "held_out": gain["count"]}
    return {**common, "untouched": gain["base"], "baselines": baselines, "methods": rows}
