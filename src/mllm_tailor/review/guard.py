"""Who may open the page: this machine, or anybody with the key; and what a browser may do with it."""

from __future__ import annotations

from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qs

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mllm_tailor.serving.errors import ApiError
from mllm_tailor.serving.guard import HEADERS, check_access
from mllm_tailor.serving.settings import ServeSettings

COOKIE = "tailor_review"
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'"
)
MOST_BYTES = 1_000_000  # of one request


class ReviewGuard:
    """The outermost layer. A first visit with `?key=KEY` leaves a cookie that scripts cannot read."""

    def __init__(self, app: ASGIApp, settings: ServeSettings) -> None:
        self.app, self.settings = app, settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["content-security-policy"] = POLICY
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        await self._answer(scope)(scope, receive, send_guarded)

    def _answer(self, scope: Scope) -> ASGIApp | Response:
        headers = Headers(scope=scope)
        given = parse_qs(scope["query_string"].decode("latin-1")).get("key", [""])[0]
        key = given or _cookie(headers)
        asked = dict(scope)
        if key and "authorization" not in headers:
            asked["headers"] = [*scope["headers"], (b"authorization", b"Bearer " + key.encode("utf-8", "replace"))]
        try:
            check_access(asked, self.settings)
        except ApiError as error:
            return PlainTextResponse(f"{error.message}\n", error.status)
        length = headers.get("content-length", "0" if scope["method"] in ("GET", "HEAD") else "")
        if not (length.isascii() and length.isdigit()):
            return PlainTextResponse("the request does not state its length\n", 411)
        if int(length) > MOST_BYTES:
            return PlainTextResponse("the request is too large\n", 413)
        if given and self.settings.key:
            answer = RedirectResponse(scope["path"], 303)
            answer.set_cookie(COOKIE, given, httponly=True, samesite="strict")
            return answer
        return self.app


def _cookie(headers: Headers) -> str:
    try:
        cookies = SimpleCookie(headers.get("cookie", ""))
    except CookieError:
        return ""
    return cookies[COOKIE].value if COOKIE in cookies else ""
