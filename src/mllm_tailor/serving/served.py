"""The models behind a server: several runs over one base share its weights."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mllm_tailor.core.conversation import Conversation
from mllm_tailor.core.errors import DataError, RunError
from mllm_tailor.core.io import fingerprint
from mllm_tailor.core.sample import Media, Prediction, Sample
from mllm_tailor.models import InputSettings, LoadedModel, share_weights
from mllm_tailor.models.inputs.internvl_processor import choose_reflow
from mllm_tailor.recipe import DecodingMode
from mllm_tailor.run.calibrate import NO_CALIBRATION, RunCalibration
from mllm_tailor.run.data_record import read_data_facts
from mllm_tailor.run.new_files import predictor_of_run
from mllm_tailor.run.predict import add_adapter, open_base, open_in_use
from mllm_tailor.run.resolve import ResolvedRun
from mllm_tailor.run.run_dir import RunFolder
from mllm_tailor.serving.jobs import Job
from mllm_tailor.tasks import ChoiceTask, Task, open_task

logger = logging.getLogger(__name__)

BASE = ":base"  # behind a run's name: its untuned model


@dataclass(frozen=True)
class ServedModel:
    """A name that requests can ask for."""

    name: str
    run: ResolvedRun
    folder: RunFolder
    tuned: bool
    own_systems: bool  # whether the run was trained with system texts of the samples' own
    calibration: RunCalibration = NO_CALIBRATION  # of replies in its own decoding mode

    @property
    def task(self) -> Task:
        """What it was tuned for."""
        return self.run.task

    @property
    def mode(self) -> DecodingMode:
        """How the run's scores were decoded."""
        return self.run.mode

    @property
    def created(self) -> int:
        """Unix time of its training."""
        file = self.folder.training if self.tuned else self.folder.recipe_file
        return int(file.stat().st_mtime)

    def question(self) -> str | None:
        """The question its task asks of every sample, or None where samples bring their own."""
        wordings = [_wording(self.task, prompt) for prompt in ("one", "two")]
        return wordings[0] if wordings[0] is not None and wordings[0] == wordings[1] else None

    def takes_questions(self) -> bool:
        """Whether the task is the request's own question; one with options is asked through /v1/decisions."""
        return _wording(self.task, "one") is not None

    def schema(self) -> dict[str, Any] | None:
        """JSON schema of its replies."""
        return self.task.schema()

    def calibrated(self, job: Job, prediction: Prediction) -> Prediction:
        """A reply to the run's own task with `confidence` and `accept`, where the run has a calibration for it."""
        return self.calibration.apply(prediction) if self.is_own(job) else prediction

    def is_own(self, job: Job) -> bool:
        """Whether a job asks for the run's own task, decoded as its scores were."""
        return (job.route.task, job.route.mode) == (self.task, self.mode)

    def description(self) -> dict[str, Any]:
        """What /v1/models states of it."""
        return {
            "task": self.task.name,
            "tuned": self.tuned,
            "fields": list(self.task.field_names),
            "mode": str(self.mode),
            "question": self.question(),
            "json_schema": self.schema(),
        }


def _wording(task: Task, prompt: str) -> str | None:
    """What a task asks of an image with this prompt; None where it needs more than that."""
    try:
        conversation: Conversation = task.phrase(Sample("", media=(Media("image", data=b"-"),), prompt=prompt))
    except DataError:
        return None
    return conversation.prompt


def served_models(paths: Sequence[Path]) -> list[ServedModel]:
    """The models of run folders by name, tuned and untuned; no weights are loaded.

    Raises:
        RunError: for an unfinished run, two runs of one name, or a task that cannot be served.
    """
    models: dict[str, ServedModel] = {}
    for path in paths:
        predictor = predictor_of_run(path)
        folder, run = predictor.tuned, predictor.run
        assert folder is not None
        if run.task.name == "match":
            raise RunError(f"{path}: `match` ranks samples among each other, which no single request can ask for")
        if run.name in models:
            raise RunError(f"{path}: two runs are named `{run.name}`, and requests name one — serve them separately")
        own = bool(folder.data.is_file() and read_data_facts(folder).get("own_systems"))
        calibration = predictor.calibration
        models[run.name] = ServedModel(run.name, run, folder, tuned=True, own_systems=own, calibration=calibration)
        models[run.name + BASE] = ServedModel(run.name + BASE, run, folder, tuned=False, own_systems=own)
    return list(models.values())


def load_served(models: Sequence[ServedModel]) -> dict[str, LoadedModel]:
    """Load every model; those over one base share its tensors, so a further run costs its adapter alone.

    Raises:
        ModelError, RunError: when a base or an adapter cannot be loaded.
    """
    bases: dict[str, LoadedModel] = {}
    loaded = {}
    for model in models:
        key = _base_key(model)
        if key not in bases:
            bases[key] = open_in_use(model.run) if model.tuned else open_base(model.run)
        shared = share_weights(bases[key])
        own = InputSettings.of(model.run.model)
        tiles = own.tiles or shared.tiles
        system = own.system if own.system is not None else getattr(shared.processor, "system", None)
        reflow = choose_reflow(own.reflow, shared.family, shared.processor)
        shared = replace(shared, tiles=tiles, system=system, frames=own.frames, trim=own.trim, reflow=reflow)
        loaded[model.name] = add_adapter(shared, model.run, model.folder.adapter) if model.tuned else shared
        logger.info("Loaded %s", model.name)
    return loaded


def _base_key(model: ServedModel) -> str:
    """Equal for models whose base has the same weights, number format and preprocessing of fixed size."""
    run, spec = model.run, model.run.model
    quantize: tuple[Any, ...] = ()
    if model.tuned and run.recipe.predict.weights != "unquantised":
        quantize = (run.method.quantize, list(run.method.quantize_skip))
    units = spec.units.model_dump(mode="json") if spec.units else None
    return fingerprint(
        str(spec.path), spec.revision, str(spec.dtype), str(spec.device), spec.tile_size, units, quantize, run.bf16
    )


FREE_QUESTION = open_task("answer")  # a question in the request's own words


def compares_replies(task: Task, mode: DecodingMode) -> bool:
    """Whether a task's reply is the likeliest of a closed set, none being generated."""
    return mode is DecodingMode.LIKELIHOOD and isinstance(task, ChoiceTask)
