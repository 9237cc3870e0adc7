"""`tailor serve`: runs behind OpenAI's endpoints."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from mllm_tailor.commands.console import show
from mllm_tailor.core.errors import RunError
from mllm_tailor.core.optional import need
from mllm_tailor.serving.settings import KEY_VARIABLE, ServeLimits, ServeSettings


def serve_runs(
    paths: Sequence[Path],
    *,
    host: str,
    port: int,
    allowed_hosts: Sequence[str],
    requests: int,
    files: Path | None,
    engine: str = "builtin",
) -> None:
    """Serve until told to end.

    Raises:
        RunError: when the extra is not installed, a run is unfinished, or the server would be open without a key.
    """
    for module in ("fastapi", "uvicorn", "prometheus_client", "python_multipart"):
        need(module, "serve", "`tailor serve`", RunError)
    from mllm_tailor.serving.server import serve

    settings = ServeSettings(
        host=host,
        port=port,
        key=os.environ.get(KEY_VARIABLE) or None,
        allowed_hosts=frozenset(name.lower() for name in allowed_hosts),
        files=files,
        limits=ServeLimits(requests=requests),
    )
    settings.check()
    show(f"http://{host}:{port}/v1 — /docs describes it, /health answers 200 once the models are loaded")
    serve(paths, settings, engine)
