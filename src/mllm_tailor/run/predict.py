"""Predictions of a run, written as they are made, so that an interrupted run loses at most those in flight."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
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
KeepMode = Callable[[Prediction, DecodingMode], None]
# Both follow from one pass over image and prompt.
BOTH: tuple[DecodingMode, ...] = (DecodingMode.CONSTRAINED, DecodingMode.UNCONSTRAINED)


@dataclass(frozen=True)
class Chunk:
    """Samples that are predicted together, and in which modes: one, or `BOTH`."""

    modes: tuple[DecodingMode, ...]
    samples: tuple[Sample, ...]


@dataclass(frozen=True)
class ModelSource:
    """What a model is opened from: the base model of a run, and the update that is applied to it, if any."""

    run: ResolvedRun
    adapter: Path | None = None

    def open(self) -> LoadedModel:
        """The model.

        Raises:
            RunError: when a file of it is damaged or missing.
        """
        return open_base(self.run) if self.adapter is None else open_tuned(self.run, self.adapter)


class PredictionFiles:
    """The files of predictions of some samples, one for each decoding mode, and what they hold already."""

    def __init__(self, paths: Mapping[DecodingMode, Path], run: ResolvedRun, samples: Sequence[Sample]) -> None:
        self.paths, self.run, self.samples = paths, run, samples
        self._written = {mode: {prediction.id for prediction in read_predictions(path)} for mode, path in paths.items()}

    def missing(self) -> list[Chunk]:
        """What is left to predict; constrained and unconstrained replies both follow from one pass."""
        groups = [BOTH] if self.paths.keys() >= set(BOTH) else []
        chunks = [
            Chunk(modes, self._missing(modes))
            for modes in (*groups, *((mode,) for mode in self.paths if not groups or mode not in BOTH))
        ]
        return [chunk for chunk in chunks if chunk.samples]

    def keep(self, prediction: Prediction, mode: DecodingMode) -> None:
        """Write a prediction, unless the file holds one of this sample."""
        if prediction.id not in self._written[mode]:
            add_prediction(self.paths[mode], prediction)
            self._written[mode].add(prediction.id)

    def finish(self) -> None:
        """All predictions are written."""
        for path in self.paths.values():
            finish_rows(path)

    def _missing(self, modes: Sequence[DecodingMode]) -> tuple[Sample, ...]:
        left = tuple(sample for sample in self.samples if any(sample.id not in self._written[mode] for mode in modes))
        return tuple(self.samples) if left and self.run.task.name == "match" else left  # ranked among all others


def predict_to_files(
    paths: Mapping[DecodingMode, Path],
    model: LoadedModel,
    run: ResolvedRun,
    samples: Sequence[Sample],
    cache: VisionFeatureCache,
) -> None:
    """Predict, in each of these modes, what its file does not hold yet."""
    files = PredictionFiles(paths, run, samples)
    for chunk in files.missing():
        predict_chunk(chunk, model, run, files.keep, cache)
    files.finish()


def predict_chunk(
    chunk: Chunk, model: LoadedModel, run: ResolvedRun, on_done: KeepMode, cache: VisionFeatureCache
) -> None:
    """Predict the samples of a chunk; `on_done` gets each prediction as soon as it is made."""
    if len(chunk.modes) > 1:
        predict_both(model, run.task, chunk.samples, run.recipe.predict, on_done=on_done, cache=cache)
        return
    (mode,) = chunk.modes
    generate(mode, model, run, chunk.samples, on_done=lambda prediction: on_done(prediction, mode), cache=cache)


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
