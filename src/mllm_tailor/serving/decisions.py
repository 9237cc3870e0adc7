"""POST /v1/decisions: questions with a closed set of answers, each answered by the probability of every answer.

The probabilities are those of `generation.loglikelihood`: of each whole reply, given that it is one of the set. A
choice between the classes of a run tuned to classify is that run's own question; all others are put as multiple choice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from starlette.concurrency import run_in_threadpool

from mllm_tailor.core.sample import Sample
from mllm_tailor.recipe import DecodingMode
from mllm_tailor.serving.ask import Ask, as_sample, document_sample, read_messages
from mllm_tailor.serving.errors import refused
from mllm_tailor.serving.jobs import Job, Outcome, Route
from mllm_tailor.serving.parameters import check_parameters
from mllm_tailor.serving.schemas import DecisionQuestion, DecisionsRequest
from mllm_tailor.serving.served import ServedModel
from mllm_tailor.serving.state import ServerState
from mllm_tailor.serving.strict import StrictRoute
from mllm_tailor.tasks import ClassTask, Task, open_task

MULTIPLE_CHOICE = open_task("choose")
MOST = 26  # options: each has a letter
TRUE, FALSE = "Yes", "No"


def decisions_router(state: ServerState) -> APIRouter:
    """The endpoint."""
    router = APIRouter(route_class=StrictRoute)

    @router.post("/v1/decisions", response_model=None)
    async def create_decision(body: DecisionsRequest, request: Request) -> Response:
        """Answer predicates, choices and scores about one input."""
        state.check_ready()
        served = state.model(body.model)
        jobs = await run_in_threadpool(decision_jobs, state, served, body)
        outcomes = await state.answers(jobs, request)
        answers = [
            answer(question, [share for _, share in outcome.shares])
            for question, outcome in zip(body.questions, outcomes, strict=True)
        ]
        return JSONResponse({"answers": answers, "model": served.name, "usage": usage(outcomes)})

    return router


def decision_jobs(state: ServerState, served: ServedModel, body: DecisionsRequest) -> list[Job]:
    """A job for each question, all about the same input.

    Raises:
        ApiError: naming what cannot be honoured.
    """
    check_parameters(body, {})
    items: Any = [{"role": "user", "content": body.input}] if isinstance(body.input, str) else body.input
    ask = Ask(model=served.name, messages=read_messages(items, state.intake(), "input"))
    return [_job(ask, served, question, f"questions[{index}]") for index, question in enumerate(body.questions)]


def _job(ask: Ask, served: ServedModel, question: DecisionQuestion, where: str) -> Job:
    check_parameters(question, {})
    options = _options(question, where)
    task = served.task
    if isinstance(task, ClassTask) and [str(value) for value in options] == list(task.classes):
        return Job(_route(served, task), document_sample(ask.media, ask.system or None if served.own_systems else None))
    if len(options) > MOST:
        raise refused(where, f"{len(options)} answers, where each needs one of {MOST} letters")
    asked = as_sample(ask)
    words = "\n".join(filter(None, (asked.prompt.strip(), _instructions(question, where))))
    sample: Sample = replace(asked, prompt=words, options=tuple(options), positions=_within(asked, words))
    multiple_choice = task if task.name == "choose" else MULTIPLE_CHOICE
    return Job(_route(served, multiple_choice), sample)


def _within(sample: Sample, words: str) -> tuple[tuple[int, int], ...]:
    """Positions of the files, none behind the end of a question whose margins were cut."""
    last = len(sample.history)
    return tuple((turn, min(at, len(words)) if turn == last else at) for turn, at in sample.positions)


def _route(served: ServedModel, task: Task) -> Route:
    return Route(served.name, task, DecodingMode.LIKELIHOOD)


def _options(question: DecisionQuestion, where: str) -> list[str]:
    if question.type == "predicate":
        return [TRUE, FALSE]
    if question.type == "choice":
        stated = [_with_description(str(choice.value), choice.description) for choice in question.choices or ()]
    else:
        stated = [_with_description(level.label, level.description) for level in question.levels or ()]
    if len(stated) < 2 or len(set(stated)) < len(stated):
        raise refused(where, "2 answers or more, each different")
    return stated


def _with_description(name: str, description: str | None) -> str:
    return f"{name} ({description})" if description else name


def _instructions(question: DecisionQuestion, where: str) -> str:
    if isinstance(question.instructions, str):
        return question.instructions
    texts = [part.get("text") for part in question.instructions if part.get("type") == "input_text"]
    if len(texts) < len(question.instructions) or not all(isinstance(text, str) for text in texts):
        raise refused(f"{where}.instructions", "text: images belong into `input`")
    return "\n".join(str(text) for text in texts)


def answer(question: DecisionQuestion, shares: Sequence[float]) -> dict[str, Any]:
    """The answer to a question by the probability of each of its answers."""
    best = max(range(len(shares)), key=shares.__getitem__)
    head: dict[str, Any] = {"type": question.type, "name": question.name}
    if question.type == "predicate":
        return head | {"probability": shares[0]}
    if question.type == "choice":
        values = [choice.value for choice in question.choices or ()]
        listed = [{"value": value, "probability": share} for value, share in zip(values, shares, strict=True)]
        return head | {"choice": values[best], "confidence": shares[best], "probabilities": listed}
    labels = [level.label for level in question.levels or ()]
    levels = [
        {"label": label, "value": value, "probability": share}
        for value, (label, share) in enumerate(zip(labels, shares, strict=True))
    ]
    mean = sum(value * share for value, share in enumerate(shares))
    return head | {"score": mean, "confidence": shares[best], "probabilities": levels}


def usage(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Tokens of all questions together."""
    read = sum(outcome.prompt_tokens for outcome in outcomes)
    return {
        "input_tokens": read,
        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        "output_tokens": 0,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": read,
    }
