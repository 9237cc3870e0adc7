"""`tailor curve`: the score at several numbers of labelled samples, and what labelling more would bring.

Every point is an ordinary run with `data.limit`, so the subsets are nested (a seeded order, cut at each size) and all
are scored on the same held-out samples. Called again, finished points are kept and an unfinished one goes on.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mllm_tailor.commands.console import show, show_heading, show_json
from mllm_tailor.commands.progress_tables import show_event
from mllm_tailor.core.errors import RecipeError
from mllm_tailor.core.io import read_json, read_jsonl, write_json
from mllm_tailor.core.terminal import Table
from mllm_tailor.recipe import dump_recipe, make_recipe, read_single
from mllm_tailor.reporting import write_curve
from mllm_tailor.run.data_changes import same_held_out
from mllm_tailor.run.dataset import prepare
from mllm_tailor.run.pipeline import check_run, run_pipeline
from mllm_tailor.run.resolve import ResolvedRun, resolve, resolve_saved
from mllm_tailor.run.run_dir import RunFolder, finished, own_run, read_scores, share_predictions
from mllm_tailor.scoring import LearningCurve, Scores, fit_curve
from mllm_tailor.scoring.intervals import Interval


def read_sizes(text: str) -> list[int]:
    """`25,50,100` -> [25, 50, 100].

    Raises:
        RecipeError: for anything else.
    """
    words = [word.strip() for word in text.split(",")]
    if not all(word.isdecimal() and int(word) > 0 for word in words):
        raise RecipeError(f"`{text}` names no sizes — write numbers of samples with commas between: 25,50,100")
    return [int(word) for word in words]


def draw_curve(path: Path, overrides: list[str], sizes: Sequence[int], *, exclude_faulty: bool) -> LearningCurve:
    """Run every point, fit the law, print the table, write curve.json and curve.html.

    Raises:
        RecipeError: for a recipe with stages, or sizes that leave fewer than three points.
    """
    run = resolve(read_single(path, overrides))
    check_run(run)
    recipe = run.recipe
    folder = Path(recipe.output) / f"{recipe.name}-curve"
    whole, _ = prepare(run, exclude_faulty=exclude_faulty)
    chosen = _sizes(sizes, len(whole.train) + len(whole.dev))
    runs = [_point(_limited(run, size, folder), exclude_faulty=exclude_faulty) for size in chosen]
    scores = [_tuned(run) for run in runs]
    groups = _groups(runs[-1], scores[-1])
    metric = str(read_scores(runs[-1])["metrics"][0])
    found = fit_curve([_labelled(run) for run in runs], scores, metric, groups)
    untuned = Interval(**read_scores(runs[-1])["gain"][metric]["base"])
    _show(found, untuned)
    write_json(folder / "curve.json", found.row() | {"untuned": vars(untuned)})
    write_curve(recipe.name, found, untuned, in_words(found), dump_recipe(recipe), folder / "curve.html")
    show(f"Chart: {folder / 'curve.html'}")
    show_json(read_json(folder / "curve.json"))
    return found


def _sizes(wanted: Sequence[int], available: int) -> list[int | None]:
    """The sizes below what is there, ascending, then all (None).

    Raises:
        RecipeError: when fewer than three are left.
    """
    below = sorted({size for size in wanted if 0 < size < available})
    if len(below) < 2:
        shown = ", ".join(map(str, wanted))
        raise RecipeError(
            f"of the sizes {shown} only {len(below)} lie below the {available} samples there are to train on, but a "
            "curve needs two beside all of them — name others (--at)"
        )
    return [*below, None]


def _limited(run: ResolvedRun, size: int | None, folder: Path) -> ResolvedRun:
    """The run with fewer samples; its folder lies in the curve's."""
    values = run.recipe.model_dump(mode="json") | {"name": str(size or "all"), "output": str(folder)}
    if size is not None:
        values["data"] |= {"limit": size}
    return resolve_saved(make_recipe(values))


def _point(resolved: ResolvedRun, *, exclude_faulty: bool) -> RunFolder:
    """One run, or what is left of it. The untouched model reads the held-out samples once for all points."""
    with own_run(resolved.recipe) as run:
        return _run_point(run, resolved, exclude_faulty=exclude_faulty)


def _run_point(run: RunFolder, resolved: ResolvedRun, *, exclude_faulty: bool) -> RunFolder:
    if finished(run):
        show(f"{run.path} is finished. Report: {run.report}")
        return run
    show_heading(f"{run.path.name} labelled samples")
    splits, _ = prepare(resolved, exclude_faulty=exclude_faulty)
    for other in sorted(run.path.parent.iterdir()):
        if finished(RunFolder(other)) and same_held_out(RunFolder(other), splits):
            share_predictions(RunFolder(other), run, "base_*")
    run_pipeline(run, resolved, splits, show_event)
    return run


def _tuned(run: RunFolder) -> Scores:
    row = read_scores(run)
    return Scores.from_row(row["systems"][f"tuned_{row['mode']}"])


def _labelled(run: RunFolder) -> int:
    """Samples whose labels the training saw, to learn from or to choose the best epoch by."""
    return sum(row["part"] in ("train", "dev") for _, row in read_jsonl(run.ledger))


def _groups(run: RunFolder, scores: Scores) -> list[str | None] | None:
    """The group of each held-out sample, in the order of the scores; None when no sample has one."""
    known = {row["id"]: row.get("group") for _, row in read_jsonl(run.ledger) if row["part"] == "held_out"}
    groups = [known[identifier] for identifier in scores.ids]
    return groups if any(groups) else None


def in_words(found: LearningCurve) -> str:
    """What labelling as many samples again is expected to bring, and how sure that is."""
    last, gain = found.sizes[-1], found.gain
    figures = f"{gain.value:+.1f} points (95 % interval {gain.low:+.1f} to {gain.high:+.1f})"
    if gain.clear:
        return f"Labelling {last} more samples, {2 * last} in all, is expected to bring {figures}."
    return (
        f"Whether labelling {last} more samples, {2 * last} in all, would help cannot be told from these points: "
        f"{figures}, and zero lies within."
    )


def _show(found: LearningCurve, untuned: Interval) -> None:
    table = Table(f"{found.metric.replace('_', ' ')} by labelled samples", "", "score", "95 % interval")
    rows = [("untuned", untuned), *zip(map(str, found.sizes), found.values, strict=True)]
    rows.append((f"{2 * found.sizes[-1]}, estimated", found.doubled))
    for name, one in rows:
        table.add_row(name, f"{one.value:.1f}", f"{one.low:.1f} to {one.high:.1f}")
    show(table)
    show(f"Law: error = {found.scale:.3g} x samples^-{found.exponent:.3g}. {in_words(found)}")
