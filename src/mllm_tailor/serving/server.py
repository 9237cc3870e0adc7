"""Run the server until it is told to end."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import uvicorn

from mllm_tailor.serving.app import make_app
from mllm_tailor.serving.served import served_models
from mllm_tailor.serving.settings import ServeSettings
from mllm_tailor.serving.state import ServerState
from mllm_tailor.serving.worker import EngineWorker


def serve(paths: Sequence[Path], settings: ServeSettings) -> None:
    """Serve run folders. SIGTERM and Ctrl-C end it once what was asked is answered.

    Raises:
        RunError: for an unfinished run, or a server open to others without a key.
    """
    settings.check()
    models = served_models(paths)
    worker = EngineWorker(models, settings.window)
    state = ServerState(settings, {model.name: model for model in models}, worker)
    with TemporaryDirectory(prefix="tailor-serve-") as temporary:
        uvicorn.run(
            make_app(state, settings.files or Path(temporary)),
            host=settings.host,
            port=settings.port,
            log_level="warning",
            server_header=False,
            access_log=False,
        )
