"""Errors in the shape that OpenAI's clients read, without anything of the server's inside."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from mllm_tailor.core.failures import describe

logger = logging.getLogger(__name__)

KINDS = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}
LONGEST = 500  # characters of a message: it may repeat words of the request


class ApiError(Exception):
    """A request that is refused; clients see the message and the parameter."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.headers = dict(headers or {})

    def body(self) -> dict[str, Any]:
        """The JSON body of the answer."""
        return error_body(self.status, self.message, self.param, self.code)

    def response(self) -> JSONResponse:
        """The answer."""
        return JSONResponse(self.body(), self.status, self.headers)


def error_body(status: int, message: str, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    """An error as OpenAI's clients read it."""
    kind = KINDS.get(status, "invalid_request_error" if status < 500 else "server_error")
    shown = message if len(message) <= LONGEST else f"{message[:LONGEST]} …"
    return {"error": {"message": shown, "type": kind, "param": param, "code": code}}


def refused(param: str, reason: str) -> ApiError:
    """A parameter that cannot be honoured."""
    return ApiError(400, f"`{param}`: {reason}", param=param, code="unsupported_parameter")


def install_handlers(app: FastAPI) -> None:
    """Every failure becomes an answer in one shape; what is not the client's fault is logged and not shown."""

    @app.exception_handler(ApiError)
    async def _refused(_: Request, error: ApiError) -> JSONResponse:
        return error.response()

    @app.exception_handler(RequestValidationError)
    async def _invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"] if part != "body")
        message = f"`{where}`: {first['msg']}" if where else str(first["msg"])
        return JSONResponse(error_body(400, message, where or None, "invalid_request"), 400)

    @app.exception_handler(HTTPException)
    async def _http(_: Request, error: HTTPException) -> JSONResponse:
        return JSONResponse(error_body(error.status_code, str(error.detail)), error.status_code, error.headers)

    @app.exception_handler(OSError)
    async def _disk(_: Request, error: OSError) -> JSONResponse:
        logger.error("A request failed: %s", describe(error))
        return JSONResponse(error_body(507, "the server cannot read or write a file; its log has the reason"), 507)

    @app.exception_handler(Exception)
    async def _internal(_: Request, error: Exception) -> JSONResponse:
        logger.error("A request failed", exc_info=error)
        return JSONResponse(error_body(500, "the server failed on this request; its log has the reason"), 500)
