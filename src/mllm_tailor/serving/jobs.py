"""What waits for the model: requests in order of arrival, those of batches behind all others."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field

from mllm_tailor.core.sample import Prediction, Sample
from mllm_tailor.tasks import Task


@dataclass(frozen=True)
class Route:
    """What answers a request: a model by name, the task that phrases and parses, and how replies are decoded."""

    model: str
    task: Task
    mode: str  # a DecodingMode

    @property
    def key(self) -> tuple[str, int, str]:
        """Equal for requests that can be decoded side by side. Tasks live as long as the server."""
        return self.model, id(self.task), self.mode


@dataclass(frozen=True)
class Token:
    """A token of a reply."""

    data: bytes
    logprob: float  # -inf where the schema closed a reply that was cut off


@dataclass(frozen=True)
class Outcome:
    """A reply and what it took."""

    prediction: Prediction
    prompt_tokens: int = 0
    tokens: tuple[Token, ...] = ()
    shares: tuple[tuple[str, float], ...] = ()  # probability of every reply, where replies are compared


@dataclass(eq=False)
class Job:
    """A sample to be answered."""

    route: Route
    sample: Sample
    limit: int | None = None  # on the reply's tokens, below the recipe's
    on_text: Callable[[str], None] | None = None  # gets the reply piece by piece, in the worker's thread
    background: bool = False
    locate: bool = False  # whether its values are located on its pages
    result: Future[Outcome] = field(default_factory=Future)
    arrived: float = field(default_factory=time.monotonic)
    abandoned: bool = False  # nobody waits for it any more

    def abandon(self) -> None:
        """Stop working on it at the next step."""
        self.abandoned = True


class JobQueue:
    """Jobs of all routes, shared by the threads that ask and the one that answers."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._waiting: tuple[deque[Job], deque[Job]] = (deque(), deque())  # of requests, of batches
        self._closed = False

    def put(self, job: Job) -> None:
        """Add a job.

        Raises:
            RuntimeError: when the queue is closed.
        """
        with self._condition:
            if self._closed:
                raise RuntimeError("the queue is closed")
            self._waiting[job.background].append(job)
            self._condition.notify_all()

    def wait_for_route(self, window: float) -> Route | None:
        """The route of the job that has waited longest; requests go before batches. None once closed and empty.

        A first job is waited for without end, and then `window` seconds more for others to share its batch.
        """
        while True:
            with self._condition:
                waited = False
                while not any(self._waiting):
                    if self._closed:
                        return None
                    waited = True
                    self._condition.wait()
            if waited:
                time.sleep(window)
            with self._condition:
                first = next(self._jobs(), None)
            if first is not None:  # else the queue was closed meanwhile, which drops the jobs of batches
                return first.route

    def take(self, route: Route, patience: float) -> Job | None:
        """Remove and return the first job of a route.

        None where there is none, or where a request of another route came first and has waited `patience` seconds.
        """
        with self._condition:
            first = next((job for job in self._jobs() if job.route.key == route.key), None)
            if first is None:
                return None
            other = min((job.arrived for job in self._waiting[0] if job.route.key != route.key), default=None)
            came_first = other is not None and (first.background or other < first.arrived)
            if other is not None and came_first and time.monotonic() - other >= patience:
                return None
            self._waiting[first.background].remove(first)
            return first

    def close(self) -> None:
        """Take no further jobs; those waiting are still answered, but for those of batches."""
        with self._condition:
            self._closed = True
            for job in self._waiting[1]:
                job.result.cancel()
            self._waiting[1].clear()
            self._condition.notify_all()

    def __len__(self) -> int:
        with self._condition:
            return sum(map(len, self._waiting))

    def _jobs(self) -> Iterator[Job]:
        for jobs in self._waiting:
            yield from jobs
