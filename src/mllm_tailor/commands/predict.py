"""`tailor predict`: read new files with a run's model, here or in vLLM."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from mllm_tailor.commands.console import show
from mllm_tailor.core.errors import RunError, nearest
from mllm_tailor.core.sample import Prediction, Sample
from mllm_tailor.generation import predict, read_inputs
from mllm_tailor.recipe import DecodingMode, read_single
from mllm_tailor.run.data_record import read_data_facts
from mllm_tailor.run.predict import generate, open_base, open_tuned, write_predictions
from mllm_tailor.run.resolve import ResolvedRun, resolve
from mllm_tailor.run.run_dir import RunFolder, open_run

logger = logging.getLogger(__name__)

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
    mode = DecodingMode.UNCONSTRAINED if unconstrained else settings.mode
    samples = read_inputs(paths)
    _tell_missing(run_path, samples)
    read = _read_in_vllm if engine == "vllm" else _read_here
    predictions = read(settings, tuned, mode, samples)
    write_predictions(out, predictions)
    failed = sum(prediction.problem is not None for prediction in predictions)
    note = f", {failed} with a problem (see `problem` in their rows)" if failed else ""
    show(f"{len(predictions)} rows in {out}{note}")


def _tell_missing(run_path: Path | None, samples: Sequence[Sample]) -> None:
    """Warn where the run was trained with system texts that differ and an input brings none."""
    run = None if run_path is None else RunFolder(run_path)
    if run is None or not run.data.is_file() or not (count := read_data_facts(run).get("own_systems")):
        return
    without = sum(sample.system is None for sample in samples)
    if without:
        logger.warning(
            "%d training rows brought system texts of their own, and %d of these inputs have none — name `system` in "
            "a JSONL manifest",
            count,
            without,
        )


def _asked_for(
    run_path: Path | None, model: str | None, recipe: Path | None, base: bool
) -> tuple[ResolvedRun, RunFolder | None]:
    """The settings, and the run whose tuned model is asked for; None for an untouched one."""
    if run_path is not None:
        run = open_run(run_path)
        if not base and not run.training.is_file():
            raise RunError(f"{run_path}: training has not ended — run `tailor run` again to finish, or pass --base")
        return resolve(run.recipe()), None if base else run
    if model and recipe:
        return resolve(read_single(recipe, [f"model.path={model}"])), None
    raise RunError("name a run folder, or pass both --model and --recipe")


def _read_here(
    run: ResolvedRun, tuned: RunFolder | None, mode: DecodingMode, samples: Sequence[Sample]
) -> list[Prediction]:
    opened = open_base(run) if tuned is None else open_tuned(run, tuned.adapter)
    return generate(mode, opened, run, samples)


def _read_in_vllm(
    run: ResolvedRun, tuned: RunFolder | None, mode: DecodingMode, samples: Sequence[Sample]
) -> list[Prediction]:
    from mllm_tailor.run.vllm_model import open_served  # only when asked for

    opened, engine = open_served(run, tuned, mode)
    try:
        return predict(
            opened, run.task, samples, run.recipe.predict, constrained=mode is DecodingMode.CONSTRAINED, engine=engine
        )
    finally:
        engine.close()
