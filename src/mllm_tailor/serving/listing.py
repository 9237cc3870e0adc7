"""GET /v1/models, /health and /metrics."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from fastapi.responses import JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST

from mllm_tailor.serving.served import ServedModel
from mllm_tailor.serving.state import ServerState


def listing_router(state: ServerState) -> APIRouter:
    """The endpoints."""
    router = APIRouter()

    @router.get("/v1/models", response_model=None)
    async def list_models() -> dict[str, Any]:
        """Every model that a request can name: runs, and their untuned bases as `NAME:base`."""
        return {"object": "list", "data": [row(model) for model in state.served.values()]}

    @router.get("/v1/models/{name}", response_model=None)
    async def get_model(name: str) -> dict[str, Any]:
        """One of them."""
        return row(state.model(name))

    @router.get("/health", response_model=None)
    async def health() -> JSONResponse:
        """200 once every model is loaded, else 503."""
        if state.backend.failure is not None:
            return JSONResponse({"status": "failed"}, 503)
        ready = state.backend.ready
        return JSONResponse({"status": "ready" if ready else "loading"}, 200 if ready else 503)

    @router.get("/metrics", response_model=None)
    async def metrics() -> Response:
        """Figures in Prometheus' text format."""
        text = state.metrics.text(waiting=state.backend.waiting(), ready=state.backend.ready)
        return Response(text, media_type=CONTENT_TYPE_LATEST)

    return router


def row(model: ServedModel) -> dict[str, Any]:
    """A model as OpenAI's clients read it, with what it was tuned for."""
    return {
        "id": model.name,
        "object": "model",
        "created": model.created,
        "owned_by": "mllm-tailor",
        "tailor": model.description(),
    }
