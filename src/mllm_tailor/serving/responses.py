"""POST /v1/responses. Nothing is stored: a response cannot be asked for again."""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from starlette.concurrency import run_in_threadpool

from mllm_tailor.serving.ask import OWN_SCHEMA, Ask, read_messages
from mllm_tailor.serving.errors import refused
from mllm_tailor.serving.jobs import Outcome
from mllm_tailor.serving.parameters import RESPONSES_CHECKS, check_parameters, forced_tool
from mllm_tailor.serving.plan import Plan
from mllm_tailor.serving.schemas import ResponsesRequest
from mllm_tailor.serving.state import ServerState
from mllm_tailor.serving.streams import Event, EventStream, stream_reply
from mllm_tailor.serving.strict import StrictRoute


def responses_router(state: ServerState) -> APIRouter:
    """The endpoint."""
    router = APIRouter(route_class=StrictRoute)

    @router.post("/v1/responses", response_model=None)
    async def create_response(body: ResponsesRequest, request: Request) -> Response:
        """Answer an input of texts, images and files inside the request."""
        plan = await plan_response(state, body)
        if plan.ask.stream:
            return await stream_reply(state, plan, ResponseStream(plan))
        outcome = await state.answer(plan.job, request)
        return JSONResponse(response(plan, outcome))

    return router


async def plan_response(state: ServerState, body: ResponsesRequest) -> Plan:
    """How a body is answered."""
    state.check_ready()
    state.model(body.model)
    return await state.plan(await run_in_threadpool(read_response, state, body))


def read_response(state: ServerState, body: ResponsesRequest) -> Ask:
    """The body as an `Ask`.

    Raises:
        ApiError: naming what cannot be honoured.
    """
    check_parameters(body, RESPONSES_CHECKS)
    schema, param, tool = _form(body)
    items: list[Any] = [{"role": "user", "content": body.input}] if isinstance(body.input, str) else list(body.input)
    messages = [_as_message(item, f"input[{index}]") for index, item in enumerate(items)]
    if body.instructions:
        messages.insert(0, {"role": "system", "content": body.instructions})
    return Ask(
        model=body.model,
        messages=read_messages(messages, state.intake(), "input"),
        schema=schema,
        schema_param=param,
        tool=tool,
        limit=body.max_output_tokens,
        stream=bool(body.stream),
    )


def _as_message(item: Any, where: str) -> Any:
    """A message as it is; the call of a function and its output, which clients send back, as messages."""
    if not isinstance(item, Mapping) or item.get("type") in (None, "message"):
        return item
    if item["type"] == "function_call":
        return {"role": "assistant", "content": str(item.get("arguments", ""))}
    if item["type"] == "function_call_output":
        return {"role": "tool", "content": str(item.get("output", ""))}
    raise refused(f"{where}.type", "one of message, function_call, function_call_output")


def _form(body: ResponsesRequest) -> tuple[Mapping[str, Any] | None, str, str | None]:
    tool = forced_tool(body.tools, body.tool_choice)
    stated = body.text.format if body.text is not None else None
    if body.text is not None:
        check_parameters(body.text, {"verbosity": (lambda value: value == "medium", "a tuned reply has one length")})
    if stated is not None:
        check_parameters(stated, {})
    if tool is not None:
        if stated is not None and stated.type != "text":
            raise refused("text.format", "the reply is the argument of a function already")
        return tool[1] if tool[1].get("properties") else OWN_SCHEMA, "tools", tool[0]
    if stated is None or stated.type == "text":
        return None, "text.format", None
    if stated.type == "json_object":
        return OWN_SCHEMA, "text.format", None
    if stated.schema_ is None:
        raise refused("text.format.schema", "a JSON schema is needed")
    return stated.schema_, "text.format.schema", None


def response(plan: Plan, outcome: Outcome, number: str | None = None, item: str | None = None) -> dict[str, Any]:
    """The whole answer."""
    cut = plan.finish_reason(outcome) == "length"
    written = len(outcome.tokens)
    return {
        **_head(plan, number or _new("resp")),
        "status": "incomplete" if cut else "completed",
        "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
        "output": [_item(plan, plan.content(outcome), item or _new("msg"), "incomplete" if cut else "completed")],
        "usage": {
            "input_tokens": outcome.prompt_tokens,
            "input_tokens_details": {"cached_tokens": 0},
            "output_tokens": written,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": outcome.prompt_tokens + written,
        },
        "tailor": plan.details(outcome.prediction),
    }


def _new(kind: str) -> str:
    return f"{kind}_{secrets.token_hex(12)}"


def _head(plan: Plan, number: str) -> dict[str, Any]:
    return {
        "id": number,
        "object": "response",
        "created_at": int(time.time()),
        "model": plan.served.name,
        "status": "in_progress",
        "error": None,
        "incomplete_details": None,
        "instructions": None,
        "metadata": {},
        "output": [],
        "parallel_tool_calls": False,
        "temperature": 0.0,
        "tool_choice": "auto",
        "tools": [],
        "top_p": 1.0,
        "store": False,
    }


def _item(plan: Plan, content: str, number: str, status: str) -> dict[str, Any]:
    if plan.ask.tool is not None:
        call = {"name": plan.ask.tool, "arguments": content, "call_id": f"call_{number}"}
        return {"type": "function_call", "id": number, "status": status, **call}
    part = {"type": "output_text", "text": content, "annotations": [], "logprobs": []}
    return {"type": "message", "id": number, "status": status, "role": "assistant", "content": [part]}


class ResponseStream(EventStream):
    """A response as its events."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.number, self.item = _new("resp"), _new("msg")
        self.count = 0

    def begin(self) -> list[Event]:
        """The response, its one item, and the part of it that holds the text."""
        head = _head(self.plan, self.number)
        item = _item(self.plan, "", self.item, "in_progress")
        events = [
            self._event("response.created", response=head),
            self._event("response.in_progress", response=head),
            self._event("response.output_item.added", output_index=0, item={**item, "content": []}),
        ]
        if self.plan.ask.tool is None:
            events.append(self._event("response.content_part.added", **self._place(), part=item["content"][0]))
        else:
            events[-1] = self._event("response.output_item.added", output_index=0, item=item)
        return events

    def text(self, piece: str) -> list[Event]:
        """More of the reply."""
        if self.plan.ask.tool is None:
            return [self._event("response.output_text.delta", **self._place(), delta=piece, logprobs=[])]
        return [self._event("response.function_call_arguments.delta", **self._item_place(), delta=piece)]

    def end(self, outcome: Outcome, content: str) -> list[Event]:
        """Everything that was added is done."""
        whole = response(self.plan, outcome, self.number, self.item)
        item = whole["output"][0]
        if self.plan.ask.tool is None:
            events = [
                self._event("response.output_text.done", **self._place(), text=content, logprobs=[]),
                self._event("response.content_part.done", **self._place(), part=item["content"][0]),
            ]
        else:
            events = [
                self._event(
                    "response.function_call_arguments.done",
                    **self._item_place(),
                    name=self.plan.ask.tool,
                    arguments=content,
                )
            ]
        events.append(self._event("response.output_item.done", output_index=0, item=item))
        return [*events, self._event(f"response.{whole['status']}", response=whole)]

    def _item_place(self) -> dict[str, Any]:
        return {"item_id": self.item, "output_index": 0}

    def _place(self) -> dict[str, Any]:
        return {**self._item_place(), "content_index": 0}

    def _event(self, kind: str, **values: Any) -> Event:
        event = {"type": kind, "sequence_number": self.count, **values}
        self.count += 1
        return kind, event
