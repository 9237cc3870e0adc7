"""Predictions for new files: written as they are made, continued after an interruption, in the order of the inputs."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mllm_tailor.core.errors import DataError, RunError
from mllm_tailor.core.io import fingerprint, read_json, restore_partials, write_json, write_jsonl
from mllm_tailor.core.manifest import checksums
from mllm_tailor.core.remote import url_of
from mllm_tailor.core.sample import Prediction, Sample
from mllm_tailor.core.strict_json import parse_json
from mllm_tailor.core.summed_rows import append_row, finish_rows, intact_lines, is_growing, write_rows
from mllm_tailor.generation import predict
from mllm_tailor.models import LoadedModel
from mllm_tailor.recipe import DecodingMode
from mllm_tailor.run.calibrate import NO_CALIBRATION, RunCalibration, usable_calibration
from mllm_tailor.run.data_record import read_data_facts
from mllm_tailor.run.environment import check_same_base
from mllm_tailor.run.output_file import check_output, sole_writer
from mllm_tailor.run.predict import Keep, generate, open_base, open_tuned
from mllm_tailor.run.resolve import ResolvedRun, resolve_here
from mllm_tailor.run.run_dir import RunFolder, open_run

logger = logging.getLogger(__name__)

Predict = Callable[[Sequence[Sample], Keep], list[Prediction]]


@dataclass(frozen=True)
class Predictor:
    """A tuned or untuned model with its task; opened when first needed."""

    run: ResolvedRun
    mode: DecodingMode
    tuned: RunFolder | None = None  # None: the base model
    engine: str = "builtin"
    trained_in: RunFolder | None = None  # the run whose data the task was learned from, if there is one
    calibration: RunCalibration = NO_CALIBRATION  # of its confidences

    def key(self) -> str:
        """A fingerprint of everything but the files that decides what is predicted."""
        adapter = checksums(self.tuned.path, self.tuned.adapter) if self.tuned is not None else {}
        base = Path(self.run.model.path)
        if url_of(base) is not None:  # of a stage before, in the copy of a run
            recipe = self.run.with_model(path=url_of(base)).recipe
            weights: Any = checksums(base.parent, base)
        else:
            recipe = self.run.recipe
            files = sorted(path for path in base.iterdir() if path.is_file()) if base.is_dir() else []
            weights = [(path.name, *_stamp(path)) for path in files]
        settings = recipe.model_dump(mode="json")
        return fingerprint(settings, self.mode, self.engine, adapter, weights, self.calibration.row())

    def predict(self, samples: Sequence[Sample], on_done: Keep) -> list[Prediction]:
        """Open the model and predict; `on_done` gets each prediction as soon as it is made, in any order.

        Predictions carry calibrated confidences where the run has a calibration; a line in the log states why not.
        """
        with self.opened() as predict:
            return predict(samples, on_done)

    @contextmanager
    def opened(self) -> Iterator[Predict]:
        """`predict` with a model that stays open within."""
        if self.calibration.reason:
            logger.warning("Confidence is not calibrated, rows hold `raw` alone: %s", self.calibration.reason)
        with self._opened_engine() as make:

            def predict(samples: Sequence[Sample], on_done: Keep) -> list[Prediction]:
                self._warn_of_missing_systems(samples)
                made = make(samples, lambda prediction: on_done(self.calibration.apply(prediction)))
                return [self.calibration.apply(prediction) for prediction in made]

            yield predict

    @contextmanager
    def _opened_engine(self) -> Iterator[Predict]:
        if self.engine != "vllm":
            model = self.open()
            yield lambda samples, keep: generate(self.mode, model, self.run, samples, on_done=keep)
            return
        from mllm_tailor.run.vllm_model import open_served  # vLLM is a package of its own

        model, engine = open_served(self.run, self.tuned, self.mode)
        constrained, settings = self.mode is DecodingMode.CONSTRAINED, self.run.recipe.predict
        try:
            yield lambda samples, keep: predict(
                model, self.run.task, samples, settings, constrained=constrained, on_done=keep, engine=engine
            )
        finally:
            engine.close()

    def with_boxes(self) -> Predictor:
        """The same, which also finds where on its page each value stands."""
        settings = self.run.recipe.predict.model_copy(update={"boxes": True})
        recipe = self.run.recipe.model_copy(update={"predict": settings})
        return replace(self, run=replace(self.run, recipe=recipe))

    def open(self) -> LoadedModel:
        """The model, tuned if there is a run.

        Raises:
            RunError: for a base that is not what the run was made with, or a damaged adapter.
        """
        if self.tuned is not None:
            return open_tuned(self.run, self.tuned.adapter)
        model = open_base(self.run)
        if self.trained_in is not None:
            check_same_base(self.trained_in.environment, model.identity)
        return model

    def _warn_of_missing_systems(self, samples: Sequence[Sample]) -> None:
        """Warn where the run was trained with system texts that differ and an input brings none."""
        run = self.trained_in
        if run is None or not run.data.is_file() or not (count := read_data_facts(run).get("own_systems")):
            return
        without = sum(sample.system is None for sample in samples)
        if without:
            logger.warning(
                "%d training rows brought system texts of their own, and %d of these inputs have none — name `system` "
                "in a JSONL manifest",
                count,
                without,
            )


def predictor_of_run(
    path: Path, *, base: bool = False, unconstrained: bool = False, engine: str = "builtin"
) -> Predictor:
    """What a run folder predicts with; `base`: its untuned model.

    Raises:
        RunError: when there is no run, or its training has not ended.
    """
    folder = open_run(path)
    if not base and not folder.training.is_file():
        raise RunError(f"{path}: training has not ended — run `tailor run` again to finish, or pass --base")
    run = resolve_here(folder.recipe())
    mode = DecodingMode.UNCONSTRAINED if unconstrained else run.mode
    if base:
        return Predictor(run, mode, None, engine, folder, RunCalibration(reason="this is the untuned model"))
    return Predictor(run, mode, folder, engine, folder, usable_calibration(folder, mode, engine))


def prediction_row(sample: Sample, prediction: Prediction) -> dict[str, Any]:
    """The row of predictions.jsonl: that of the prediction, with the file it is about."""
    row = prediction.row()
    file = sample.extra.get("file")
    return {"id": row.pop("id"), **({"file": file} if file else {}), **row}


def predict_to_file(out: Path, predictor: Predictor, samples: Sequence[Sample]) -> list[dict[str, Any]]:
    """Write one JSON row for each sample to `out` as it is made; at the end, in the order of the samples.

    Interrupted, the same call keeps the rows of files that have not changed since; those with a problem are tried
    again. A finished `out` is replaced once there is a first new row, so not by a call whose model cannot be opened.

    Raises:
        RunError: when another process writes `out`, or it is a file to be read, one of the run, or no predictions.
    """
    check_output(out, samples, predictor.tuned.path if predictor.tuned is not None else None)
    with sole_writer(out):
        return _predict_to_file(out, predictor, samples)


def _predict_to_file(out: Path, predictor: Predictor, samples: Sequence[Sample]) -> list[dict[str, Any]]:
    for path in (out, _state_file(out)):
        restore_partials(path.parent, path.name)  # what a killed process left half written
    by_id = {sample.id: sample for sample in samples}
    state = {"key": predictor.key(), "inputs": {name: _identity(sample) for name, sample in by_id.items()}}
    rows = _rows_kept(out, state, by_id)
    begun = False
    missing = [sample for sample in samples if sample.id not in rows]
    if missing and predictor.run.task.name == "match":
        missing = list(samples)  # each is ranked among all others

    def keep(prediction: Prediction) -> None:
        nonlocal begun
        if not begun:
            write_json(_state_file(out), {**state, "sha256": fingerprint(state)})
            write_rows(out, rows.values())
            begun = True
        if prediction.id not in rows:
            rows[prediction.id] = prediction_row(by_id[prediction.id], prediction)
            append_row(out, rows[prediction.id])

    if missing:
        predictor.predict(missing, keep)
    ordered = [rows[sample.id] for sample in samples]
    write_jsonl(out, ordered)
    finish_rows(out)
    _state_file(out).unlink(missing_ok=True)
    return ordered


def _rows_kept(out: Path, state: Mapping[str, Any], samples: Mapping[str, Sample]) -> dict[str, dict[str, Any]]:
    """The rows that an interrupted call has written for the same files and model."""
    before = _read_state(_state_file(out))
    if before.get("key") != state["key"] or not is_growing(out):
        return {}
    written = (parse_json(line.decode()) for line in intact_lines(out))
    rows = {
        row["id"]: row
        for row in written
        if "problem" not in row
        and row["id"] in samples
        and before["inputs"].get(row["id"]) == state["inputs"][row["id"]]
    }
    logger.info("%d rows of the interrupted run in %s are kept; %d to go", len(rows), out, len(samples) - len(rows))
    return rows


def _read_state(file: Path) -> Mapping[str, Any]:
    """What an interrupted call has noted of its inputs; nothing where it noted nothing, or the file is damaged."""
    if not file.is_file():
        return {}
    try:
        state = dict(read_json(file))
        if state.pop("sha256") != fingerprint(state):
            raise ValueError
    except (DataError, KeyError, TypeError, ValueError):
        logger.warning("%s: damaged; every file is read again", file)
        return {}
    return state


def _state_file(out: Path) -> Path:
    return out.with_name(f".{out.name}.state.json")


def _identity(sample: Sample) -> str:
    """Changes when the files of a sample do, or what is asked of them."""
    earlier = [[turn.role, turn.text] for turn in sample.history]
    parts: list[Any] = [sample.prompt, list(sample.options), sample.system, earlier, list(sample.positions)]
    for media in sample.media:
        parts += [media.kind, media.page, media.span, media.data or b""]
        for path in (*media.views, *([media.path] if media.path is not None else [])):
            parts += [str(path), _stamp(path) if path.is_file() else None]
    return fingerprint(*parts)


def _stamp(path: Path) -> list[int]:
    """Size, modification and change time: the last tells a file that was replaced by one with the times of old."""
    status = path.stat()
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns]


def stream(predictor: Predictor, samples: Sequence[Sample]) -> Iterator[Prediction]:
    """Predictions as they are made, in any order. Work stops after the ones in flight when the iterator is closed."""
    finished: queue.SimpleQueue[Prediction | BaseException | None] = queue.SimpleQueue()
    abandoned = threading.Event()

    def keep(prediction: Prediction) -> None:
        if abandoned.is_set():
            raise _Abandoned
        finished.put(prediction)

    def work() -> None:
        try:
            predictor.predict(samples, keep)
            finished.put(None)
        except BaseException as error:  # noqa: BLE001 (raised again by the reader)
            finished.put(error)

    thread = threading.Thread(target=work, name="predict", daemon=True)
    thread.start()
    try:
        while (item := finished.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        abandoned.set()
        thread.join()


class _Abandoned(Exception):
    """Ends the work of a stream that nobody reads any more."""
