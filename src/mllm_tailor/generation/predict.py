"""Predictions of a task for samples."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from mllm_tailor.core.errors import ModelError
from mllm_tailor.core.progress import progress
from mllm_tailor.core.sample import Prediction, Sample
from mllm_tailor.generation.predictor import Engine, Predictor
from mllm_tailor.generation.retrieval import match
from mllm_tailor.models import LoadedModel
from mllm_tailor.models.vision_cache import VisionFeatureCache
from mllm_tailor.recipe import DecodingMode, Predict
from mllm_tailor.tasks import Task

OnDone = Callable[[Prediction], None]


def predict(
    model: LoadedModel,
    task: Task,
    samples: Sequence[Sample],
    settings: Predict,
    *,
    constrained: bool | None = None,
    on_done: OnDone | None = None,
    cache: VisionFeatureCache | None = None,
    engine: Engine | None = None,
) -> list[Prediction]:
    """The model's replies to samples, in their order.

    Only unlabelled copies are phrased and encoded, so no label can reach the model. A sample that cannot be read
    becomes a prediction without text whose `problem` states why. `constrained` overrides the settings; `on_done` gets
    every prediction as soon as it is made, in any order; `cache` keeps vision features; `engine` replaces our own.
    """
    if task.name == "match":
        predictions = match(model, task, samples, settings)
        if on_done is not None:
            for prediction in predictions:
                on_done(prediction)
        return predictions
    constrained = settings.constrained if constrained is None else constrained
    mode = DecodingMode.CONSTRAINED if constrained else DecodingMode.UNCONSTRAINED
    report = None if on_done is None else lambda prediction, _: on_done(prediction)
    return _run(Predictor(model, task, settings, [mode], cache=cache, engine=engine), samples, report)[mode]


def predict_both(
    model: LoadedModel,
    task: Task,
    samples: Sequence[Sample],
    settings: Predict,
    *,
    on_done: Callable[[Prediction, DecodingMode], None] | None = None,
    cache: VisionFeatureCache | None = None,
) -> dict[DecodingMode, list[Prediction]]:
    """Constrained and unconstrained replies, each equal to those of `predict`, by decoding mode.

    Both continue from one prefill of image and prompt, which is most of the work. `on_done` also gets the mode.
    """
    modes = (DecodingMode.CONSTRAINED, DecodingMode.UNCONSTRAINED)
    return _run(Predictor(model, task, settings, modes, cache=cache), samples, on_done)


def _run(
    predictor: Predictor, samples: Sequence[Sample], on_done: Callable[[Prediction, DecodingMode], None] | None
) -> dict[DecodingMode, list[Prediction]]:
    """Predict all samples, with a progress display, leaving the model in the mode it was in."""
    predictions: dict[DecodingMode, dict[int, Prediction]] = {mode: {} for mode in predictor.modes}
    model = predictor.model.model
    was_training = model.training
    model.eval()
    with progress("Predicting", len(samples) * len(predictor.modes)) as display:
        try:
            for result in predictor.predict(samples):
                predictions[result.mode][result.index] = result.prediction
                display.advance()
                if on_done is not None:
                    on_done(result.prediction, result.mode)
        except torch.OutOfMemoryError:
            batch = predictor.settings.batch_size
            raise ModelError(
                f"out of memory with {batch} samples side by side; the longest is {predictor.longest} — "
                f"set predict.batch_size={max(1, batch // 2)}, or use fewer tiles (model.tiles.max)"
            ) from None
        finally:
            model.train(was_training)
    return {mode: [by_index[index] for index in range(len(samples))] for mode, by_index in predictions.items()}
