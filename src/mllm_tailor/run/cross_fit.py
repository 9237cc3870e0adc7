"""Cross-fitted readings: every sample is read by a model that was trained on the other folds. Resumable.

Each fold is a run folder of its own below `FOLDER/fold-K`, with the same checkpoints and predictions as any run, so the
same call continues where it stopped.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mllm_tailor.core.device import seed_everything
from mllm_tailor.core.sample import Prediction, Sample
from mllm_tailor.data.split import make_folds
from mllm_tailor.generation import VisionFeatureCache
from mllm_tailor.run.data_changes import reconcile
from mllm_tailor.run.dataset import Splits, taught
from mllm_tailor.run.lock import owned
from mllm_tailor.run.pipeline import check_model, tune
from mllm_tailor.run.predict import open_tuned, predict_to_files
from mllm_tailor.run.resolve import ResolvedRun
from mllm_tailor.run.run_dir import read_predictions, start_run

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class CrossFit:
    """How readings are cross-fitted."""

    folds: int
    max_minutes: float  # of training, over all folds


def cross_fit(
    run: ResolvedRun, samples: Sequence[Sample], layout: str, folder: Path, settings: CrossFit
) -> list[Prediction]:
    """Train a model without each fold in turn, and read the fold with it.

    Groups (else the samples of one file) stay within one fold. Readings are made without beams and in one framing, in
    the recipe's decoding mode.

    Raises:
        DataError: when there are fewer groups than folds.
        RunError: when the data or the recipe changed since the readings began.
    """
    check_model(run)
    predictions: list[Prediction] = []
    for number, ids in enumerate(make_folds(samples, settings.folds, f"{run.recipe.seed}:fold"), 1):
        fold = [sample for sample in samples if sample.id in ids]
        train = run.recipe.train.model_copy(update={"max_minutes": settings.max_minutes / settings.folds})
        recipe = run.recipe.model_copy(
            update={
                "name": f"fold-{number}",
                "output": str(folder),
                "train": train,
                "predict": run.recipe.predict.model_copy(update={"num_beams": 1, "framings": 1}),
                "data": run.recipe.data.model_copy(update={"dev": 0.0, "sources": []}),
            }
        )
        with owned(folder / recipe.name):
            predictions += _read_fold(replace(run, recipe=recipe), samples, fold, layout)
    return predictions


def _read_fold(run: ResolvedRun, samples: Sequence[Sample], fold: Sequence[Sample], layout: str) -> list[Prediction]:
    folder = start_run(run.recipe)
    path = folder.predictions(run.system("tuned"))
    if len(read_predictions(path)) < len(fold):
        ids = {sample.id for sample in fold}
        learned = tuple(sample for sample in samples if sample.id not in ids)
        seed = run.recipe.seed
        phrased, transcriptions = taught(run.task, learned, run.recipe.data, seed)
        splits = Splits(
            layout=layout,
            train=learned,
            dev=(),
            held_out=tuple(fold),
            phrased=phrased,
            transcriptions=transcriptions,
        )
        logger.info("%s: %d samples are read by a model of the other %d", run.name, len(fold), len(learned))
        reconcile(folder, splits)
        seed_everything(seed)
        cache = VisionFeatureCache(folder=folder.features)
        tune(folder, run, splits, cache)
        predict_to_files({run.mode: path}, open_tuned(run, folder.adapter), run, fold, cache)
    return read_predictions(path)
