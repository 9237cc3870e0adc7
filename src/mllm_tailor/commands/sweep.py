"""`tailor sweep`: learning rates and ranks by successive halving (Jamieson and Talwalkar 2016, 1502.07943).

All candidates train on a small share of the budget; the better third goes on to three times as much, until the last
round has the whole. They are ranked by the dev part: held-out samples are not looked at. Each candidate is an ordinary
run folder, so an interrupted sweep goes on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from mllm_tailor.commands.console import show, show_heading, show_json
from mllm_tailor.core.device import seed_everything
from mllm_tailor.core.errors import RecipeError, TailorError
from mllm_tailor.core.io import read_json, write_atomic, write_json
from mllm_tailor.core.terminal import Table
from mllm_tailor.generation import VisionFeatureCache
from mllm_tailor.recipe import dump_recipe, make_recipe, read_single
from mllm_tailor.run.budget import Budget, read_budget
from mllm_tailor.run.data_changes import reconcile
from mllm_tailor.run.dataset import Splits, prepare
from mllm_tailor.run.pipeline import check_run, tune
from mllm_tailor.run.resolve import ResolvedRun, resolve, resolve_saved
from mllm_tailor.run.run_dir import own_run

KEEP = 3  # one in so many goes on to the next round


@dataclass(frozen=True)
class Candidate:
    """One choice of settings."""

    learning_rate: float
    rank: int | None

    @property
    def name(self) -> str:
        """Names its folder: lr0.0005-rank32."""
        return f"lr{self.learning_rate:g}" + (f"-rank{self.rank}" if self.rank else "")


@dataclass(frozen=True)
class Tried:
    """What a candidate came to in one round; `score` is None when its training failed."""

    round: int
    candidate: Candidate
    score: float | None
    seconds: float = 0.0
    problem: str = ""


def sweep(path: Path, overrides: list[str], rates: Sequence[float], ranks: Sequence[int], budget: str) -> Candidate:
    """The best candidate; prints every round, writes sweep.json and best.yaml.

    Raises:
        RecipeError: before anything runs, for settings that cannot be compared.
        TailorError: when every candidate fails.
    """
    run, most = resolve(read_single(path, overrides)), read_budget(budget)
    recipe = run.recipe
    folder = Path(recipe.output) / f"{recipe.name}-sweep"
    left = [Candidate(rate, rank) for rate, rank in product(rates, ranks or (None,))]
    _check(run, most, left, folder)
    splits, _ = prepare(run)
    tried: list[Tried] = []
    rounds = count_rounds(len(left))
    for number in range(1, rounds + 1):
        share = most.part(KEEP ** (number - rounds))
        show_heading(f"Round {number} of {rounds}: {len(left)} candidates")
        found = [_try(number, one, with_candidate(run, one, share, folder / f"round-{number}"), splits) for one in left]
        tried += found
        write_json(folder / "sweep.json", [vars(one) | {"candidate": vars(one.candidate)} for one in tried])
        left = best_third(found, last=number == rounds, lower=run.lower_is_better)
        _show(found, left)
    best = with_candidate(run, left[0], most, Path(recipe.output), recipe.name)
    write_atomic(folder / "best.yaml", dump_recipe(best.recipe))
    show(f"Best: {left[0].name}. Its recipe, with the whole budget: {folder / 'best.yaml'}")
    show_json({"best": vars(left[0]), "recipe": str(folder / "best.yaml"), "rounds": read_json(folder / "sweep.json")})
    return left[0]


def count_rounds(candidates: int) -> int:
    """Rounds until one in `KEEP` of one in `KEEP` … is at most one."""
    rounds = 1
    while KEEP**rounds <= candidates:
        rounds += 1
    return rounds


def best_third(found: Sequence[Tried], *, last: bool, lower: bool) -> list[Candidate]:
    """Those that go on, the best first; after the last round the best alone.

    Raises:
        TailorError: when none is left.
    """
    scored = [(one.score, one.candidate) for one in found if one.score is not None]
    if not scored:
        raise TailorError(f"every candidate failed, the first with: {found[0].problem}")
    ranked = [candidate for _, candidate in sorted(scored, key=lambda pair: pair[0] if lower else -pair[0])]
    return ranked[: 1 if last else max(1, len(found) // KEEP)]


def with_candidate(
    run: ResolvedRun, one: Candidate, budget: Budget, output: Path, name: str | None = None
) -> ResolvedRun:
    """The run with a candidate's settings."""
    values = run.recipe.model_dump(mode="json") | {"name": name or one.name, "output": str(output)}
    values["train"] |= {"learning_rate": one.learning_rate, **budget.train()}
    if one.rank is not None:
        values["method"] |= {"rank": one.rank}
    return resolve_saved(make_recipe(values))


def _check(run: ResolvedRun, budget: Budget, candidates: Sequence[Candidate], folder: Path) -> None:
    if not run.recipe.data.dev:
        raise RecipeError("`data.dev` is 0: a sweep ranks by the dev part — set data.dev=0.1")
    if budget.unit == "memory":
        raise RecipeError("a sweep cannot share out memory — write minutes, epochs or steps: 10m, 3e, 200 steps")
    if len(set(candidates)) < 2:
        raise RecipeError("a sweep needs at least two candidates — name several learning rates or ranks")
    for one in candidates:
        check_run(with_candidate(run, one, budget, folder))


def _try(number: int, one: Candidate, candidate: ResolvedRun, splits: Splits) -> Tried:
    """Train one candidate, or read what an earlier call came to."""
    show((one.name, "bold"))
    try:
        with own_run(candidate.recipe) as run:
            reconcile(run, splits)
            seed_everything(candidate.recipe.seed)
            tune(run, candidate, splits, VisionFeatureCache())
    except TailorError as error:
        return Tried(number, one, None, problem=str(error))
    training = read_json(run.training)
    return Tried(number, one, training["best_score"], training["seconds"])


def _show(found: Sequence[Tried], kept: Sequence[Candidate]) -> None:
    table = Table("Dev scores (● goes on)", "candidate", "score", "minutes")
    for one in sorted(found, key=lambda one: -(one.score if one.score is not None else -1)):
        name = f"{one.candidate.name} {'●' if one.candidate in kept else ''}"
        score = "failed" if one.score is None else f"{one.score:.2f}"
        table.add_row(name, score, f"{one.seconds / 60:.1f}")
    show(table)
    for one in found:
        if one.problem:
            show(f"{one.candidate.name}: {one.problem}")
