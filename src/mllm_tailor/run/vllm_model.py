"""A run's model as vLLM opens it: one plain folder, and everything but the weights to ask and read it with."""

from __future__ import annotations

import gc
from pathlib import Path

import torch

from mllm_tailor.core.errors import ModelError, RunError
from mllm_tailor.core.io import fingerprint, sha256
from mllm_tailor.generation.vllm.engine import VllmEngine, import_vllm
from mllm_tailor.generation.vllm.requests import check_family
from mllm_tailor.models import LoadedModel
from mllm_tailor.models.load import find_family, find_native
from mllm_tailor.recipe import DecodingMode, Predict
from mllm_tailor.run.merged import merged_folder
from mllm_tailor.run.predict import open_base
from mllm_tailor.run.resolve import ResolvedRun
from mllm_tailor.run.run_dir import RunFolder


def open_served(run: ResolvedRun, folder: RunFolder | None, mode: DecodingMode) -> tuple[LoadedModel, VllmEngine]:
    """The tuned model of `folder`, or the base model without one, in vLLM; the model beside it holds no weights.

    Raises:
        RunError: for a way of decoding that is not done in vLLM.
        ModelError: when vLLM is missing or cannot compute this model as it was trained.
    """
    _check_mode(run.recipe.predict, mode)
    import_vllm()
    check_family(find_family(find_native(run.model.path, run.model.revision)))
    if folder is None and run.model.units is not None:
        raise ModelError(
            f"{run.model.path}: audio units are words this checkpoint does not hold before it is trained — "
            "use `--engine builtin`"
        )
    model = open_base(
        run if folder is None else run.with_model_folder(merged_folder(run, folder, merged_path(run, folder)))
    )
    drop_weights(model)
    return model, VllmEngine(model, model.folder, run.task.schema() if mode is DecodingMode.CONSTRAINED else None)


def _check_mode(settings: Predict, mode: DecodingMode) -> None:
    if mode is DecodingMode.LIKELIHOOD:
        raise RunError(
            "this task takes the likeliest of a closed set of replies, which `--engine vllm` does not compare — "
            "use `--engine builtin`, or `--unconstrained` to have a reply written"
        )
    asked = {
        f"predict.num_beams={settings.num_beams}": settings.num_beams > 1,
        "predict.fields=side_by_side": settings.fields == "side_by_side" and mode is DecodingMode.CONSTRAINED,
    }
    for words, wanted in asked.items():
        if wanted:
            raise RunError(
                f"the recipe says {words}, which is not done in vLLM — use `--engine builtin`, or leave it out"
            )


def merged_path(run: ResolvedRun, folder: RunFolder) -> Path:
    """Named by what the merged weights depend on: the adapter's files, its base, and the base's weights in use."""
    files = sorted(file for file in folder.adapter.rglob("*") if file.is_file())
    sums = [[str(file.relative_to(folder.adapter)), sha256(file)] for file in files]
    key = fingerprint(run.model.model_dump(mode="json"), run.recipe.predict.weights, sums)[:12]
    return folder.path / f"merged-{key}"


def drop_weights(model: LoadedModel) -> None:
    """Keep of a model what encodes samples and reads replies; vLLM holds weights of its own."""
    model.model.to("meta")
    gc.collect()
    if model.device.type == "cuda":
        torch.cuda.empty_cache()
