"""Bodies are strict JSON: no repeated keys, no NaN, no half characters, no endless nesting."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute

from mllm_tailor.core.strict_json import parse_json
from mllm_tailor.serving.errors import ApiError


class StrictRequest(Request):
    """A request whose body is read strictly."""

    async def json(self) -> Any:
        """The body.

        Raises:
            ApiError: stating what is wrong with it.
        """
        if not hasattr(self, "_strict"):
            self._strict = read_json_body(await self.body())
        return self._strict


def read_json_body(body: bytes) -> Any:
    """Strict JSON.

    Raises:
        ApiError: stating what is wrong.
    """
    try:
        return parse_json(body.decode("utf-8"))
    except UnicodeDecodeError:
        raise ApiError(400, "the body is not UTF-8", code="invalid_json") from None
    except (ValueError, RecursionError) as error:
        raise ApiError(400, f"the body is not JSON: {error}", code="invalid_json") from None


class StrictRoute(APIRoute):
    """A route whose handler gets a `StrictRequest`."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The handler, with its request made strict."""
        handler = super().get_route_handler()

        async def strict(request: Request) -> Response:
            try:
                return await handler(StrictRequest(request.scope, request.receive))
            except Exception as error:
                if isinstance(error.__cause__, ApiError):  # FastAPI wraps what reading the body raises
                    raise error.__cause__ from None
                raise

        return strict
