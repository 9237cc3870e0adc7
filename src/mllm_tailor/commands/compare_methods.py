"""`tailor compare-methods`: the same data and budget for several methods, one table and one picture.

Each method is an ordinary run in a process of its own, so that peak memory is its own and a failure stops nobody else.
What all have in common (the untouched model's replies, features of the pictures) is read once. Called again, finished
runs are kept and unfinished ones go on.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mllm_tailor.commands.console import show, show_heading, show_json
from mllm_tailor.core.errors import RecipeError, nearest
from mllm_tailor.core.io import human_bytes, read_json, write_atomic, write_json
from mllm_tailor.core.terminal import Table
from mllm_tailor.methods import METHODS
from mllm_tailor.recipe import dump_recipe, make_recipe, read_single
from mllm_tailor.recipe.yaml_loader import load_yaml
from mllm_tailor.reporting.pareto import Point, front, scatter
from mllm_tailor.run.budget import Budget, read_budget
from mllm_tailor.run.resolve import ResolvedRun, resolve, resolve_saved
from mllm_tailor.run.run_dir import RunFolder, finished, own_run, read_scores
from mllm_tailor.run.shared_baseline import compute_shared_baseline, hand_over
from mllm_tailor.scoring import Interval

BETWEEN_METHODS = re.compile(r",(?![^\[]*\])")  # a comma, but none inside a list


@dataclass(frozen=True)
class Wanted:
    """A method to be compared, with settings of its own: `bottleneck:placement=series`."""

    words: str  # as asked for
    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def folder(self) -> str:
        """Names its run."""
        return re.sub(r"[^A-Za-z0-9._]+", "-", self.words).strip("-")


@dataclass(frozen=True)
class Outcome:
    """What one method came to; `score` is None when its run failed."""

    name: str
    score: Interval | None
    gain: Interval | None = None  # over the untouched model on the same samples
    rate: float = 0.0  # peak learning rate
    steps: int = 0
    trained: int = 0
    peak_bytes: int = 0
    seconds: float = 0.0  # of training, by the clock
    cpu_seconds: float = 0.0
    disk_bytes: int = 0
    problem: str = ""

    def row(self) -> dict[str, Any]:
        """Plain values for comparison.json."""
        return vars(self) | {key: vars(found) if (found := getattr(self, key)) else None for key in ("score", "gain")}


def compare_methods(path: Path, overrides: list[str], words: str, budget: str) -> list[Outcome]:
    """Run every method, print the table, write comparison.json and comparison.svg.

    Raises:
        RecipeError: for an unknown method, setting or budget, before anything runs.
        RunError: when the untouched model cannot read the samples.
    """
    base, spent = resolve(read_single(path, overrides)), read_budget(budget)
    wanted = read_wanted(words)
    folder = Path(base.recipe.output) / f"{base.name}-methods"
    show_heading("untouched")
    shared = compute_shared_baseline(base, folder)
    outcomes: list[Outcome] = []
    for one in wanted:
        outcomes.append(_outcome(one, base, spent, folder, shared))
        write_json(folder / "comparison.json", _row(outcomes, wanted, folder, budget))
    _show(outcomes, folder, lower=base.lower_is_better)
    show_json(read_json(folder / "comparison.json"))
    return outcomes


def read_wanted(words: str) -> list[Wanted]:
    """`lora,bottleneck:placement=series` -> two methods.

    Raises:
        RecipeError: naming the word, the setting or its value.
    """
    found = [_wanted(word.strip()) for word in BETWEEN_METHODS.split(words)]
    for one in found:
        if found.count(one) > 1:
            raise RecipeError(f"`--methods`: {one.words} stands there twice — name it once")
    return found


def _wanted(word: str) -> Wanted:
    name, *settings = word.split(":")
    known = METHODS.load(name).Settings.model_fields
    values = {}
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals or (key not in known and key != "parts"):
            raise RecipeError(f"`--methods`: {word}: unknown setting `{key}` of {name} — {nearest(key, known)}")
        values[key] = load_yaml(value, f"`--methods` {word}")
    resolve_saved(make_recipe({"data": "", "task": "answer", "method": {"name": name, **values}}, word))
    return Wanted(word, name, values)


def with_method(base: ResolvedRun, one: Wanted, budget: Budget, folder: Path) -> ResolvedRun:
    """The run with another method; settings the method knows are kept, and the budget is set.

    The recipe's learning rate was chosen for its own method. It is kept for those that usually learn at the same rate;
    any other takes its own (or the one it is named with).

    Raises:
        RecipeError: when a setting kept does not go with the method.
    """
    recipe = base.recipe
    tuning_method, own = METHODS.load(one.name), METHODS.load(recipe.method["name"])
    group_by_length = tuning_method.rate == own.rate
    kept = {key: value for key, value in recipe.method_settings.items() if key in tuning_method.Settings.model_fields}
    if "parts" in recipe.method:
        kept["parts"] = recipe.method["parts"]
    if not group_by_length:
        kept.pop("learning_rate", None)
    values = recipe.model_dump(mode="json")
    values |= {"name": one.folder, "method": {"name": one.name, **kept, **one.settings}, "output": str(folder)}
    values["train"] |= budget.train() | ({} if group_by_length else {"learning_rate": None})
    return resolve_saved(make_recipe(values))


def _outcome(one: Wanted, base: ResolvedRun, budget: Budget, folder: Path, shared: RunFolder) -> Outcome:
    """Run one method, unless its run is finished, and read what it came to."""
    try:
        changed = with_method(base, one, budget, folder)
        with own_run(changed.recipe) as run:
            if not finished(run):
                hand_over(shared, run)
    except RecipeError as error:
        return Outcome(one.words, None, problem=str(error))
    if not finished(run):
        file = folder / f"{one.folder}.yaml"
        write_atomic(file, dump_recipe(changed.recipe))
        show_heading(one.words)
        problem = _run(file)
        if problem or not finished(run):
            return Outcome(one.words, None, problem=problem or "unfinished")
    return _read(one, changed, run, budget)


def _run(file: Path) -> str:
    """Run a recipe in a process of its own; its last message, if it failed."""
    command = [sys.executable, "-m", "mllm_tailor.cli.main", "run", str(file)]
    done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    if done.returncode == 0:
        return ""
    said = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    return said[-1].removeprefix("Error: ") if said else "it ended without a message"


def _read(one: Wanted, changed: ResolvedRun, run: RunFolder, budget: Budget) -> Outcome:
    """A finished run's figures."""
    scores, training = read_scores(run), read_json(run.training)
    peak = training["peak_bytes"]
    if budget.exceeded(peak):
        limit = human_bytes(int(budget.amount))
        return Outcome(one.words, None, peak_bytes=peak, problem=f"needed {human_bytes(peak)}, more than {limit}")
    found: dict[str, Any] = scores["gain"][scores["metrics"][0]]
    return Outcome(
        one.words,
        Interval(**found["tuned"]),
        Interval(**found["difference"]),
        rate=changed.method.peak_learning_rate(changed.recipe.train.learning_rate),
        steps=training["steps"],
        trained=sum(training["trained_by_part"].values()),
        peak_bytes=peak,
        seconds=training["seconds"],
        cpu_seconds=training["cpu_seconds"],
        disk_bytes=sum(file.stat().st_size for file in run.adapter.rglob("*") if file.is_file()),
    )


def _show(outcomes: Sequence[Outcome], folder: Path, *, lower: bool) -> None:
    points = [Point(one.name, one.peak_bytes / 2**30, one.score) for one in outcomes if one.score]
    best = {point.name for point in front(points, lower=lower)}
    sign = 1 if lower else -1
    columns = ("method", "score", "95 %", "gain", "rate", "trained", "memory", "minutes", "on disk")
    title = "Methods on the same data and budget (● no other is better in score and memory)"
    table = Table(title, *columns, whole=range(len(columns)))
    for one in sorted(outcomes, key=lambda one: (one.score is None, sign * one.score.value if one.score else 0)):
        if one.score is None or one.gain is None:
            table.add_row(one.name, "failed")
            continue
        table.add_row(
            f"{one.name} {'●' if one.name in best else ''}",
            f"{one.score.value:.1f}",
            f"{one.score.low:.0f}–{one.score.high:.0f}",
            f"{one.gain.value:+.1f}",
            f"{one.rate:g}",
            f"{one.trained / 1e6:.2f} M" if one.trained >= 1e5 else f"{one.trained:,}",
            human_bytes(one.peak_bytes),
            f"{one.seconds / 60:.1f}",
            human_bytes(one.disk_bytes),
        )
    show(table)
    for one in outcomes:
        if one.problem:
            show(f"{one.name}: {one.problem}")
    if points:
        write_atomic(folder / "comparison.svg", scatter(points, "peak memory, GiB", "score", lower=lower))
        show(f"Chart: {folder / 'comparison.svg'}")


def _row(outcomes: Sequence[Outcome], wanted: Sequence[Wanted], folder: Path, budget: str) -> dict[str, Any]:
    """Everything for comparison.json; what was compared with is taken from the first run that has scores."""
    rows = [one.row() for one in outcomes]
    done = next((place for place, one in zip(wanted, outcomes, strict=False) if one.score), None)
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
