"""The Python API: the same words as the command line. Nothing is printed; progress and remarks are logged.

Import it from the package itself: `import mllm_tailor as tailor`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mllm_tailor.core.errors import RunError
from mllm_tailor.core.remote import fetch_run, is_url
from mllm_tailor.core.sample import Prediction
from mllm_tailor.generation import read_inputs
from mllm_tailor.recipe import Recipe, make_recipe, read_recipe
from mllm_tailor.run import check as run_check
from mllm_tailor.run import execute as run_execute
from mllm_tailor.run import new_files
from mllm_tailor.run.check import CheckResult
from mllm_tailor.run.events import RunEvent
from mllm_tailor.run.options import Options
from mllm_tailor.run.publish import check_store, publish_run
from mllm_tailor.run.run_dir import RunFolder, read_scores
from mllm_tailor.scoring import Scores
from mllm_tailor.scoring import score as score_rows

AnyRecipe = Recipe | Mapping[str, Any] | str | Path
Callback = Callable[[RunEvent], None]


@dataclass(frozen=True)
class Run:
    """A run folder: the tuned model, its scores and its report."""

    path: Path

    @property
    def recipe(self) -> Recipe:
        """The resolved recipe."""
        return self._folder.recipe()

    @property
    def scores(self) -> dict[str, Any]:
        """Everything in scores.json: every system by every metric, the gain and its interval.

        Raises:
            RunError: when the run has not been scored yet.
        """
        return read_scores(self._folder)

    @property
    def report(self) -> Path:
        """The HTML page."""
        return self._folder.report

    def predict(
        self,
        paths: str | Path | Sequence[str | Path],
        *,
        base: bool = False,
        unconstrained: bool = False,
        boxes: bool = False,
    ) -> Iterator[Prediction]:
        """Predictions for files, folders, JSONL manifests or URLs of them, each as soon as it is made, in any order.

        A file that cannot be read has a prediction with `problem`. `base` uses the untuned model; `unconstrained` does
        not constrain replies to the JSON schema; `boxes` finds where on its page each value stands. Closing the
        iterator ends the work.

        Raises:
            RunError: when the training has not ended.
        """
        predictor = new_files.predictor_of_run(self.path, base=base, unconstrained=unconstrained)
        predictor = predictor.with_boxes() if boxes else predictor
        named = [paths] if isinstance(paths, str | Path) else paths
        return new_files.stream(predictor, read_inputs(list(named)))

    @property
    def _folder(self) -> RunFolder:
        return RunFolder(self.path)


def tune(
    recipe: AnyRecipe,
    *,
    exclude_faulty: bool = False,
    fresh: bool = False,
    accept_changes: bool = False,
    callbacks: Sequence[Callback] = (),
) -> Run:
    """Score the base model, tune it, score it again on the same held-out samples, and write the report.

    Called again, it continues an interrupted run or returns the finished one. `exclude_faulty` leaves faulty samples
    out, each with a line in the ledger; `fresh` sets an existing run of this name aside; `accept_changes` computes
    again what followed from data that changed since the run began. Every callback is called with the events of
    `mllm_tailor.run.events`.

    Raises:
        TailorError: stating what is wrong and what to do about it.
    """

    def notify(event: RunEvent) -> None:
        for callback in callbacks:
            callback(event)

    options = Options(exclude_faulty, fresh, accept_changes)
    recipe = _recipe(recipe)
    check_store(recipe.publish, recipe.name)
    folder = run_execute.execute(recipe, options, notify)
    publish_run(folder, recipe.publish)
    return Run(folder.path)


def check(recipe: AnyRecipe, *, decode: bool = True) -> CheckResult:
    """Find problems, leaks and the cost before training; `decode=False` opens no image, video or recording.

    Raises:
        TailorError: when the recipe, the data or the model cannot be read at all.
    """
    return run_check.check(_recipe(recipe), decode=decode)


def load_run(folder: str | Path) -> Run:
    """A run made earlier, in a folder or at the URL of a store.

    Raises:
        RunError: when the folder holds no run.
    """
    path = fetch_run(str(folder)) if is_url(folder) else Path(folder)
    if not RunFolder(path).recipe_file.is_file():
        raise RunError(f"{path}: no run — name a folder that `tailor run` or `tune` has written")
    return Run(path)


def score(
    predictions: Sequence[Prediction],
    labels: Mapping[str, Mapping[str, Any]],
    metrics: Sequence[str] = ("fuzzy", "exact", "f1"),
    kinds: Mapping[str, str] | None = None,
) -> Scores:
    """Score predictions by their ids, in percent; `labels` holds the true fields by id.

    `kinds` gives the declared type of a field (`amount`, `date`, …), which some metrics use to normalise.

    Raises:
        RunError: when the ids of predictions and labels differ.
        RecipeError: for an unknown metric.
    """
    by_id = {prediction.id: prediction for prediction in predictions}
    if len(by_id) < len(predictions):
        raise RunError("two predictions have the same id — score every sample once")
    if different := sorted(by_id.keys() ^ labels.keys()):
        side = "prediction" if different[0] in labels else "label"
        raise RunError(f"{different[0]}: has no {side} — give one prediction for each label")
    fields = list(dict.fromkeys(name for label in labels.values() for name in label))
    ordered = [by_id[sample_id] for sample_id in labels]
    return score_rows(list(labels.values()), ordered, metrics, fields, kinds)


def _recipe(recipe: AnyRecipe) -> Recipe:
    if isinstance(recipe, Recipe):
        return recipe
    if isinstance(recipe, Mapping):
        return make_recipe(recipe)
    return read_recipe(Path(recipe))
