"""Predictions of a run, kept as they come so that an interrupted job loses nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from mllm_tailor.core.device import computes_in_bf16, pick_device
from mllm_tailor.core.io import write_jsonl
from mllm_tailor.core.sample import Prediction, Sample
from mllm_tailor.generation import VisionFeatureCache, choose, predict, predict_both
from mllm_tailor.methods import make_method
from mllm_tailor.models import LoadedModel, load_model
from mllm_tailor.recipe import Recipe
from mllm_tailor.recipe.schema import Predict
from mllm_tailor.run.run_dir import add_prediction, read_predictions
from mllm_tailor.run.scores import LIKELIHOOD, MODES
from mllm_tailor.tasks import ChoiceTask, Task


def predict_to_file(
    paths: Mapping[bool, Path],
    model: LoadedModel,
    task: Task,
    samples: Sequence[Sample],
    recipe: Recipe,
    memory: VisionFeatureCache,
) -> None:
    """Predict what `paths` do not hold yet: a file for replies held to the schema (True), one for free ones (False).

    Where both are wanted, both follow from one reading of picture and prompt.
    """
    done = {held: {prediction.id for prediction in read_predictions(path)} for held, path in paths.items()}
    missing = [sample for sample in samples if any(sample.id not in ids for ids in done.values())]
    if missing and task.name == "match":
        missing = list(samples)  # each is ranked among all others

    def keep(prediction: Prediction, held: bool) -> None:
        if prediction.id not in done[held]:
            add_prediction(paths[held], prediction)

    if len(paths) == 2:
        predict_both(model, task, missing, recipe.predict, on_done=keep, memory=memory)
        return
    for held in paths:
        predict(
            model,
            task,
            missing,
            recipe.predict,
            constrained=held,
            on_done=lambda prediction, held=held: keep(prediction, held),
            memory=memory,
        )


def choose_to_file(
    path: Path,
    model: LoadedModel,
    task: ChoiceTask,
    samples: Sequence[Sample],
    recipe: Recipe,
    memory: VisionFeatureCache,
) -> None:
    """The likeliest of all replies to every sample that `path` does not hold yet."""
    done = {prediction.id for prediction in read_predictions(path)}
    missing = [sample for sample in samples if sample.id not in done]
    choose(model, task, missing, recipe.predict, on_done=lambda found: add_prediction(path, found), memory=memory)


def generate(
    mode: str,
    model: LoadedModel,
    task: Task,
    samples: Sequence[Sample],
    settings: Predict,
    *,
    on_done: Callable[[Prediction], None] | None = None,
    memory: VisionFeatureCache | None = None,
) -> list[Prediction]:
    """Predictions in one way of decoding: held to the schema, free, or the likeliest of all replies."""
    if mode == LIKELIHOOD and isinstance(task, ChoiceTask):
        return choose(model, task, samples, settings, on_done=on_done, memory=memory)
    return predict(model, task, samples, settings, constrained=mode == MODES[0], on_done=on_done, memory=memory)


def generate_to_file(
    path: Path,
    mode: str,
    model: LoadedModel,
    task: Task,
    samples: Sequence[Sample],
    recipe: Recipe,
    memory: VisionFeatureCache,
) -> None:
    """Predict in one way of decoding what `path` does not hold yet."""
    if mode == LIKELIHOOD and isinstance(task, ChoiceTask):
        choose_to_file(path, model, task, samples, recipe, memory)
    else:
        predict_to_file({mode == MODES[0]: path}, model, task, samples, recipe, memory)


def open_base(recipe: Recipe, *, quantize: str | None = None, quantize_skip: Sequence[str] = ()) -> LoadedModel:
    """The recipe's model, untouched; unquantised unless asked for."""
    spec = recipe.model
    return load_model(
        spec.path,
        revision=spec.revision,
        dtype=spec.dtype,
        device=spec.device,
        tiles=spec.tiles,
        frames=spec.frames,
        tile_size=spec.tile_size,
        units=spec.units,
        trim=spec.trim,
        mixed=computes_in_bf16(spec.dtype, pick_device(spec.device)),
        system=spec.system,
        quantize=quantize,
        quantize_skip=quantize_skip,
    )


def moved(recipe: Recipe, folder: Path) -> Recipe:
    """The recipe with its model at `folder`, where what was learned was folded in; every other setting as it was."""
    model = recipe.model.model_copy(update={"path": str(folder), "revision": None})
    return recipe.model_copy(update={"model": model})


def open_tuned(recipe: Recipe, adapter: Path) -> LoadedModel:
    """The recipe's model as it was trained (quantised if it was), with what was trained put back."""
    unquantised = recipe.predict.weights == "unquantised"
    model = open_base(recipe) if unquantised else open_for_training(recipe)
    tiles = model.tiles
    make_method(recipe).load(model, adapter, unquantised=unquantised)
    if recipe.train.tiles:  # the recipe asks for other tiles in use than in training
        model.tiles = tiles
    return model


def open_for_training(recipe: Recipe) -> LoadedModel:
    """The recipe's model in the number format its method trains on."""
    method = make_method(recipe)
    return open_base(recipe, quantize=method.quantize, quantize_skip=method.quantize_skip)


def write_predictions(path: Path, predictions: Sequence[Prediction]) -> None:
    """One JSON row a sample, whole or not at all."""
    write_jsonl(path, (prediction.row() for prediction in predictions))
