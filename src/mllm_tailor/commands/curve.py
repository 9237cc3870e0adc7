"""`tailor curve`: scores at several numbers of labelled samples, and the gain expected from labelling more.

Every point is an ordinary run with `data.limit`. The subsets are nested (a seeded order, cut at each size) and all runs
are scored on the same held-out samples. Called again, the command keeps finished points and continues the unfinished.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from mllm_tailor.commands.console import show, show_heading, show_json
from mllm_tailor.commands.progress_tables import show_event
from mllm_tailor.core.errors import RecipeError, RunError
from mllm_tailor.core.io import read_json, read_jsonl, write_json
from mllm_tailor.core.terminal import Table
from mllm_tailor.recipe import dump_recipe, make_recipe, read_single
from mllm_tailor.reporting import write_curve
from mllm_tailor.reporting.sentences import signed
from mllm_tailor.run.data_changes import fingerprint_data, made_from_other_data, same_held_out
from mllm_tailor.run.dataset import Splits, prepare
from mllm_tailor.run.fingerprints import read_fingerprints
from mllm_tailor.run.mapper import Mapper, in_turn
from mllm_tailor.run.pipeline import check_run, run_pipeline
from mllm_tailor.run.resolve import ResolvedRun, resolve, resolve_saved
from mllm_tailor.run.run_dir import RunFolder, finished, own_run, read_scores, share_predictions
from mllm_tailor.scoring import LearningCurve, Scores, fit_curve
from mllm_tailor.scoring.intervals import Interval
from mllm_tailor.scoring.learning import check_units


def read_sizes(text: str) -> list[int]:
    """`25,50,100` -> [25, 50, 100].

    Raises:
        RecipeError: for anything else.
    """
    words = [word.strip() for word in text.split(",")]
    if not all(word.isdecimal() and int(word) > 0 for word in words):
        raise RecipeError(f"`{text}` names no sizes — write numbers of samples with commas between: 25,50,100")
    return [int(word) for word in words]


def draw_curve(
    path: Path, overrides: list[str], sizes: Sequence[int], *, exclude_faulty: bool, mapper: Mapper = in_turn
) -> LearningCurve:
    """Run every point with the mapper, fit the power law, print the table, write curve.json and curve.html.

    Raises:
        RecipeError: for a recipe with stages, or sizes that leave fewer than three points.
        RunError: where the held-out samples are too few for intervals.
    """
    run = resolve(read_single(path, overrides))
    check_run(run)
    recipe = run.recipe
    folder = Path(recipe.output) / f"{recipe.name}-curve"
    whole, _ = prepare(run, exclude_faulty=exclude_faulty)
    check_units([sample.group for sample in whole.held_out], len(whole.held_out))
    chosen = _sizes(sizes, len(whole.train) + len(whole.dev))
    limited = [_limited(run, size, folder) for size in chosen]
    _check_same_data(whole, [RunFolder(Path(point.recipe.output) / point.name) for point in limited])
    work = partial(_point, exclude_faulty=exclude_faulty)
    points = [*mapper(work, limited[:1]), *mapper(work, limited[1:])]  # the first predicts with the base model for all
    scores = [_tuned_scores(point) for point in points]
    groups = _groups(points[-1], scores[-1])
    metric = str(read_scores(points[-1])["metrics"][0])
    curve = fit_curve([_count_labelled(point) for point in points], scores, metric, groups)
    untuned = Interval(**read_scores(points[-1])["gain"][metric]["base"])
    _show(curve, untuned)
    write_json(folder / "curve.json", curve.row() | {"untuned": vars(untuned)})
    write_curve(recipe.name, curve, untuned, expected_gain(curve), dump_recipe(recipe), folder / "curve.html")
    show(f"Chart: {folder / 'curve.html'}")
    show_json(read_json(folder / "curve.json"))
    return curve


def _sizes(wanted: Sequence[int], available: int) -> list[int | None]:
    """The wanted sizes below `available`, ascending, then None for all samples.

    Raises:
        RecipeError: when fewer than three are left.
    """
    below = sorted({size for size in wanted if 0 < size < available})
    if len(below) < 2:
        shown = ", ".join(map(str, wanted))
        raise RecipeError(
            f"there are {available} samples to train on and {len(below)} of the sizes {shown} are smaller, but a curve "
            "needs two smaller sizes — name others with --at"
        )
    return [*below, None]


def _limited(run: ResolvedRun, size: int | None, folder: Path) -> ResolvedRun:
    """The run with `size` training samples, in a folder inside the curve's."""
    values = run.recipe.model_dump(mode="json") | {"name": str(size or "all"), "output": str(folder)}
    if size is not None:
        values["data"] |= {"limit": size}
    return resolve_saved(make_recipe(values))


def _point(resolved: ResolvedRun, *, exclude_faulty: bool) -> RunFolder:
    """Run one point, or continue it. All points share the base model's predictions of the held-out samples."""
    with own_run(resolved.recipe) as run:
        return _run_point(run, resolved, exclude_faulty=exclude_faulty)


def _run_point(run: RunFolder, resolved: ResolvedRun, *, exclude_faulty: bool) -> RunFolder:
    if finished(run):
        show(f"{run.path} is finished. Report: {run.report}")
        return run
    show_heading(f"{run.path.name} labelled samples")
    splits, _ = prepare(resolved, exclude_faulty=exclude_faulty)
    for other in sorted(path for path in run.path.parent.iterdir() if path.is_dir()):
        if finished(RunFolder(other)) and same_held_out(RunFolder(other), splits):
            share_predictions(RunFolder(other), run, "base_*")
    run_pipeline(run, resolved, splits, show_event)
    return run


def _check_same_data(splits: Splits, points: Sequence[RunFolder]) -> None:
    """Refuse to continue a curve of which some points were made from other data than the rest would be."""
    begun = [point for point in points if read_fingerprints(point)]
    known = [row for point in begun for row in read_fingerprints(point)]
    if other := made_from_other_data(begun, fingerprint_data(splits, known)) if begun else []:
        names = ", ".join(str(point.path) for point in other)
        raise RunError(f"the data changed after {names} had used them — restore them, or remove these folders")


def _tuned_scores(run: RunFolder) -> Scores:
    row = read_scores(run)
    return Scores.from_row(row["systems"][f"tuned_{row['mode']}"])


def _count_labelled(run: RunFolder) -> int:
    """The number of samples whose labels the training used: those of the train and dev splits."""
    return sum(row["part"] in ("train", "dev") for _, row in read_jsonl(run.ledger))


def _groups(run: RunFolder, scores: Scores) -> list[str | None] | None:
    """The group of each held-out sample, in the order of the scores; None when no sample has one."""
    known = {row["id"]: row.get("group") for _, row in read_jsonl(run.ledger) if row["part"] == "held_out"}
    groups = [known[identifier] for identifier in scores.ids]
    return groups if any(groups) else None


def expected_gain(curve: LearningCurve) -> str:
    """A sentence: the gain expected from twice as many labelled samples, and its interval."""
    last, gain = curve.sizes[-1], curve.gain
    figures = f"{signed(gain.value)} points (95 % interval {signed(gain.low)} to {signed(gain.high)})"
    if gain.clear:
        return f"With {last} more labelled samples, {2 * last} in all, the expected gain is {figures}."
    return (
        f"With {last} more labelled samples, {2 * last} in all, the expected gain is {figures}: these points do not "
        "show whether labelling more helps."
    )


def _show(curve: LearningCurve, untuned: Interval) -> None:
    table = Table(f"{curve.metric.replace('_', ' ')} by labelled samples", "", "score", "95 % interval")
    rows = [("untuned", untuned), *zip(map(str, curve.sizes), curve.values, strict=True)]
    rows.append((f"{2 * curve.sizes[-1]}, estimated", curve.doubled))
    for name, score in rows:
        table.add_row(name, f"{score.value:.1f}", f"{score.low:.1f} to {score.high:.1f}")
    show(table)
    show(f"Power law: error = {curve.scale:.3g} x samples^-{curve.exponent:.3g}. {expected_gain(curve)}")
