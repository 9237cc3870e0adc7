"""The application: every endpoint behind one guard."""

from __future__ import annotations

import copy
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from starlette.concurrency import run_in_threadpool

from mllm_tailor import __version__
from mllm_tailor.serving.batches import Batches
from mllm_tailor.serving.chat import chat_router
from mllm_tailor.serving.decisions import decisions_router
from mllm_tailor.serving.drift import watch_drift
from mllm_tailor.serving.errors import install_handlers
from mllm_tailor.serving.extract import extract_router
from mllm_tailor.serving.file_store import FileStore
from mllm_tailor.serving.files import batches_router, files_router
from mllm_tailor.serving.guard import Guard
from mllm_tailor.serving.listing import listing_router
from mllm_tailor.serving.pages_router import pages_router
from mllm_tailor.serving.responses import responses_router
from mllm_tailor.serving.state import ServerState

DESCRIPTION = (
    "Tuned runs behind OpenAI's endpoints. Replies are greedy; a parameter that cannot be honoured is refused by name."
)


def make_app(state: ServerState, files: Path) -> Guard:
    """The application of a server that keeps uploaded files in `files`.

    Starting it starts the engine and continues unfinished batches; ending it lets the engine finish.

    Raises:
        RunError: when another server keeps its files there.
    """
    store = FileStore(files, state.settings.limits.files)
    store.own()
    batches = Batches(state, store)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        state.drift |= {name: watch for name, model in state.served.items() if (watch := watch_drift(model))}
        state.backend.start()
        batches.resume()
        yield
        await batches.end()
        await run_in_threadpool(state.backend.close)
        for watch in state.drift.values():
            watch.save()
        store.close()

    app = FastAPI(
        title="mllm-tailor",
        version=__version__,
        description=DESCRIPTION,
        docs_url=None,  # FastAPI's own pages load their script from another host
        redoc_url=None,
        lifespan=lifespan,
    )
    describe = app.openapi
    app.openapi = lambda: name_models(copy.deepcopy(describe()), list(state.served))  # type: ignore[method-assign]
    install_handlers(app)
    routers = (chat_router, responses_router, decisions_router, extract_router, listing_router)
    for router in (
        *(make(state) for make in routers),
        files_router(store),
        batches_router(store, batches),
        pages_router(app),
    ):
        app.include_router(router)
    return Guard(app, state.settings, state.metrics)


def name_models(document: Any, names: list[str]) -> Any:
    """The OpenAPI document with the names that requests can ask for, wherever a body has a `model`."""
    if isinstance(document, list):
        for item in document:
            name_models(item, names)
    elif isinstance(document, dict):
        properties = document.get("properties")
        model = properties.get("model") if isinstance(properties, dict) else None
        if isinstance(model, dict):
            for option in model.get("anyOf", [model]):
                if option.get("type") == "string":
                    option["enum"] = names
        for item in document.values():
            name_models(item, names)
    return document
