"""`tailor predict`: read new files with a run's model, here or in vLLM."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mllm_tailor.commands.console import show
from mllm_tailor.core.errors import RunError, nearest
from mllm_tailor.core.sample import Prediction, Sample
from mllm_tailor.generation import predict, read_inputs
from mllm_tailor.recipe import Recipe, read_single
from mllm_tailor.run.predict import generate, open_base, open_tuned, write_predictions
from mllm_tailor.run.resolve import resolve_from_data
from mllm_tailor.run.run_dir import RunFolder, open_run
from mllm_tailor.run.scores import MODES, in_mode
from mllm_tailor.tasks import Task, make_task

ENGINES = ("builtin", "vllm")


def predict_paths(
    run_path: Path | None,
    paths: Sequence[Path],
    out: Path,
    *,
    model: str | None,
    recipe: Path | None,
    base: bool,
    unconstrained: bool,
    engine: str = "builtin",
) -> None:
    """Read files with a run's model (or an untuned one) and write one JSON row each, in the order given.

    Raises:
        RunError: for nothing to read, an unfinished run, or an unknown engine.
        ModelError: when the model cannot be opened, or not in this engine.
    """
    if engine not in ENGINES:
        raise RunError(f"no engine is called `{engine}` — {nearest(engine, ENGINES)}")
    if not paths:
        raise RunError("no files to read — name files, folders or JSONL manifests after the run")
    settings, tuned = _asked_for(run_path, model, recipe, base)
    task = make_task(settings)
    mode = MODES[1] if unconstrained else in_mode(task, settings.predict)
    samples = read_inputs(paths)
    read = _read_in_vllm if engine == "vllm" else _read_here
    predictions = read(settings, tuned, task, mode, samples)
    write_predictions(out, predictions)
    failed = sum(prediction.problem is not None for prediction in predictions)
    note = f", {failed} with a problem (see `problem` in their rows)" if failed else ""
    show(f"{len(predictions)} rows in {out}{note}")


def _asked_for(
    run_path: Path | None, model: str | None, recipe: Path | None, base: bool
) -> tuple[Recipe, RunFolder | None]:
    """The settings, and the run whose tuned model is asked for; None for an untouched one."""
    if run_path is not None:
        run = open_run(run_path)
        if not base and not run.training.is_file():
            raise RunError(f"{run_path}: training has not ended — run `tailor run` again to finish, or pass --base")
        return run.recipe(), None if base else run
    if model and recipe:
        return resolve_from_data(read_single(recipe, [f"model.path={model}"])), None
    raise RunError("name a run folder, or pass both --model and --recipe")


def _read_here(
    recipe: Recipe, tuned: RunFolder | None, task: Task, mode: str, samples: Sequence[Sample]
) -> list[Prediction]:
    opened = open_base(recipe) if tuned is None else open_tuned(recipe, tuned.adapter)
    return generate(mode, opened, task, samples, recipe.predict)


def _read_in_vllm(
    recipe: Recipe, tuned: RunFolder | None, task: Task, mode: str, samples: Sequence[Sample]
) -> list[Prediction]:
    from mllm_tailor.run.vllm_model import open_served  # only when asked for

    opened, writer = open_served(recipe, tuned, task, mode)
    try:
        return predict(opened, task, samples, recipe.predict, constrained=mode == MODES[0], writer=writer)
    finally:
        writer.close()
