"""Run an application over HTTP until it is told to end."""

from __future__ import annotations

import uvicorn
from starlette.types import ASGIApp

from mllm_tailor.serving.settings import ServeSettings

# Longer than clients keep an idle connection (httpx, and so OpenAI's client: five seconds, which is uvicorn's default
# too). Otherwise a client may send a request just as the server closes, and gets no answer.
KEEP_ALIVE_SECONDS = 75


def listen(app: ASGIApp, settings: ServeSettings) -> None:
    """Answer requests; SIGTERM and Ctrl-C finish what is running, and end it."""
    uvicorn.run(
        app,
        host=settings.host,
        port=settings.port,
        log_level="warning",
        server_header=False,
        access_log=False,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
    )
