"""What stands before every endpoint: who may ask, how much may be sent, and what browsers may do with the answer."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import time
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mllm_tailor.serving.errors import ApiError
from mllm_tailor.serving.metrics import Metrics
from mllm_tailor.serving.settings import ServeSettings, is_loopback

OPEN = frozenset({"/health"})  # without a key
HEADERS = {
    "content-security-policy": "default-src 'none'; style-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}
KNOWN = frozenset(
    f"/v1/{name}" for name in ("chat/completions", "responses", "decisions", "extract", "models", "files", "batches")
) | {"/health", "/metrics", "/docs", "/openapi.json"}


class Guard:
    """The outermost layer of the server."""

    def __init__(self, app: ASGIApp, settings: ServeSettings, metrics: Metrics) -> None:
        self.app, self.settings, self.metrics = app, settings, metrics
        # Bytes of the body of every request with one that is in the server. A coroutine that is collected may end in
        # another thread than the loop's, so there is no counter to go wrong.
        self.held: dict[object, int] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = time.perf_counter()
        endpoint = endpoint_of(scope["path"])

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
                self.metrics.requests.labels(endpoint, str(message["status"])).inc()
                self.metrics.seconds.labels(endpoint).observe(time.perf_counter() - started)
            await send(message)

        try:
            check_access(scope, self.settings)
        except ApiError as error:
            await error.response()(scope, receive, send_guarded)
            return
        if scope["method"] in ("GET", "HEAD", "OPTIONS", "DELETE"):
            await self.app(scope, receive, send_guarded)
            return
        await self._with_body(scope, receive, send_guarded)

    async def _with_body(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Read the body within its limits, then answer; what waits and what it holds are counted."""
        limits = self.settings.limits
        if len(self.held) >= limits.requests:
            await busy().response()(scope, receive, send)
            return
        request = object()
        self.held[request] = 0
        self.metrics.in_flight.set(len(self.held))
        try:
            async with asyncio.timeout(limits.body_seconds):
                body = await self._read(Headers(scope=scope), receive)
            self.held[request] = len(body)
            await self.app(scope, _replay(body, receive), send)
        except TimeoutError:
            await ApiError(408, "the body did not arrive in time").response()(scope, receive, send)
        except ApiError as error:
            await error.response()(scope, receive, send)
        finally:
            self.held.pop(request, None)
            self.metrics.in_flight.set(len(self.held))

    async def _read(self, headers: Headers, receive: Receive) -> bytes:
        most = self.settings.limits.body_bytes
        stated = headers.get("content-length", "0")
        if not stated.isascii() or not stated.isdigit() or int(stated) > most:
            raise _too_large(most)
        parts, size = [], 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ApiError(400, "the client has gone")
            part = message.get("body", b"")
            size += len(part)
            if size > most:
                raise _too_large(most)
            if sum(tuple(self.held.values())) + size > self.settings.limits.bodies_bytes:
                raise busy()
            parts.append(part)
            if not message.get("more_body"):
                return b"".join(parts)


def _too_large(most: int) -> ApiError:
    return ApiError(413, f"the request is over the limit of {most:,} bytes", code="request_too_large")


def busy() -> ApiError:
    """The answer to one request too many."""
    return ApiError(429, "too many requests are waiting", code="rate_limit_exceeded", headers={"Retry-After": "1"})


def _replay(body: bytes, receive: Receive) -> Receive:
    """The body as one message, then whatever the connection says next."""
    sent = False

    async def again() -> Message:
        nonlocal sent
        if sent:
            return await receive()
        sent = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again


def check_access(scope: Scope, settings: ServeSettings) -> None:
    """The key; and, for a server without one, that no web page asks on behalf of a visitor.

    Raises:
        ApiError: with 401 or 403.
    """
    headers = Headers(scope=scope)
    host = _host_name(headers.get("host", ""))
    origin = headers.get("origin")
    if settings.local and not is_loopback(host):
        raise ApiError(403, "this server answers to names of this machine only")  # DNS rebinding
    if origin is not None and _host_name(urlsplit(origin).netloc) != host:
        raise ApiError(403, "pages of another origin cannot use this server")
    if settings.key and scope["path"] not in OPEN and not has_key(headers, settings.key):
        raise ApiError(401, "no key, or a wrong one", code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})


def has_key(headers: Headers, key: str) -> bool:
    """Whether a request brings the key; the comparison takes the same time wherever they differ."""
    kind, _, given = headers.get("authorization", "").partition(" ")
    digests = [hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest() for text in (given.strip(), key)]
    return hmac.compare_digest(*digests) and kind.lower() == "bearer"


def _host_name(netloc: str) -> str:
    """A host without its port.

    >>> [_host_name(text) for text in ("localhost:8000", "[::1]:80", "")]
    ['localhost', '::1', '']
    """
    if netloc.startswith("["):
        return netloc[1:].partition("]")[0]
    return netloc.partition(":")[0].lower()


def endpoint_of(path: str) -> str:
    """The endpoint of a path, for metrics: ids are left out."""
    name = path.rstrip("/")
    if name in KNOWN:
        return name
    return next((f"{known}/ID" for known in KNOWN if name.startswith(f"{known}/")), "other")
