"""Predictions of a run, written as they are made, so that an interrupted run loses at most those in flight."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from mllm_tailor.core.io import write_jsonl
from mllm_tailor.core.manifest import MANIFEST, verify
from mllm_tailor.core.sample import Prediction, Sample
from mllm_tailor.core.summed_rows import finish_rows
from mllm_tailor.generation import VisionFeatureCache, choose, predict, predict_both
from mllm_tailor.models import InputSettings, LoadedModel, load_model
from mllm_tailor.recipe import DecodingMode
from mllm_tailor.run.resolve import ResolvedRun
from mllm_tailor.run.run_dir import MERGED, add_prediction, read_predictions
from mllm_tailor.tasks import ChoiceTask

Keep = Callable[[Prediction], None]
BOTH = (DecodingMode.CONSTRAINED, DecodingMode.UNCONSTRAINED)  # they follow from one pass over image and prompt


def predict_to_files(
    paths: Mapping[DecodingMode, Path],
    model: LoadedModel,
    run: ResolvedRun,
    samples: Sequence[Sample],
    cache: VisionFeatureCache,
) -> None:
    """Predict, in each of these modes, what its file does not hold yet.

    Constrained and unconstrained replies both follow from one pass over image and prompt.
    """
    written = {mode: {prediction.id for prediction in read_predictions(path)} for mode, path in paths.items()}

    def keeper(mode: DecodingMode) -> Keep:
        def keep(prediction: Prediction) -> None:
            if prediction.id not in written[mode]:
                add_prediction(paths[mode], prediction)

        return keep

    def missing(modes: Sequence[DecodingMode]) -> list[Sample]:
        left = [sample for sample in samples if any(sample.id not in written[mode] for mode in modes)]
        return list(samples) if left and run.task.name == "match" else left  # each is ranked among all others

    alone = list(paths)
    if paths.keys() >= set(BOTH):
        keep = {mode: keeper(mode) for mode in BOTH}
        predict_both(
            model,
            run.task,
            missing(BOTH),
            run.recipe.predict,
            on_done=lambda prediction, mode: keep[mode](prediction),
            cache=cache,
        )
        alone = [mode for mode in paths if mode not in BOTH]
    for mode in alone:
        generate(mode, model, run, missing([mode]), on_done=keeper(mode), cache=cache)
    for path in paths.values():
        finish_rows(path)


def generate(
    mode: DecodingMode,
    model: LoadedModel,
    run: ResolvedRun,
    samples: Sequence[Sample],
    *,
    on_done: Keep | None = None,
    cache: VisionFeatureCache | None = None,
) -> list[Prediction]:
    """Predictions in one decoding mode, in the order of the samples; `on_done` gets each as soon as it is made."""
    settings = run.recipe.predict
    if mode is DecodingMode.LIKELIHOOD and isinstance(run.task, ChoiceTask):
        return choose(model, run.task, samples, settings, on_done=on_done, cache=cache)
    constrained = mode is DecodingMode.CONSTRAINED
    return predict(model, run.task, samples, settings, constrained=constrained, on_done=on_done, cache=cache)


def generate_in_modes(
    modes: Sequence[DecodingMode], model: LoadedModel, run: ResolvedRun, samples: Sequence[Sample]
) -> dict[DecodingMode, list[Prediction]]:
    """Predictions in each of these modes, with the work shared that `predict_to_files` shares."""
    replies: dict[DecodingMode, list[Prediction]] = {}
    if set(modes) >= set(BOTH):
        replies = predict_both(model, run.task, samples, run.recipe.predict)
    return replies | {mode: generate(mode, model, run, samples) for mode in modes if mode not in replies}


def open_base(run: ResolvedRun, *, quantize: str | None = None, quantize_skip: Sequence[str] = ()) -> LoadedModel:
    """The run's base model; unquantised unless asked for.

    Raises:
        RunError: when it is the merged model of the stage before, and a file of that is damaged or missing.
    """
    spec = run.model
    folder = Path(spec.path)
    if folder.name == MERGED and (folder.parent / MANIFEST).is_file():
        verify(folder.parent, folder)
    return load_model(
        spec.path,
        revision=spec.revision,
        dtype=spec.dtype,
        device=spec.device,
        quantize=quantize,
        quantize_skip=quantize_skip,
        inputs=InputSettings.of(spec),
        mixed_precision=run.bf16,
    )


def open_tuned(run: ResolvedRun, adapter: Path) -> LoadedModel:
    """The base model as it was trained (quantised if it was), with the trained update applied.

    Raises:
        RunError: when a file of the adapter is damaged or missing.
    """
    return add_adapter(open_in_use(run), run, adapter)


def open_in_use(run: ResolvedRun) -> LoadedModel:
    """The base model in the number format in which the tuned model is used."""
    return open_base(run) if run.recipe.predict.weights == "unquantised" else open_for_training(run)


def add_adapter(model: LoadedModel, run: ResolvedRun, adapter: Path) -> LoadedModel:
    """Apply a run's trained update to its base model.

    Raises:
        RunError: when a file of the adapter is damaged or missing.
    """
    if (adapter.parent / MANIFEST).is_file():
        verify(adapter.parent, adapter)
    tiles = model.tiles
    run.method.load(model, adapter, unquantised=run.recipe.predict.weights == "unquantised")
    if run.recipe.train.tiles:  # the recipe asks for other tiles in use than in training
        model.tiles = tiles
    return model


def open_for_training(run: ResolvedRun) -> LoadedModel:
    """The base model in the number format that the run's method trains on."""
    return open_base(run, quantize=run.method.quantize, quantize_skip=run.method.quantize_skip)


def write_predictions(path: Path, predictions: Sequence[Prediction]) -> None:
    """One JSON row a sample, whole or not at all."""
    write_jsonl(path, (prediction.row() for prediction in predictions))
