"""/v1/files and /v1/batches."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile

from mllm_tailor.serving.batches import Batches
from mllm_tailor.serving.errors import ApiError, refused
from mllm_tailor.serving.extract import read_form
from mllm_tailor.serving.file_store import FileStore
from mllm_tailor.serving.schemas import BatchRequest
from mllm_tailor.serving.strict import StrictRoute

UPLOAD = {
    "required": True,
    "content": {
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "required": ["file", "purpose"],
                "properties": {
                    "file": {"type": "string", "format": "binary"},
                    "purpose": {"type": "string", "enum": ["batch"]},
                },
            }
        }
    },
}


def files_router(store: FileStore) -> APIRouter:
    """The endpoints of files."""
    router = APIRouter(route_class=StrictRoute)

    @router.post("/v1/files", response_model=None, openapi_extra={"requestBody": UPLOAD})
    async def upload_file(request: Request) -> dict[str, Any]:
        """Keep a file of requests for a batch, one JSON object a line."""
        form = await read_form(request, 1)
        try:
            upload, purpose = form.get("file"), form.get("purpose")
            if purpose != "batch":
                raise refused("purpose", "batch")
            if not isinstance(upload, UploadFile):
                raise ApiError(400, "`file`: no file in the form", param="file")
            return store.add(await upload.read(), (upload.filename or "")[:200], "batch")
        finally:
            await form.close()

    @router.get("/v1/files", response_model=None)
    async def list_files() -> dict[str, Any]:
        """Every file that is kept."""
        return {"object": "list", "data": list(store.rows("file")), "has_more": False}

    @router.get("/v1/files/{number}", response_model=None)
    async def get_file(number: str) -> dict[str, Any]:
        """What a file is."""
        return _row(store, number, "file")

    @router.get("/v1/files/{number}/content", response_model=None)
    async def get_content(number: str) -> Response:
        """The bytes of a file."""
        _row(store, number, "file")
        return Response(await run_in_threadpool(store.read, number), media_type="application/octet-stream")

    @router.delete("/v1/files/{number}", response_model=None)
    async def delete_file(number: str) -> dict[str, Any]:
        """Forget a file."""
        _row(store, number, "file")
        store.remove(number)
        return {"id": number, "object": "file", "deleted": True}

    return router


def batches_router(store: FileStore, batches: Batches) -> APIRouter:
    """The endpoints of batches."""
    router = APIRouter(route_class=StrictRoute)

    @router.post("/v1/batches", response_model=None)
    async def create_batch(body: BatchRequest) -> dict[str, Any]:
        """Answer the rows of a file behind all other requests."""
        return batches.create(body)

    @router.get("/v1/batches", response_model=None)
    async def list_batches() -> dict[str, Any]:
        """Every batch."""
        return {"object": "list", "data": list(store.rows("batch")), "has_more": False}

    @router.get("/v1/batches/{number}", response_model=None)
    async def get_batch(number: str) -> dict[str, Any]:
        """How far a batch is."""
        return _row(store, number, "batch")

    @router.post("/v1/batches/{number}/cancel", response_model=None)
    async def cancel_batch(number: str) -> dict[str, Any]:
        """Stop a batch."""
        _row(store, number, "batch")
        return batches.cancel(number)

    return router


def _row(store: FileStore, number: str, kind: str) -> dict[str, Any]:
    row = store.row(number)
    if row["object"] != kind:
        raise ApiError(404, "no such file or batch")
    return row
