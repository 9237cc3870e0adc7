"""`tailor compare-methods`: the same data and budget for several methods, one table and one picture.

Each method is an ordinary run in a process of its own, so that peak memory is its own and a failure stops nobody else.
Called again, finished runs are kept and unfinished ones go on.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from mllm_tailor.core.files import human_bytes, read_json, write_atomic, write_json
from mllm_tailor.core.progress import console
from mllm_tailor.methods import METHODS, make_method
from mllm_tailor.recipe import Recipe, dump_recipe, make_recipe, read_single
from mllm_tailor.run.budget import Budget, read_budget
from mllm_tailor.run.folder import RunFolder, finished, start_run
from mllm_tailor.scoring import Interval, plain
from mllm_tailor.scoring.pareto import Point, front, scatter

SHARED = ("base_constrained", "base_free", "floor_nearest")  # the same for every method


@dataclass(frozen=True)
class Outcome:
    """What one method came to; `score` is None when its run failed."""

    name: str
    score: Interval | None
    trained: int = 0
    peak_bytes: int = 0
    seconds: float = 0.0
    disk_bytes: int = 0
    problem: str = ""


def compare_methods(path: Path, overrides: list[str], names: Sequence[str], budget: str) -> list[Outcome]:
    """Run every method, print the table, write comparison.json and comparison.svg.

    Raises:
        RecipeError: for an unknown method or budget, before anything runs.
    """
    recipe = read_single(path, overrides)
    folder = Path(recipe.output) / f"{recipe.name}-methods"
    spent = read_budget(budget)
    recipes = {name: _recipe_for(recipe, name, spent, folder) for name in names}
    outcomes = []
    for name, one in recipes.items():
        run = RunFolder(folder / name)
        if not finished(run):
            start_run(one)
            _share(run, [RunFolder(folder / other) for other in recipes if other != name])
        problem = _run(folder, name, one) if not finished(run) else ""
        outcomes.append(_outcome(run, problem, spent))
    _show(outcomes, folder)
    return outcomes


def _recipe_for(recipe: Recipe, name: str, budget: Budget, folder: Path) -> Recipe:
    """The recipe with another method; settings the method knows are kept, and the budget is set."""
    known = METHODS.load(name).Settings.model_fields
    kept = {key: value for key, value in recipe.method_settings.items() if key in known or key == "parts"}
    values = recipe.model_dump(mode="json")
    values |= {"name": name, "method": {"name": name, **kept}, "output": str(folder)}
    values["train"] |= budget.train()
    changed = make_recipe(values)
    make_method(changed)
    return changed


def _share(run: RunFolder, others: Sequence[RunFolder]) -> None:
    """The untouched model reads the held-out samples once for all methods."""
    source = next((other for other in others if finished(other)), None)
    if source is None:
        return
    for which in SHARED:
        if source.predictions(which).exists() and not run.predictions(which).exists():
            run.predictions(which).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source.predictions(which), run.predictions(which))


def _run(folder: Path, name: str, recipe: Recipe) -> str:
    """Run one method in a process of its own; what it said last, if it failed."""
    file = folder / f"{name}.yaml"
    write_atomic(file, dump_recipe(recipe))
    console.rule(f"[bold]{name}[/]", align="left")
    command = [sys.executable, "-m", "mllm_tailor.cli.main", "run", str(file)]
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True)
    if done.returncode == 0:
        return ""
    said = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    return said[-1].removeprefix("Error: ") if said else "it ended without a word"


def _outcome(run: RunFolder, problem: str, budget: Budget) -> Outcome:
    if problem or not finished(run):
        return Outcome(run.path.name, None, problem=problem or "unfinished")
    scores, training = read_json(run.scores), read_json(run.training)
    peak = training["peak_bytes"]
    if budget.exceeded(peak):
        return Outcome(
            run.path.name, None, problem=f"needed {human_bytes(peak)}, more than {human_bytes(int(budget.amount))}"
        )
    gain: dict[str, Any] = scores["gain"][scores["metrics"][0]]["tuned"]
    return Outcome(
        run.path.name,
        Interval(**gain),
        trained=sum(training["trained_by_part"].values()),
        peak_bytes=peak,
        seconds=training["seconds"],
        disk_bytes=sum(file.stat().st_size for file in run.adapter.rglob("*") if file.is_file()),
    )


def _show(outcomes: Sequence[Outcome], folder: Path) -> None:
    points = [Point(one.name, one.peak_bytes / 2**30, one.score) for one in outcomes if one.score]
    best = {point.name for point in front(points)}
    table = Table(title="Methods on the same data and budget (● no other is better in score and memory)")
    for column in ("method", "score", "95 % interval", "trained", "memory", "minutes", "on disk"):
        table.add_column(column, justify="left" if column == "method" else "right")
    for one in sorted(outcomes, key=lambda one: -(one.score.value if one.score else -1)):
        if one.score is None:
            table.add_row(plain(one.name), "failed")
            continue
        table.add_row(
            plain(f"{one.name} {'●' if one.name in best else ''}"),
            f"{one.score.value:.1f}",
            f"{one.score.low:.1f} to {one.score.high:.1f}",
            f"{one.trained:,}",
            human_bytes(one.peak_bytes),
            f"{one.seconds / 60:.1f}",
            human_bytes(one.disk_bytes),
        )
    console.print(table)
    for one in outcomes:
        if one.problem:
            console.print(plain(f"{one.name}: {one.problem}"))
    write_json(
        folder / "comparison.json", [vars(one) | {"score": vars(one.score) if one.score else None} for one in outcomes]
    )
    if points:
        write_atomic(folder / "comparison.svg", scatter(points, "peak memory, GiB", "score"))
        console.print(f"Picture: {folder / 'comparison.svg'}")
