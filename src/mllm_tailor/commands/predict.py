"""`tailor predict`: one JSON row for each new file, by a tuned or untuned model, here or in vLLM."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mllm_tailor.commands.console import show, show_json
from mllm_tailor.core.errors import RunError, nearest
from mllm_tailor.core.sample import Sample
from mllm_tailor.generation import read_inputs
from mllm_tailor.launch.ray_predict import predict_on_ray
from mllm_tailor.recipe import DecodingMode, read_single
from mllm_tailor.run.new_files import Predictor, predict_to_file, predictor_of_run
from mllm_tailor.run.output_file import output_path
from mllm_tailor.run.resolve import resolve

ENGINES = ("builtin", "vllm")
SHOWN_PROBLEMS = 10


def open_predictor(
    run_path: Path | None,
    *,
    model: str | None = None,
    recipe: Path | None = None,
    base: bool = False,
    unconstrained: bool = False,
    boxes: bool = False,
    engine: str = "builtin",
) -> Predictor:
    """What a run's model, or an untuned one at the task of a recipe, predicts with.

    Raises:
        RunError: for neither of them, an unfinished run, or an unknown engine.
    """
    if engine not in ENGINES:
        raise RunError(f"no engine is called `{engine}` — {nearest(engine, ENGINES)}")
    if run_path is not None:
        predictor = predictor_of_run(run_path, base=base, unconstrained=unconstrained, engine=engine)
    elif model and recipe:
        predictor = _of_recipe(recipe, model, engine)
        if unconstrained:
            predictor = replace(predictor, mode=DecodingMode.UNCONSTRAINED)
    else:
        raise RunError("name a run folder, or pass both --model and --recipe")
    return predictor.with_boxes() if boxes else predictor


def check_engine(on: str | None) -> None:
    """Refuse an unknown engine of many workers before a model is looked for.

    Raises:
        RunError: naming it.
    """
    if on not in (None, "ray"):
        raise RunError(f"--on {on}: files are read here or on `ray`")


def predict_paths(predictor: Predictor, paths: Sequence[Path | str], out: Path | str) -> None:
    """Read files and write one JSON row each, in the order given. Paths and `out` may be URLs of a store.

    Raises:
        RunError: for nothing to read.
        ModelError: when the model cannot be opened, or not in this engine.
    """
    with output_path(out) as file:
        rows = predict_to_file(file, predictor, _inputs(paths))
    _show(out, len(rows), [row for row in rows if "problem" in row])


def predict_paths_on_ray(
    predictor: Predictor, paths: Sequence[Path | str], out: Path | str, workers: int | None, address: str | None
) -> None:
    """Read files with workers of a Ray cluster and write one JSON row each into parts in the folder `out`.

    Raises:
        RunError: for nothing to read, without Ray, or for a folder that holds something else.
    """
    outcome = predict_on_ray(out, predictor, _inputs(paths, fetch=False), workers, address)
    if outcome.kept:
        show(f"{outcome.kept} rows were there already")
    _show(out, outcome.kept + outcome.made, outcome.problems)


def _inputs(paths: Sequence[Path | str], *, fetch: bool = True) -> list[Sample]:
    if not paths:
        raise RunError("no files to read — name files, folders or JSONL manifests after the run")
    return read_inputs(paths, fetch=fetch)


def _show(out: Path | str, rows: int, problems: Sequence[Mapping[str, Any]]) -> None:
    note = f", {len(problems)} with a problem (see `problem` in their rows)" if problems else ""
    show(f"{rows} rows in {out}{note}")
    for row in problems[:SHOWN_PROBLEMS]:
        show(f"  {row.get('file', row['id'])}: {row['problem']}")
    if len(problems) > SHOWN_PROBLEMS:
        show(f"  … and {len(problems) - SHOWN_PROBLEMS} more")
    show_json({"predictions": str(out), "rows": rows, "problems": list(problems)})


def _of_recipe(recipe: Path, model: str, engine: str) -> Predictor:
    """An untuned model at the task of a recipe."""
    run = resolve(read_single(recipe, [f"model.path={model}"]))
    return Predictor(run, run.mode, engine=engine)
