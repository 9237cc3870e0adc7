"""The application: every endpoint behind one guard."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from starlette.concurrency import run_in_threadpool

from mllm_tailor import __version__
from mllm_tailor.serving.chat import chat_router
from mllm_tailor.serving.errors import install_handlers
from mllm_tailor.serving.guard import Guard
from mllm_tailor.serving.listing import listing_router
from mllm_tailor.serving.pages_router import pages_router
from mllm_tailor.serving.state import ServerState

DESCRIPTION = (
    "Tuned runs behind OpenAI's endpoints. Replies are greedy; a parameter that cannot be honoured is refused by name."
)


def make_app(state: ServerState) -> Guard:
    """The application of a server. Starting it starts the engine; ending it lets the engine finish."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        state.backend.start()
        yield
        await run_in_threadpool(state.backend.close)

    app = FastAPI(
        title="mllm-tailor",
        version=__version__,
        description=DESCRIPTION,
        docs_url=None,  # FastAPI's own pages load their script from another host
        redoc_url=None,
        lifespan=lifespan,
    )
    install_handlers(app)
    for router in (listing_router(state), chat_router(state), pages_router(app)):
        app.include_router(router)
    return Guard(app, state.settings, state.metrics)
