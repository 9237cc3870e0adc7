"""From a request to a job: which question is asked, how the reply is decoded, and what of it the client gets."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mllm_tailor.core.sample import Prediction
from mllm_tailor.recipe import DecodingMode
from mllm_tailor.serving.ask import OWN_SCHEMA, Ask, as_sample, document_sample
from mllm_tailor.serving.errors import ApiError, refused
from mllm_tailor.serving.jobs import Job, Outcome, Route
from mllm_tailor.serving.schema_match import fit, project
from mllm_tailor.serving.served import FREE_QUESTION, ServedModel, compares_replies
from mllm_tailor.tasks.reply import read_object


@dataclass(frozen=True)
class Plan:
    """How a request is answered."""

    ask: Ask
    served: ServedModel
    job: Job
    wanted: Mapping[str, Any] | None  # schema of the content, where the client named one
    asked: str  # "task": the question the run was tuned on; "question": the request's own words
    replaced: tuple[str, ...]  # what of the request was not shown to the model

    def content(self, outcome: Outcome) -> str:
        """The text of the reply: as the model wrote it, or the part that the schema asks for."""
        text = outcome.prediction.text
        if self.wanted is None:
            return text
        fields = read_object(text).fields
        kept = project(fields, self.wanted)
        return text if kept == fields else json.dumps(kept, ensure_ascii=False)

    def finish_reason(self, outcome: Outcome) -> str:
        """`length` for a reply that was cut off (and, with a schema, closed by force)."""
        if outcome.prediction.cut:
            return "length"
        return "stop"

    def whole(self, outcome: Outcome) -> bool:
        """Whether the content is the whole text of the reply."""
        return self.content(outcome) == outcome.prediction.text

    def details(self, prediction: Prediction) -> dict[str, Any]:
        """The `tailor` object beside a reply."""
        row = self.served.calibrated(self.job, prediction).row()
        row.pop("id")
        row.pop("text")
        details = {"run": self.served.name, "asked": self.asked, **row}
        if self.replaced:
            details["replaced"] = list(self.replaced)
        return details


def make_plan(ask: Ask, served: ServedModel) -> Plan:
    """Decide what is asked.

    A reply in the run's schema (whole or in part) is an answer to the run's own question, whatever the request's words
    are; so is a request in the words of that question or in none. All other words are a question of their own, which
    the tuned model answers in free text.

    Raises:
        ApiError: naming the parameter that cannot be honoured.
    """
    own, question = served.schema(), served.question()
    if ask.schema is not None and own is None:
        raise refused(ask.schema_param, f"the task `{served.task.name}` of this run replies in free text")
    wanted = None
    if ask.schema is not None and ask.schema is not OWN_SCHEMA:
        assert own is not None
        wanted = fit(ask.schema, own, ask.schema_param)
    if question is not None and (ask.schema is not None or ask.question in ("", question.strip())):
        return _of_task(ask, served, wanted, question)
    if question is None and served.takes_questions():
        mode = DecodingMode.CONSTRAINED if ask.schema is not None else served.mode
        _check_logprobs(ask, served, mode)
        return Plan(ask, served, _job(ask, served, mode), wanted, "task", ())
    if not ask.question:
        raise ApiError(400, "`messages`: no question — the last message of the user holds no text", param="messages")
    job = Job(Route(served.name, FREE_QUESTION, DecodingMode.UNCONSTRAINED), as_sample(ask), ask.limit)
    return Plan(ask, served, job, None, "question", ())


def _job(ask: Ask, served: ServedModel, mode: DecodingMode) -> Job:
    return Job(Route(served.name, served.task, mode), as_sample(ask), ask.limit)


def _of_task(ask: Ask, served: ServedModel, wanted: Mapping[str, Any] | None, question: str) -> Plan:
    """The run's own question about the files of the request."""
    mode = served.mode
    if ask.schema is not None and not compares_replies(served.task, mode):
        mode = DecodingMode.CONSTRAINED
    _check_logprobs(ask, served, mode)
    system = ask.system or None if served.own_systems else None
    replaced = []
    if ask.question and ask.question != question.strip():
        replaced.append("the words of the question: the run's own was asked")
    if ask.system and system is None:
        replaced.append("the system message: the run's own was used")
    if sum(message.role != "system" for message in ask.messages) > 1:
        replaced.append("earlier messages")
    job = Job(Route(served.name, served.task, mode), document_sample(ask.media, system), ask.limit)
    return Plan(ask, served, job, wanted, "task", tuple(replaced))


def _check_logprobs(ask: Ask, served: ServedModel, mode: DecodingMode) -> None:
    if ask.logprobs and compares_replies(served.task, mode):
        raise refused("logprobs", "this run takes the likeliest of a closed set of replies — see `tailor.raw`")
    if ask.logprobs and served.run.recipe.predict.framings > 1:
        raise refused("logprobs", "this run puts several readings of each file to a vote — see `tailor.raw`")


def check_readable(outcome: Outcome) -> None:
    """Refuse a request whose files the model could not be shown.

    Raises:
        ApiError: stating why.
    """
    prediction = outcome.prediction
    if prediction.problem and not prediction.text and not outcome.prompt_tokens:
        raise ApiError(400, prediction.problem, code="unreadable_input")
