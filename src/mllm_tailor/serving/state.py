"""What the endpoints share: settings, models, the engine, and how a request becomes a job."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from fastapi import Request
from starlette.concurrency import run_in_threadpool

from mllm_tailor.core.errors import nearest
from mllm_tailor.core.sample import Prediction
from mllm_tailor.serving.ask import Ask
from mllm_tailor.serving.drift import DriftWatch
from mllm_tailor.serving.errors import ApiError
from mllm_tailor.serving.intake import MediaIntake
from mllm_tailor.serving.jobs import Job, Outcome
from mllm_tailor.serving.metrics import Metrics
from mllm_tailor.serving.plan import Plan, check_readable, make_plan
from mllm_tailor.serving.served import ServedModel
from mllm_tailor.serving.settings import ServeSettings
from mllm_tailor.serving.worker import Backend

POLL = 1.0  # seconds between looks at whether a client is still there


@dataclass
class ServerState:
    """One server."""

    settings: ServeSettings
    served: Mapping[str, ServedModel]
    backend: Backend
    metrics: Metrics = field(default_factory=Metrics)
    drift: dict[str, DriftWatch] = field(default_factory=dict)  # by model
    started: int = field(default_factory=lambda: int(time.time()))

    def model(self, name: str | None) -> ServedModel:
        """A model by name; the only tuned one where none is named.

        Raises:
            ApiError: for an unknown name.
        """
        tuned = [model for model in self.served.values() if model.tuned]
        if name is None and len(tuned) == 1:
            return tuned[0]
        if name is None:
            raise ApiError(400, f"`model`: name one of {', '.join(self.served)}", param="model")
        if name not in self.served:
            hint = nearest(name, self.served)
            raise ApiError(404, f"no model is called `{name[:80]}` — {hint}", param="model", code="model_not_found")
        return self.served[name]

    def intake(self) -> MediaIntake:
        """A reader of the files of one request."""
        return MediaIntake(self.settings.limits, self.settings.allowed_hosts)

    def check_ready(self) -> None:
        """Refuse requests until every model is loaded.

        Raises:
            ApiError: with 503.
        """
        if self.backend.failure is not None:
            raise ApiError(503, "the model could not be loaded; the server's log has the reason")
        if not self.backend.ready:
            raise ApiError(503, "the model is being loaded", headers={"Retry-After": "5"})

    async def plan(self, ask: Ask) -> Plan:
        """How a request is answered."""
        return await run_in_threadpool(make_plan, ask, self.model(ask.model))

    def submit(self, job: Job) -> None:
        """Have a job answered.

        Raises:
            ApiError: with 503 when the server is ending.
        """
        self.check_ready()
        try:
            self.backend.submit(job)
        except RuntimeError:
            raise ApiError(503, "the server is ending") from None

    async def answer(self, job: Job, request: Request | None = None) -> Outcome:
        """Submit a job and wait for its outcome; given up when the client has gone.

        Raises:
            ApiError: for files that cannot be read, and for a failure of the engine.
        """
        return (await self.answers([job], request))[0]

    async def answers(self, jobs: Sequence[Job], request: Request | None = None) -> list[Outcome]:
        """The same for several jobs of one request."""
        for job in jobs:
            self.submit(job)
        waiting = [asyncio.wrap_future(job.result) for job in jobs]
        try:
            while True:
                done, _ = await asyncio.wait(waiting, timeout=POLL)
                if len(done) == len(waiting):
                    break
                if request is not None and await request.is_disconnected():
                    raise ApiError(400, "the client has gone")
        except BaseException:
            for job in jobs:
                job.abandon()
            raise
        outcomes = [outcome_of(job) for job in jobs]
        for job, outcome in zip(jobs, outcomes, strict=True):
            self.count(job, outcome)
            check_readable(outcome)
        return outcomes

    def count(self, job: Job, outcome: Outcome) -> None:
        """Add a reply to the metrics."""
        name = job.route.model
        self.metrics.prompt_tokens.labels(name).inc(outcome.prompt_tokens)
        self.metrics.reply_tokens.labels(name).inc(len(outcome.tokens))
        if outcome.prediction.cut:
            self.metrics.cut.labels(name).inc()
        served = self.served[name]
        if served.is_own(job) and not outcome.prediction.problem:
            self._count_confidences(name, served.calibrated(job, outcome.prediction))

    def _count_confidences(self, name: str, prediction: Prediction) -> None:
        """Of a reply to the run's own task."""
        for field_name in self.served[name].task.field_names:
            if (value := prediction.likelihood(field_name)) is not None:
                self.metrics.confidence.labels(name, field_name).observe(value)
        watch = self.drift.get(name)
        if watch is not None:
            watch.add(prediction)
            for field_name, counts in watch.fields.items():
                self.metrics.drift.labels(name, field_name).set(counts.left)


def outcome_of(job: Job) -> Outcome:
    """The outcome of a finished job.

    Raises:
        ApiError: when the engine failed, without what it failed with.
    """
    if job.result.cancelled():
        raise ApiError(503, "the server is ending")
    if job.result.exception() is not None:
        raise ApiError(500, "the model failed on this request; the server's log has the reason")
    return job.result.result()
