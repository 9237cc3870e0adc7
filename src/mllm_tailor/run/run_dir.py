"""The run folder: everything that a run leaves behind or reads back is here, and nowhere else."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mllm_tailor.core.errors import RunError
from mllm_tailor.core.io import read_json, read_jsonl, restore_partials, write_atomic
from mllm_tailor.core.manifest import MANIFEST, create, nothing_lost, record, recorded, verify, was_recorded
from mllm_tailor.core.sample import Prediction
from mllm_tailor.core.summed_rows import append_row, intact_lines
from mllm_tailor.recipe import ModelSpec, Recipe, dump_recipe, read_recipe, stage_recipes
from mllm_tailor.run.lock import LOCK, OWNER, owned
from mllm_tailor.scoring.systems import System

MERGED = "model"


@dataclass(frozen=True)
class RunFolder:
    """Names of the files in one run folder."""

    path: Path

    @property
    def recipe_file(self) -> Path:
        """The resolved recipe."""
        return self.path / "recipe.yaml"

    @property
    def adapter(self) -> Path:
        """What was trained, ready to be loaded."""
        return self.path / "adapter"

    @property
    def codebook(self) -> Path:
        """Audio units fitted on the training recordings, where the recipe asks for them."""
        return self.path / "units.safetensors"

    @property
    def ledger(self) -> Path:
        """What happened to every sample."""
        return self.path / "samples.jsonl"

    @property
    def held_out(self) -> Path:
        """The held-out samples with their labels, as they were when the run began."""
        return self.path / "held_out.jsonl"

    @property
    def dev(self) -> Path:
        """The dev samples with their labels, where a calibration is fitted on them."""
        return self.path / "dev.jsonl"

    @property
    def calibration(self) -> Path:
        """From the model's own probabilities to the probability of being right."""
        return self.path / "calibration.json"

    @property
    def inline_media(self) -> Path:
        """Held-out media that came inside a row of the data, each named by its SHA-256."""
        return self.path / "held_out_media"

    @property
    def data(self) -> Path:
        """Layout and counts of the data."""
        return self.path / "data.json"

    @property
    def fingerprints(self) -> Path:
        """Checksums of every label row and every media and label file that the run read."""
        return self.path / "data_fingerprints.jsonl"

    @property
    def reply_rows(self) -> Path:
        """The tuned model's replies in the recipe's decoding mode, one row a held-out sample."""
        return self.path / "predictions.jsonl"

    @property
    def drift(self) -> Path:
        """Confidences of what was served, beside those of the held-out split."""
        return self.path / "drift.json"

    @property
    def checkpoints(self) -> Path:
        """Checkpoints from which training continues."""
        return self.path / "checkpoints"

    @property
    def scores(self) -> Path:
        """Every score of the run."""
        return self.path / "scores.json"

    @property
    def report(self) -> Path:
        """The report a person reads."""
        return self.path / "report.html"

    @property
    def environment(self) -> Path:
        """Machine, versions, weights."""
        return self.path / "environment.json"

    @property
    def cost_estimate(self) -> Path:
        """The estimated memory and time of the training."""
        return self.path / "cost_estimate.json"

    @property
    def log(self) -> Path:
        """One row a step and a dev score."""
        return self.path / "log.jsonl"

    @property
    def training(self) -> Path:
        """What the training cost; its presence says that training ended."""
        return self.path / "training.json"

    @property
    def features(self) -> Path | None:
        """What a frozen vision side makes of the images: of the steps of this run or, as a link, of several runs."""
        place = self.path / "features"
        return place if place.is_dir() else None

    def keep_features(self) -> None:
        """Let the steps from here on share features."""
        (self.path / "features").mkdir(exist_ok=True)

    def drop_features(self) -> None:
        """Delete features that no other run shares."""
        if not (self.path / "features").is_symlink():
            shutil.rmtree(self.path / "features", ignore_errors=True)

    @property
    def merged(self) -> Path:
        """Base and adapter merged, from which the next stage starts."""
        return self.path / MERGED

    @property
    def folds(self) -> list[RunFolder]:
        """The folds that have begun, of a run that holds out every sample in turn."""
        return [RunFolder(path.parent) for path in sorted(self.path.glob("fold-*/recipe.yaml"))]

    def predictions(self, system: System | str) -> Path:
        """Replies of one system, or of what else the run predicts."""
        name = system.key if isinstance(system, System) else system
        return self.path / "predictions" / f"{name}.jsonl"

    def recipe(self) -> Recipe:
        """The recipe this run was made with. A later stage uses the model of the one before, wherever the run lies."""
        recipe = read_recipe(self.recipe_file)
        model = with_codebook(recipe.model, self.codebook)
        named = Path(model.path)
        moved = self.path.parent / named.parent.name / named.name
        if named.name == MERGED and not named.exists() and moved.is_dir():
            model = model.model_copy(update={"path": str(moved)})
        return recipe.model_copy(update={"model": model})


def with_codebook(model: ModelSpec, file: Path) -> ModelSpec:
    """The settings with speech units read from `file`, where they ask for units and name none and the file exists."""
    units = model.units
    if units is None or units.codebook or not file.is_file():
        return model
    return model.model_copy(update={"units": units.model_copy(update={"codebook": str(file)})})


@contextmanager
def own_run(recipe: Recipe, *, fresh: bool = False) -> Iterator[RunFolder]:
    """The folder for this recipe, new or to be continued, held by this process alone; its small files are verified.

    Raises:
        RunError: when the folder belongs to a different recipe, another process works on it, or a file is damaged.
    """
    path = Path(recipe.output) / recipe.name
    if fresh and path.exists():
        with owned(path):
            _set_aside(path)
    with owned(path):
        yield start_run(recipe)


def start_run(recipe: Recipe) -> RunFolder:
    """The folder for this recipe: new, or the unfinished one of the same recipe, to be continued.

    Raises:
        RunError: when the folder belongs to a different recipe, or a file in it is damaged.
    """
    run = RunFolder(Path(recipe.output) / recipe.name)
    for folder in (run.path, run.predictions("any").parent):
        restore_partials(folder)  # what a killed process left half written, be it the recipe
    if run.recipe_file.exists():
        verify(run.path, absent=True)
        known = read_recipe(run.recipe_file)
        processes = {"processes": recipe.train.processes}  # may change when a run is continued
        changed = {"train": known.train.model_copy(update=processes), "publish": recipe.publish}
        if known.model_copy(update=changed) != recipe:
            raise RunError(
                f"{run.path} holds a run of a different recipe — give this one another name (name=...), "
                "or pass --fresh to set the old folder aside"
            )
        return run
    _refuse_lost_recipe(run.path)
    if run.path.exists() and {file.name for file in run.path.iterdir()} - {LOCK, OWNER, MANIFEST}:
        raise RunError(f"{run.path} exists and is not a run — choose another name (name=...)")
    create(run.path)
    write_atomic(run.recipe_file, dump_recipe(recipe))
    record(run.path, run.recipe_file)
    return run


def _refuse_lost_recipe(path: Path) -> None:
    file = RunFolder(path).recipe_file
    if (path / MANIFEST).is_file() and was_recorded(path, file):
        raise RunError(f"{file}: missing — put back a whole copy, or begin anew with `tailor run RECIPE --fresh`")


def _set_aside(path: Path) -> None:
    number = 1
    while (aside := path.with_name(f"{path.name}.old{number}")).exists():
        number += 1
    for name in (LOCK, OWNER):
        (path / name).unlink(missing_ok=True)
    path.rename(aside)


def open_run(path: Path) -> RunFolder:
    """An existing run folder; of a run with stages, that of the last stage, which holds the finished model.

    Its small files are verified; the adapter and merged models are when they are opened.

    Raises:
        RunError: when there is none, or a file in it is damaged.
    """
    run = RunFolder(path)
    if not run.recipe_file.is_file():
        _refuse_lost_recipe(path)
        raise RunError(f"{path}: not a run folder (it has no recipe.yaml) — `tailor run RECIPE` makes one")
    verify(path)
    stages = stage_recipes(run.recipe())
    if not stages:
        return run
    last = RunFolder(path / stages[-1].name)
    if not last.recipe_file.is_file():
        raise RunError(f"{path}: its last stage has not begun — run the same `tailor run` command again to finish it")
    verify(last.path)
    return last


def read_predictions(path: Path) -> list[Prediction]:
    """The predictions written so far; a line cut off by a crash or damaged since is left out, to be predicted again."""
    if not intact_lines(path):
        return []
    predictions = []
    for number, row in read_jsonl(path):
        try:
            predictions.append(Prediction.from_row(row))
        except (KeyError, TypeError, ValueError, AttributeError):
            raise RunError(
                f"{path}:{number}: not a prediction — the file is damaged: remove it and run again"
            ) from None
    return predictions


def add_prediction(path: Path, prediction: Prediction) -> None:
    """Append one prediction at once, so that an interrupted job loses at most the one in flight."""
    append_row(path, prediction.row())


def share_predictions(source: RunFolder, run: RunFolder, names: str) -> None:
    """Copy predictions that two runs have in common (a pattern such as `base_*`), where `run` lacks them."""
    for path in sorted(source.predictions(names).parent.glob(f"{names}.jsonl")):
        target = run.predictions(path.stem)
        if not target.exists():
            write_atomic(target, path.read_bytes())


def finished(run: RunFolder) -> bool:
    """Whether the run's report was written, and no file of it or of its stages was lost since."""
    if not recorded(run.path, run.report, run.scores) or not nothing_lost(run.path):
        return False
    stages = [RunFolder(run.path / stage.name) for stage in stage_recipes(run.recipe())]
    return all(stage.recipe_file.is_file() and finished(stage) for stage in stages)


def read_scores(run: RunFolder) -> dict[str, Any]:
    """The run's scores.json."""
    if not run.scores.is_file():
        raise RunError(f"{run.path}: not scored yet — run the same `tailor run` command again to finish it")
    verify(run.path, run.scores)
    scores: dict[str, Any] = read_json(run.scores)
    return scores


def in_order(ids: Sequence[str], predictions: Sequence[Prediction]) -> list[Prediction]:
    """Predictions sorted like `ids`.

    Raises:
        RunError: when one is missing.
    """
    by_id = {prediction.id: prediction for prediction in predictions}
    missing = [identifier for identifier in ids if identifier not in by_id]
    if missing:
        raise RunError(f"{len(missing)} samples have no prediction (first: {missing[0]}) — run the command again")
    return [by_id[identifier] for identifier in ids]
