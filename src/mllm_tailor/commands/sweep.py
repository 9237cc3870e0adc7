"""`tailor sweep`: learning rates and ranks by successive halving (Jamieson and Talwalkar 2016, 1502.07943).

All candidates train on a small share of the budget. The best third of them trains again on three times that share, and
so on until the last round has the whole budget. Candidates are ranked by the dev split; held-out samples are not used.
Each candidate is an ordinary run folder, so the same command continues an interrupted sweep.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
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
from mllm_tailor.run.lock import owned
from mllm_tailor.run.mapper import Mapper, in_turn
from mllm_tailor.run.pipeline import check_run, tune
from mllm_tailor.run.resolve import ResolvedRun, resolve, resolve_saved
from mllm_tailor.run.run_dir import own_run

KEEP = 3  # one candidate in this many is kept for the next round


@dataclass(frozen=True)
class Candidate:
    """One choice of settings."""

    learning_rate: float
    rank: int | None

    @property
    def name(self) -> str:
        """The name of its folder: lr0.0005-rank32."""
        return f"lr{self.learning_rate:g}" + (f"-rank{self.rank}" if self.rank else "")


@dataclass(frozen=True)
class Trial:
    """The result of a candidate in one round; `score` is None when its training failed."""

    round: int
    candidate: Candidate
    score: float | None
    seconds: float = 0.0
    problem: str = ""


def sweep(
    path: Path,
    overrides: list[str],
    rates: Sequence[float],
    ranks: Sequence[int],
    budget: str,
    mapper: Mapper = in_turn,
) -> Candidate:
    """Return the best candidate; print every round, write sweep.json and best.yaml. The mapper trains those of a round.

    Raises:
        RecipeError: before anything runs, for settings that cannot be compared.
        RunError: when another process is at work on this sweep.
        TailorError: when every candidate fails.
    """
    run, whole = resolve(read_single(path, overrides)), read_budget(budget)
    folder = Path(run.recipe.output) / f"{run.recipe.name}-sweep"
    candidates = [Candidate(rate, rank) for rate, rank in product(rates, ranks or (None,))]
    _check(run, whole, candidates, folder)
    splits, _ = prepare(run)
    with owned(folder):  # to a second sweep, the candidates at work here would be ones that failed
        return _sweep(run, whole, candidates, splits, mapper)


def _sweep(
    run: ResolvedRun, whole: Budget, candidates: Sequence[Candidate], splits: Splits, mapper: Mapper
) -> Candidate:
    recipe, left = run.recipe, list(candidates)
    folder = Path(recipe.output) / f"{recipe.name}-sweep"
    trials: list[Trial] = []
    rounds = count_rounds(len(left))
    for number in range(1, rounds + 1):
        share = whole.part(KEEP ** (number - rounds))
        show_heading(f"Round {number} of {rounds}: {len(left)} candidates")
        round_folder = folder / f"round-{number}"
        entries = [(candidate, with_candidate(run, candidate, share, round_folder)) for candidate in left]
        results = list(mapper(partial(_try, number, splits), entries))
        trials += results
        write_json(folder / "sweep.json", [vars(trial) | {"candidate": vars(trial.candidate)} for trial in trials])
        left = best_third(results, last=number == rounds, lower=run.lower_is_better)
        _show(results, left)
    best = with_candidate(run, left[0], whole, Path(recipe.output), recipe.name)
    write_atomic(folder / "best.yaml", dump_recipe(best.recipe))
    show(f"Best: {left[0].name}. Its recipe, with the whole budget: {folder / 'best.yaml'}")
    show_json({"best": vars(left[0]), "recipe": str(folder / "best.yaml"), "rounds": read_json(folder / "sweep.json")})
    return left[0]


def count_rounds(candidates: int) -> int:
    """Rounds of keeping one candidate in `KEEP` until one is left."""
    rounds = 1
    while KEEP**rounds <= candidates:
        rounds += 1
    return rounds


def best_third(trials: Sequence[Trial], *, last: bool, lower: bool) -> list[Candidate]:
    """The candidates kept for the next round, the best first; after the last round, the best alone.

    Raises:
        TailorError: when all have failed.
    """
    scored = [(trial.score, trial.candidate) for trial in trials if trial.score is not None]
    if not scored:
        raise TailorError(f"every candidate failed, the first with: {trials[0].problem}")
    ranked = [candidate for _, candidate in sorted(scored, key=lambda pair: pair[0] if lower else -pair[0])]
    return ranked[: 1 if last else max(1, len(trials) // KEEP)]


def with_candidate(
    run: ResolvedRun, candidate: Candidate, budget: Budget, output: Path, name: str | None = None
) -> ResolvedRun:
    """The run with a candidate's settings."""
    values = run.recipe.model_dump(mode="json") | {"name": name or candidate.name, "output": str(output)}
    values["train"] |= {"learning_rate": candidate.learning_rate, **budget.train()}
    if candidate.rank is not None:
        values["method"] |= {"rank": candidate.rank}
    return resolve_saved(make_recipe(values))


def _check(run: ResolvedRun, budget: Budget, candidates: Sequence[Candidate], folder: Path) -> None:
    if not run.recipe.data.dev:
        raise RecipeError("`data.dev` is 0, but a sweep ranks candidates by the dev split — set data.dev=0.1")
    if budget.unit == "memory":
        raise RecipeError(
            "a sweep divides its budget between rounds, which memory does not allow — write minutes, epochs or steps: "
            "10m, 3e, 200 steps"
        )
    if len(set(candidates)) < 2:
        raise RecipeError("a sweep needs at least two candidates — name several learning rates or ranks")
    for candidate in candidates:
        check_run(with_candidate(run, candidate, budget, folder))


def _try(number: int, splits: Splits, entry: tuple[Candidate, ResolvedRun]) -> Trial:
    """Train a candidate, or read the result of an earlier call.

    Raises:
        RunError: when the data changed since that call, or its folder is damaged or held by another process.
    """
    candidate, resolved = entry
    show((candidate.name, "bold"))
    with own_run(resolved.recipe) as run:
        reconcile(run, splits)  # data that changed since end the sweep: they are no failure of this candidate alone
        seed_everything(resolved.recipe.seed)
        try:
            tune(run, resolved, splits, VisionFeatureCache())
        except TailorError as error:
            return Trial(number, candidate, None, problem=str(error))
    training = read_json(run.training)
    return Trial(number, candidate, training["best_score"], training["seconds"])


def _show(trials: Sequence[Trial], kept: Sequence[Candidate]) -> None:
    table = Table("Dev scores (● kept)", "candidate", "score", "minutes")
    for trial in sorted(trials, key=lambda trial: -(trial.score if trial.score is not None else -1)):
        name = f"{trial.candidate.name} {'●' if trial.candidate in kept else ''}"
        score = "failed" if trial.score is None else f"{trial.score:.2f}"
        table.add_row(name, score, f"{trial.seconds / 60:.1f}")
    show(table)
    for trial in trials:
        if trial.problem:
            show(f"{trial.candidate.name}: {trial.problem}")
