"""Server-sent events: a reply is passed on while it is written."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from typing import Any, Protocol

from fastapi.responses import StreamingResponse

from mllm_tailor.serving.errors import ApiError, error_body
from mllm_tailor.serving.jobs import Job, Outcome
from mllm_tailor.serving.plan import Plan, check_readable
from mllm_tailor.serving.schema_match import names_all
from mllm_tailor.serving.state import ServerState, outcome_of

Event = tuple[str | None, Any]  # its name (None: without one), and what it holds


class EventStream(Protocol):
    """How an endpoint writes the parts of a reply."""

    def begin(self) -> Sequence[Event]:
        """Events before the first text."""
        ...

    def text(self, piece: str) -> Sequence[Event]:
        """Events of more text."""
        ...

    def end(self, outcome: Outcome, content: str) -> Sequence[Event]:
        """Events after the last text."""
        ...


async def stream_reply(state: ServerState, plan: Plan, events: EventStream) -> StreamingResponse:
    """Begin a reply. What fails before its first piece is an answer with an error's status.

    A reply of which the client gets a part is sent when it is whole.

    Raises:
        ApiError: before anything was written.
    """
    pieces: asyncio.Queue[str | None] = asyncio.Queue()
    loop = asyncio.get_running_loop()
    job = plan.job
    if names_all(plan.wanted, plan.served.schema()):
        job.on_text = lambda piece: _put(loop, pieces, piece)
    job.result.add_done_callback(lambda _: _put(loop, pieces, None))
    state.submit(job)
    try:
        first = await pieces.get()
        if first is None:
            check_readable(outcome_of(job))
    except BaseException:
        job.abandon()
        raise
    body = _events(state, plan, events, pieces, first)
    return StreamingResponse(body, media_type="text/event-stream", headers={"X-Accel-Buffering": "no"})


def _put(loop: asyncio.AbstractEventLoop, pieces: asyncio.Queue[str | None], piece: str | None) -> None:
    if not loop.is_closed():
        loop.call_soon_threadsafe(pieces.put_nowait, piece)


async def _events(
    state: ServerState, plan: Plan, events: EventStream, pieces: asyncio.Queue[str | None], piece: str | None
) -> AsyncIterator[str]:
    job, sent = plan.job, ""
    try:
        for event in events.begin():
            yield written(event)
        while piece is not None:
            sent += piece
            for event in events.text(piece):
                yield written(event)
            piece = await pieces.get()
        for event in _last(state, plan, events, job, sent):
            yield written(event)
    except ApiError as error:
        yield written((None, error.body()))
    finally:
        job.abandon()


def _last(state: ServerState, plan: Plan, events: EventStream, job: Job, sent: str) -> list[Event]:
    """The rest of the text, and the end. Text that differs from what was sent would be a defect: it is named."""
    outcome = outcome_of(job)
    state.count(job, outcome)
    content = plan.content(outcome)
    if not content.startswith(sent):
        return [(None, error_body(500, "the reply changed while it was sent; ask again without `stream`"))]
    rest = content[len(sent) :]
    return [*(events.text(rest) if rest else ()), *events.end(outcome, content)]


def written(event: Event) -> str:
    """An event as it is sent."""
    name, value = event
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, allow_nan=False)
    return (f"event: {name}\n" if name else "") + f"data: {text}\n\n"
