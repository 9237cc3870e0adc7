"""POST /v1/chat/completions."""

from __future__ import annotations

import math
import secrets
import time
from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from starlette.concurrency import run_in_threadpool

from mllm_tailor.serving.ask import OWN_SCHEMA, Ask, read_messages
from mllm_tailor.serving.errors import refused
from mllm_tailor.serving.jobs import Outcome, Token
from mllm_tailor.serving.parameters import CHAT_CHECKS, check_parameters, forced_tool, token_limit
from mllm_tailor.serving.plan import Plan
from mllm_tailor.serving.schemas import ChatRequest
from mllm_tailor.serving.state import ServerState
from mllm_tailor.serving.streams import EventStream, stream_reply
from mllm_tailor.serving.strict import StrictRoute

LOWEST = -9999.0  # how OpenAI writes a probability of 0, since JSON has no infinity


def chat_router(state: ServerState) -> APIRouter:
    """The endpoint."""
    router = APIRouter(route_class=StrictRoute)

    @router.post("/v1/chat/completions", response_model=None)
    async def chat_completions(body: ChatRequest, request: Request) -> Response:
        """Answer a conversation about images, recordings or documents inside the request."""
        plan, ask = await plan_chat(state, body)
        if ask.stream:
            return await stream_reply(state, plan, ChatStream(plan))
        outcome = await state.answer(plan.job, request)
        return JSONResponse(completion(plan, outcome))

    return router


async def plan_chat(state: ServerState, body: ChatRequest) -> tuple[Plan, Ask]:
    """What a body asks, and how it is answered."""
    state.check_ready()
    state.model(body.model)
    ask = await run_in_threadpool(read_chat, state, body)
    return await state.plan(ask), ask


def read_chat(state: ServerState, body: ChatRequest) -> Ask:
    """The body as an `Ask`.

    Raises:
        ApiError: naming what cannot be honoured.
    """
    check_parameters(body, CHAT_CHECKS)
    schema, param, tool = _form(body)
    if body.top_logprobs is not None and not body.logprobs:
        raise refused("top_logprobs", "needs `logprobs`")
    if body.stream_options is not None:
        if not body.stream:
            raise refused("stream_options", "needs `stream`")
        check_parameters(body.stream_options, {})
    return Ask(
        model=body.model,
        messages=read_messages(body.messages, state.intake()),
        schema=schema,
        schema_param=param,
        tool=tool,
        limit=token_limit(body.max_tokens, body.max_completion_tokens),
        logprobs=bool(body.logprobs),
        stream=bool(body.stream),
        include_usage=bool(body.stream_options and body.stream_options.include_usage),
    )


def _form(body: ChatRequest) -> tuple[Mapping[str, Any] | None, str, str | None]:
    """Schema of the reply, the parameter that names it, and the function whose argument it is."""
    tool = forced_tool(body.tools, body.tool_choice)
    stated = body.response_format
    if stated is not None:
        check_parameters(stated, {})
    if tool is not None:
        if stated is not None and stated.type != "text":
            raise refused("response_format", "the reply is the argument of a function already")
        return tool[1] if tool[1].get("properties") else OWN_SCHEMA, "tools", tool[0]
    if stated is None or stated.type == "text":
        return None, "response_format", None
    if stated.type == "json_object":
        return OWN_SCHEMA, "response_format", None
    schema = (stated.json_schema or {}).get("schema")
    if not isinstance(schema, Mapping):
        raise refused("response_format.json_schema.schema", "a JSON schema is needed")
    return schema, "response_format.json_schema.schema", None


def completion(plan: Plan, outcome: Outcome) -> dict[str, Any]:
    """The whole answer."""
    content = plan.content(outcome)
    finish = plan.finish_reason(outcome)
    message: dict[str, Any] = {"role": "assistant", "content": content, "refusal": None}
    if plan.ask.tool is not None:
        message["content"] = None
        message["tool_calls"] = [tool_call(plan.ask.tool, content)]
        finish = "tool_calls" if finish == "stop" else finish
    choice: dict[str, Any] = {"index": 0, "message": message, "logprobs": None, "finish_reason": finish}
    if plan.ask.logprobs:
        choice["logprobs"] = logprobs(plan, outcome)
    return {
        "id": f"chatcmpl-{secrets.token_hex(12)}",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": plan.served.name,
        "choices": [choice],
        "usage": usage(outcome),
        "tailor": plan.details(outcome.prediction),
    }


def tool_call(name: str, arguments: str) -> dict[str, Any]:
    """The reply as the call of a function."""
    function = {"name": name, "arguments": arguments}
    return {"id": f"call_{secrets.token_hex(12)}", "type": "function", "function": function}


def usage(outcome: Outcome) -> dict[str, int]:
    """Tokens read and written."""
    written = len(outcome.tokens)
    return {
        "prompt_tokens": outcome.prompt_tokens,
        "completion_tokens": written,
        "total_tokens": outcome.prompt_tokens + written,
    }


def logprobs(plan: Plan, outcome: Outcome) -> dict[str, Any]:
    """The log-probability of every token of the content.

    Raises:
        ApiError: where the content is a part of what was read, so that tokens do not fit it.
    """
    if not plan.whole(outcome):
        raise refused("logprobs", "the schema asks for some of the fields that are read — ask for all of them")
    return {"content": [_token(token) for token in outcome.tokens], "refusal": None}


def _token(token: Token) -> dict[str, Any]:
    return {
        "token": token.data.decode("utf-8", "replace"),
        "logprob": token.logprob if math.isfinite(token.logprob) else LOWEST,
        "bytes": list(token.data),
        "top_logprobs": [],
    }


class ChatStream(EventStream):
    """A completion in chunks."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.head = {
            "id": f"chatcmpl-{secrets.token_hex(12)}",
            "object": "chat.completion.chunk",
            "created": int(time.time()),
            "model": plan.served.name,
        }
        self.call = tool_call(plan.ask.tool, "") if plan.ask.tool is not None else None

    def begin(self) -> list[tuple[str | None, Any]]:
        """The role, and the function that is called."""
        delta: dict[str, Any] = {"role": "assistant", "content": "" if self.call is None else None}
        if self.call is not None:
            delta["tool_calls"] = [{"index": 0, **self.call}]
        return [(None, self._chunk(delta))]

    def text(self, piece: str) -> list[tuple[str | None, Any]]:
        """More of the reply."""
        if self.call is None:
            return [(None, self._chunk({"content": piece}))]
        return [(None, self._chunk({"tool_calls": [{"index": 0, "function": {"arguments": piece}}]}))]

    def end(self, outcome: Outcome, content: str) -> list[tuple[str | None, Any]]:
        """Why it ended, and what it took."""
        finish = self.plan.finish_reason(outcome)
        if self.call is not None and finish == "stop":
            finish = "tool_calls"
        last = self._chunk({}, finish)
        if self.plan.ask.logprobs:
            last["choices"][0]["logprobs"] = logprobs(self.plan, outcome)
        last["tailor"] = self.plan.details(outcome.prediction)
        events: list[tuple[str | None, Any]] = [(None, last)]
        if self.plan.ask.include_usage:
            events.append((None, {**self.head, "choices": [], "usage": usage(outcome)}))
        return [*events, (None, "[DONE]")]

    def _chunk(self, delta: Mapping[str, Any], finish: str | None = None) -> dict[str, Any]:
        choice = {"index": 0, "delta": dict(delta), "logprobs": None, "finish_reason": finish}
        return {**self.head, "choices": [choice]}
