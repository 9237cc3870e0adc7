"""A run's model as vLLM opens it: one plain folder, and everything but the weights to ask and read it with."""

from __future__ import annotations

import gc
import logging
from pathlib import Path

import torch

from mllm_tailor.core.errors import ModelError, RunError
from mllm_tailor.core.io import atomic_folder, fingerprint, sha256
from mllm_tailor.core.manifest import record, verify
from mllm_tailor.generation.vllm.engine import VllmEngine, import_vllm
from mllm_tailor.generation.vllm.requests import check_family
from mllm_tailor.methods import check_mergeable, merge
from mllm_tailor.models import LoadedModel, save_model
from mllm_tailor.models.load import find_family, find_native
from mllm_tailor.recipe import DecodingMode, Predict
from mllm_tailor.run.predict import open_base, open_tuned
from mllm_tailor.run.resolve import ResolvedRun
from mllm_tailor.run.run_dir import RunFolder

logger = logging.getLogger(__name__)


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
    model = open_base(run if folder is None else run.with_model_folder(merged_folder(run, folder)))
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


def merged_folder(run: ResolvedRun, folder: RunFolder) -> Path:
    """The run's adapter in its base, in the run's number format: a folder inside the run, written once an adapter.

    Raises:
        ModelError: for a method no single weight matrix can express.
    """
    target = folder.path / f"merged-{_key(run, folder.adapter)}"
    if target.is_dir():
        verify(folder.path, target)
        return target
    check_mergeable(run.method)
    logger.info("Merging the adapter for vLLM, once, into %s", target)
    model = open_tuned(run, folder.adapter)
    merge(model)
    with atomic_folder(target, replace=False) as partial:
        save_model(model, partial)
    record(folder.path, target)
    return target


def _key(run: ResolvedRun, adapter: Path) -> str:
    """Of what the merged weights follow from: the adapter's files, its base, and what it is added to."""
    files = sorted(file for file in adapter.rglob("*") if file.is_file())
    sums = [[str(file.relative_to(adapter)), sha256(file)] for file in files]
    return fingerprint(run.model.model_dump(mode="json"), run.recipe.predict.weights, sums)[:12]


def drop_weights(model: LoadedModel) -> None:
    """Keep of a model what encodes samples and reads replies; vLLM holds weights of its own."""
    model.model.to("meta")
    gc.collect()
    if model.device.type == "cuda":
        torch.cuda.empty_cache()
