"""POST /v1/extract: a file in, the run's fields out. An endpoint of our own, for programs without an OpenAI client."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from pydantic import ValidationError
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException

from mllm_tailor.core.sample import Media
from mllm_tailor.serving.ask import document_sample
from mllm_tailor.serving.errors import ApiError, refused
from mllm_tailor.serving.jobs import Job, Route
from mllm_tailor.serving.parameters import check_parameters
from mllm_tailor.serving.schemas import ExtractRequest
from mllm_tailor.serving.served import ServedModel
from mllm_tailor.serving.state import ServerState
from mllm_tailor.serving.strict import read_json_body

FORM = {
    "type": "object",
    "required": ["file"],
    "properties": {
        "model": {"type": "string"},
        "file": {"type": "array", "items": {"type": "string", "format": "binary"}},
        "where": {"type": "boolean", "default": True},
    },
}
BODY = {
    "required": True,
    "content": {
        "application/json": {"schema": ExtractRequest.model_json_schema()},
        "multipart/form-data": {"schema": FORM},
    },
}


def extract_router(state: ServerState) -> APIRouter:
    """The endpoint."""
    router = APIRouter()

    @router.post("/v1/extract", response_model=None, openapi_extra={"requestBody": BODY})
    async def extract(request: Request) -> Response:
        """Read the fields of one document: an image, a PDF, or several pages of it."""
        state.check_ready()
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind == "multipart/form-data":
            asked = await _of_form(state, request)
        elif kind == "application/json":
            asked = await run_in_threadpool(_of_json, state, await request.body())
        else:
            raise ApiError(415, "the body is JSON or a form with files", code="unsupported_media_type")
        served = asked.served
        if served.question() is None:
            raise refused("model", f"the task `{served.task.name}` of this run needs a question — /v1/chat/completions")
        route = Route(served.name, served.task, served.mode)
        job = Job(route, document_sample(asked.media), locate=asked.where)
        outcome = await state.answer(job, request)
        row = served.calibrated(job, outcome.prediction).row()
        row.pop("id")
        return JSONResponse({"run": served.name, **row})

    return router


@dataclass(frozen=True)
class _Asked:
    """What a request asks for."""

    served: ServedModel
    media: Sequence[Media]
    where: bool


def _of_json(state: ServerState, body: bytes) -> _Asked:
    try:
        asked = ExtractRequest.model_validate(read_json_body(body))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ApiError(400, f"`{where}`: {first['msg']}", param=where or None, code="invalid_request") from None
    check_parameters(asked, {})
    intake = state.intake()
    urls = [asked.file] if isinstance(asked.file, str) else asked.file
    if not urls:
        raise ApiError(400, "`file`: no file", param="file")
    media = [page for url in urls for page in intake.image(url, "file")]
    return _Asked(state.model(asked.model), media, asked.where)


async def _of_form(state: ServerState, request: Request) -> _Asked:
    form = await read_form(request, state.settings.limits.media)
    try:
        uploads = [value for value in form.getlist("file") if isinstance(value, UploadFile)]
        unknown: list[Any] = [name for name in form if name not in ("file", "model", "where")]
        if unknown:
            raise refused(unknown[0], "a form has `file`, `model` and `where`")
        if not uploads:
            raise ApiError(400, "`file`: no file in the form", param="file")
        data = [await upload.read() for upload in uploads]
        name, where = form.get("model"), form.get("where", "true")
    finally:
        await form.close()
    if where not in ("true", "false"):
        raise ApiError(400, "`where`: should be true or false", param="where", code="invalid_request")
    served = state.model(name if isinstance(name, str) else None)
    intake = state.intake()
    media = await run_in_threadpool(lambda: [page for each in data for page in intake.raw(each, "file")])
    return _Asked(served, media, where == "true")


async def read_form(request: Request, most: int) -> FormData:
    """A form with at most so many files.

    Raises:
        ApiError: for a broken form.
    """
    try:
        return await request.form(max_files=most, max_fields=16, max_part_size=1 << 16)
    except HTTPException:
        raise ApiError(400, "a broken form, or one with too many parts") from None
