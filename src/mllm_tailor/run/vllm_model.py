"""A run's model as vLLM opens it: one plain folder, and everything but the weights to ask and read it with."""

from __future__ import annotations

import gc
from pathlib import Path

import torch

from mllm_tailor.core.errors import ModelError, RunError
from mllm_tailor.core.io import atomic_folder, fingerprint, sha256
from mllm_tailor.core.progress import console
from mllm_tailor.generation.vllm.engine import VllmEngine, import_vllm
from mllm_tailor.generation.vllm.requests import check_family
from mllm_tailor.methods import check_mergeable, make_method, merge
from mllm_tailor.models import LoadedModel, save_model
from mllm_tailor.models.load import find_family, find_native
from mllm_tailor.recipe import Recipe
from mllm_tailor.recipe.schema import Predict
from mllm_tailor.run.predict import moved, open_base, open_tuned
from mllm_tailor.run.run_dir import RunFolder
from mllm_tailor.run.scores import LIKELIHOOD, MODES
from mllm_tailor.tasks import Task


def open_served(recipe: Recipe, run: RunFolder | None, task: Task, mode: str) -> tuple[LoadedModel, VllmEngine]:
    """The tuned model of `run`, or the recipe's untouched one, in vLLM; what comes beside it holds no weights.

    Raises:
        RunError: for a way of decoding that is not done in vLLM.
        ModelError: when vLLM is missing or cannot compute this model as it was trained.
    """
    _check_way(recipe.predict, mode)
    import_vllm()
    check_family(find_family(find_native(recipe.model.path, recipe.model.revision)))
    if run is None and recipe.model.units is not None:
        raise ModelError(
            f"{recipe.model.path}: audio units are words this checkpoint does not hold before it is trained — "
            "use `--engine builtin`"
        )
    model = open_base(recipe if run is None else moved(recipe, merged_folder(recipe, run)))
    drop_weights(model)
    return model, VllmEngine(model, model.folder, task.schema() if mode == MODES[0] else None)


def _check_way(settings: Predict, mode: str) -> None:
    if mode == LIKELIHOOD:
        raise RunError(
            "this task takes the likeliest of a closed set of replies, which `--engine vllm` does not compare — "
            "use `--engine builtin`, or `--unconstrained` to have a reply written"
        )
    asked = {
        f"predict.num_beams={settings.num_beams}": settings.num_beams > 1,
        "predict.fields=side_by_side": settings.fields == "side_by_side" and mode == MODES[0],
    }
    for words, wanted in asked.items():
        if wanted:
            raise RunError(
                f"the recipe says {words}, which is not done in vLLM — use `--engine builtin`, or leave it out"
            )


def merged_folder(recipe: Recipe, run: RunFolder) -> Path:
    """The run's adapter in its base, in the run's number format: a folder inside the run, written once an adapter.

    Raises:
        ModelError: for a method no single weight matrix can express.
    """
    folder = run.path / f"merged-{_key(recipe, run.adapter)}"
    if folder.is_dir():
        return folder
    check_mergeable(make_method(recipe))
    console.print(f"Merging the adapter for vLLM, once, into {folder}", highlight=False)
    model = open_tuned(recipe, run.adapter)
    merge(model)
    with atomic_folder(folder, replace=False) as partial:
        save_model(model, partial)
    return folder


def _key(recipe: Recipe, adapter: Path) -> str:
    """Of what the merged weights follow from: the adapter's files, its base, and what it is added to."""
    files = sorted(file for file in adapter.rglob("*") if file.is_file())
    sums = [[str(file.relative_to(adapter)), sha256(file)] for file in files]
    return fingerprint(recipe.model.model_dump(mode="json"), recipe.predict.weights, sums)[:12]


def drop_weights(model: LoadedModel) -> None:
    """Keep of a model what encodes samples and reads replies; vLLM holds weights of its own."""
    model.model.to("meta")
    gc.collect()
    if model.device.type == "cuda":
        torch.cuda.empty_cache()
