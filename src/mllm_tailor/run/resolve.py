"""A recipe resolved: everything that follows from it, worked out once before a run begins."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from mllm_tailor.core.device import computes_in_bf16, pick_device
from mllm_tailor.core.errors import DataError, RecipeError
from mllm_tailor.core.io import cache_folder
from mllm_tailor.core.remote import local
from mllm_tailor.core.sample import Sample
from mllm_tailor.data import DataIssue, Dataset, may_share_system, read_samples, shared_system
from mllm_tailor.data.stream import holds_media
from mllm_tailor.generation.voting import check_framings
from mllm_tailor.methods import MethodSet, make_method
from mllm_tailor.recipe import DataSpec, DecodingMode, ModelSpec, Predict, Recipe
from mllm_tailor.scoring import METRICS
from mllm_tailor.scoring.systems import ModelState, System
from mllm_tailor.tasks import ChoiceTask, DataDependentTask, RegionTask, Task, open_task

logger = logging.getLogger(__name__)


class TrainingData:
    """The samples of `data.train` and the issues of its rows, read when first asked for."""

    def __init__(self, data: DataSpec) -> None:
        self.data = data
        self._path: Path | None = None
        self._read: tuple[Dataset, list[DataIssue]] | None = None

    @property
    def path(self) -> Path:
        """`data.train`, or its copy where it is a URL, which is brought up to date once."""
        if self._path is None:
            self._path = local(self.data.train)
        return self._path

    def read(self) -> tuple[Dataset, list[DataIssue]]:
        """Data set and issues; kept, since settings of a recipe may depend on them before the samples are split.

        Raises:
            DataError: when there is no readable sample.
        """
        if self._read is None:
            issues: list[DataIssue] = []
            data = self.data
            stream = holds_media(self.path) if data.stream is None else data.stream
            dataset = read_samples(
                self.path,
                data.layout,
                on_issue=issues.append,
                media_root=data.media_root,
                media_folder=cache_folder() / "media" if stream else None,
            )
            self._read = dataset, issues
        return self._read

    def take(self) -> tuple[Dataset, list[DataIssue]]:
        """As `read`, and keep nothing: the last use, or the next one reads the files as they are then."""
        result = self.read()
        self._read = self._path = None
        return result


@dataclass(frozen=True)
class ResolvedRun:
    """A recipe and all that it implies. Made by `resolve`; functions of this package take what they need of it."""

    recipe: Recipe  # with the settings that its task takes from the data filled in
    task: Task
    method: MethodSet
    modes: tuple[DecodingMode, ...]  # every decoding mode the task is scored in
    mode: DecodingMode  # the one the recipe asks for
    metrics: tuple[str, ...]  # the first is the headline
    lower_is_better: bool  # of the headline
    bf16: bool  # whether products are computed in bf16
    training_data: TrainingData = field(compare=False, repr=False)

    @property
    def name(self) -> str:
        """The run's name."""
        return self.recipe.name

    @property
    def model(self) -> ModelSpec:
        """The checkpoint and how it is opened."""
        return self.recipe.model

    @property
    def trains_on_features(self) -> bool:
        """Whether the training may read the vision features of the base model's images instead of the images."""
        train, sees = self.recipe.train, {"vision", "projector"}
        return not train.augment and train.tiles is None and sees.isdisjoint(self.method.parts)

    def system(self, state: ModelState) -> System:
        """The base or tuned model in the recipe's decoding mode."""
        return System(state, self.mode)

    def with_model(self, **changes: object) -> ResolvedRun:
        """The same run with other settings of `model` that change neither task, method nor number format."""
        model = self.recipe.model.model_copy(update=changes)
        return replace(self, recipe=self.recipe.model_copy(update={"model": model}))

    def reading_once(self) -> ResolvedRun:
        """The same run in a single framing of each image: enough for what training asks of its own model."""
        predict = self.recipe.predict.model_copy(update={"framings": 1})
        return replace(self, recipe=self.recipe.model_copy(update={"predict": predict}))

    def with_model_folder(self, folder: Path) -> ResolvedRun:
        """The same run on the model in `folder`, into which an update was merged."""
        return self.with_model(path=str(folder), revision=None)


def resolve(recipe: Recipe) -> ResolvedRun:
    """Resolve a recipe; of the data only what settings are taken from is read: the task's classes, the system text.

    Raises:
        RecipeError: naming a setting that is unknown or does not go with another.
        DataError: when the data do not hold what the task needs of them.
    """
    training_data = TrainingData(recipe.data)
    model = _with_shared_system(training_data, recipe.model)
    return resolve_saved(recipe.model_copy(update={"model": model}), training_data)


def resolve_saved(recipe: Recipe, training_data: TrainingData | None = None) -> ResolvedRun:
    """Resolve the recipe of a run folder, in which the settings from the data are filled in: no data are read.

    Raises:
        RecipeError: naming a setting that is unknown or does not go with another.
    """
    training_data = training_data or TrainingData(recipe.data)
    device = check_device(recipe.model.device)
    task = open_task(recipe.task_name, recipe.task_settings)
    if isinstance(task, DataDependentTask):  # a class that only held-out samples have is a class, too
        task = task.resolve_from(_samples(training_data))
        recipe = recipe.model_copy(update={"task": {recipe.task_name: task.resolved_settings()}})
    if isinstance(task, RegionTask):
        recipe = recipe.model_copy(update={"model": _with_pages_in_place(recipe.model, task)})
    check_framings(task, recipe.predict)
    metrics = metric_names(recipe.score, task)
    return ResolvedRun(
        recipe=recipe,
        task=task,
        method=make_method(recipe),
        modes=decoding_modes(task),
        mode=requested_mode(task, recipe.predict),
        metrics=metrics,
        lower_is_better=METRICS.load(metrics[0]).better == "lower",
        bf16=computes_in_bf16(recipe.model.dtype, device),
        training_data=training_data,
    )


def resolve_here(recipe: Recipe) -> ResolvedRun:
    """As `resolve_saved`; a device of the recipe that this machine lacks is replaced by the best there is, with a line.

    Raises:
        RecipeError: naming a setting that is unknown or does not go with another.
    """
    try:
        check_device(recipe.model.device)
    except RecipeError:
        logger.warning("The run's device %s is absent here: using %s", recipe.model.device, pick_device())
        recipe = recipe.model_copy(update={"model": recipe.model.model_copy(update={"device": None})})
    return resolve_saved(recipe)


def _with_pages_in_place(model: ModelSpec, task: Task) -> ModelSpec:
    """The model with images as they are, whatever its checkpoint states: boxes do not move with printed lines.

    Raises:
        RecipeError: where the recipe asks for lines that are set one after the other.
    """
    if model.reflow:
        raise RecipeError(
            f"model.reflow: `{task.name}` learns boxes of the page, and printed lines that are set one after the other "
            "stand elsewhere — leave model.reflow out"
        )
    return model.model_copy(update={"reflow": False})


def _with_shared_system(training_data: TrainingData, model: ModelSpec) -> ModelSpec:
    """The model with the system text that all rows share, so that predict, chat and export use it too.

    Raises:
        RecipeError: where the recipe sets another one, which the rows' own text would replace in training.
    """
    data, system = training_data.data, None
    try:
        if training_data.path.exists() and may_share_system(training_data.path, data.layout):
            system = shared_system(training_data.read()[0].samples)
    except DataError:
        return model  # where the data are needed, reading them names the fault
    if system is None or system == model.system:
        return model
    if model.system is not None:
        raise RecipeError(
            f"`model.system` is {model.system[:60]!r}, but every row brings the system text {system[:60]!r} — leave "
            "one of them out"
        )
    return model.model_copy(update={"system": system})


def check_device(wanted: str | None) -> torch.device:
    """The device that the recipe asks for, or the best there is.

    Raises:
        RecipeError: when this machine has no such device.
    """
    try:
        device = pick_device(wanted)
    except RuntimeError:
        raise RecipeError(f"`model.device`: no device is called `{wanted}` — write cpu, cuda or cuda:1") from None
    present = torch.cuda.device_count()
    if device.type == "cuda" and (device.index or 0) >= present:
        count = f"GPUs here: {present}, the first is cuda:0" if present else "this machine has no GPU"
        raise RecipeError(f"`model.device`: {wanted} is absent ({count}) — leave it out to use the best device")
    return device


def _samples(training_data: TrainingData) -> Iterator[Sample]:
    """Every sample of the recipe's task; rows that cannot be read are reported when the data are validated."""
    data = training_data.data
    yield from training_data.read()[0].samples
    sources: list[tuple[str | None, str | None, str | None]] = [(data.held_out.folder, None, data.media_root)]
    sources += [(source.train, source.layout, source.media_root) for source in data.sources if source.task is None]
    for path, layout, media_root in sources:
        if path is not None:
            yield from read_samples(path, layout, on_issue=lambda _: None, media_root=media_root).samples


def decoding_modes(task: Task) -> tuple[DecodingMode, ...]:
    """The decoding modes a task is scored in."""
    constrained = (DecodingMode.CONSTRAINED,) if task.schema() is not None else ()
    likelihood = (DecodingMode.LIKELIHOOD,) if isinstance(task, ChoiceTask) else ()
    return (*constrained, DecodingMode.UNCONSTRAINED, *likelihood)


def requested_mode(task: Task, settings: Predict) -> DecodingMode:
    """The decoding mode that the recipe asks for."""
    if settings.likelihood and isinstance(task, ChoiceTask):
        return DecodingMode.LIKELIHOOD
    return decoding_modes(task)[0] if settings.constrained else DecodingMode.UNCONSTRAINED


def metric_names(score: list[str], task: Task) -> tuple[str, ...]:
    """The recipe's metrics, then the task's own that it does not name.

    Raises:
        RecipeError: for an unknown metric, and where there is none.
    """
    names = tuple(dict.fromkeys((*score, *task.metrics)))
    if not names:
        raise RecipeError(
            f"the task `{task.name}` has no metric of its own, so nothing decides a run — name one: `score`"
        )
    for name in names:
        METRICS.load(name)
    return names
