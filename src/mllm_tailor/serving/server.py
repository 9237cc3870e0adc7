"""Run the server until it is told to end."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from mllm_tailor.core.errors import RunError, nearest
from mllm_tailor.serving.app import make_app
from mllm_tailor.serving.listen import listen
from mllm_tailor.serving.served import ServedModel, served_models
from mllm_tailor.serving.settings import ServeSettings
from mllm_tailor.serving.state import ServerState
from mllm_tailor.serving.vllm_backend import VllmBackend, vllm_command
from mllm_tailor.serving.worker import Backend, EngineWorker

ENGINES = ("builtin", "vllm")


def serve(paths: Sequence[Path], settings: ServeSettings, engine: str) -> None:
    """Serve run folders. SIGTERM and Ctrl-C end it once what was asked is answered.

    Raises:
        RunError: for an unfinished run, an engine that is not there, or a server open to others without a key.
        ModelError: when vLLM cannot compute the model.
    """
    settings.check()
    models = served_models(paths)
    backend: Backend
    if engine == "vllm":
        models = [model for model in models if model.tuned]
        backend = vllm_backend(models)
    elif engine == "builtin":
        backend = EngineWorker(models, settings.window)
    else:
        raise RunError(f"no engine is called `{engine}` — {nearest(engine, ENGINES)}")
    state = ServerState(settings, {model.name: model for model in models}, backend)
    with TemporaryDirectory(prefix="tailor-serve-") as temporary:
        listen(make_app(state, settings.files or Path(temporary)), settings)


def vllm_backend(models: Sequence[ServedModel]) -> VllmBackend:
    """vLLM for one run, on a free port of this machine.

    Raises:
        RunError: for several runs, each of which needs a server of its own.
    """
    if len(models) != 1:
        raise RunError("`--engine vllm` serves one run: its merged model — start a server for each")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = int(free.getsockname()[1])
    return VllmBackend(models[0], vllm_command(models[0], port), port)
