"""The thread that owns the models: it batches requests into the engine, one route (run and decoding mode) at a time."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from typing import Protocol

from mllm_tailor.generation.loglikelihood import LikelihoodScorer
from mllm_tailor.generation.predictor import Predictor
from mllm_tailor.generation.voting import takes_votes
from mllm_tailor.models import LoadedModel
from mllm_tailor.recipe import DecodingMode, Predict
from mllm_tailor.serving.jobs import Job, JobQueue, Route
from mllm_tailor.serving.served import ServedModel, compares_replies, load_served
from mllm_tailor.serving.turns import compare_turn, generation_turn
from mllm_tailor.tasks import ChoiceTask

logger = logging.getLogger(__name__)

MOST_ROUTES = 32  # whose compiled grammars are kept


class Backend(Protocol):
    """Answers jobs: our engine, or another server."""

    @property
    def ready(self) -> bool:
        """Whether every model is loaded."""
        ...

    @property
    def failure(self) -> str | None:
        """Why the models could not be loaded."""
        ...

    def start(self) -> None:
        """Begin to load the models."""
        ...

    def submit(self, job: Job) -> None:
        """Have a job answered.

        Raises:
            RuntimeError: once closed.
        """
        ...

    def waiting(self) -> int:
        """Jobs that have not begun."""
        ...

    def close(self) -> None:
        """Finish what was submitted, and end."""
        ...


Loader = Callable[[Sequence[ServedModel]], dict[str, LoadedModel]]


class EngineWorker:
    """Answers jobs with the built-in engine."""

    def __init__(self, served: Sequence[ServedModel], window: float, load: Loader = load_served) -> None:
        self.served = {model.name: model for model in served}
        self.window = window
        self.queue = JobQueue()
        self._load = load
        self._models: dict[str, LoadedModel] = {}
        self._predictors: dict[tuple[str, int, str], Predictor] = {}
        self._scorers: dict[tuple[str, int, str], LikelihoodScorer] = {}
        self._loaded = threading.Event()
        self._failure: str | None = None
        self._thread = threading.Thread(target=self._work, name="engine", daemon=True)

    @property
    def ready(self) -> bool:
        """Whether every model is loaded."""
        return self._loaded.is_set() and self._failure is None

    @property
    def failure(self) -> str | None:
        """Why the models could not be loaded."""
        return self._failure

    def start(self) -> None:
        """Load the models and begin to answer, in the worker's thread."""
        self._thread.start()

    def submit(self, job: Job) -> None:
        """Queue a job."""
        self.queue.put(job)

    def waiting(self) -> int:
        """Jobs that have not begun."""
        return len(self.queue)

    def close(self) -> None:
        """Answer what is queued, and end."""
        self.queue.close()
        if self._thread.is_alive():
            self._thread.join()

    def _work(self) -> None:
        try:
            self._models = self._load(list(self.served.values()))
        except Exception as error:
            logger.exception("The models could not be loaded")
            self._failure = str(error)
            self.queue.close()
            return
        finally:
            self._loaded.set()
        while (route := self.queue.wait_for_route(self.window)) is not None:
            self._answer(route)

    def _answer(self, route: Route) -> None:
        """One turn of a route. What fails in it is reported to whoever waits, and the route begins anew."""
        begun: dict[int, Job] = {}
        try:
            if compares_replies(route.task, DecodingMode(route.mode)):
                compare_turn(self._scorer(route), self.queue, route, begun, self._settings(route).batch_size)
            else:
                generation_turn(self._predictor(route), self.queue, route, begun)
        except Exception as error:
            logger.exception("A batch failed")
            self._predictors.pop(route.key, None)
            self._scorers.pop(route.key, None)
            if not begun and (job := self.queue.take(route, float("inf"))) is not None:
                begun[0] = job  # the route itself cannot be opened
            for job in begun.values():
                if not job.result.done():
                    job.result.set_exception(error)

    def _settings(self, route: Route) -> Predict:
        settings = self.served[route.model].run.recipe.predict
        return settings if takes_votes(route.task) else settings.model_copy(update={"framings": 1})

    def _predictor(self, route: Route) -> Predictor:
        if route.key not in self._predictors:
            if len(self._predictors) >= MOST_ROUTES:
                self._predictors.pop(next(iter(self._predictors)))
            model = self._models[route.model]
            model.model.eval()
            predictor = Predictor(model, route.task, self._settings(route), [DecodingMode(route.mode)])
            self._predictors[route.key] = predictor
        return self._predictors[route.key]

    def _scorer(self, route: Route) -> LikelihoodScorer:
        if route.key not in self._scorers:
            assert isinstance(route.task, ChoiceTask)
            model = self._models[route.model]
            model.model.eval()
            self._scorers[route.key] = LikelihoodScorer(model, route.task, framings=self._settings(route).framings)
        return self._scorers[route.key]
