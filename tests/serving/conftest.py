"""One server for all tests of the room: three runs over one tiny base, in this process."""

from __future__ import annotations

import base64
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fixtures.served_runs import FIELDS, calibrate, make_run, receipt_files
from starlette.testclient import TestClient

from mllm_tailor.serving.app import make_app
from mllm_tailor.serving.served import served_models
from mllm_tailor.serving.settings import ServeLimits, ServeSettings
from mllm_tailor.serving.state import ServerState
from mllm_tailor.serving.worker import EngineWorker

LIMITS = ServeLimits(body_bytes=2_000_000, pixels=400_000, pages=3, media=4, text=5_000, seconds=5.0)


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Twenty small pictures."""
    return receipt_files(tmp_path_factory.mktemp("pictures"), 20)


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory, tiny_model_folder: Path, files: list[Path]) -> dict[str, Path]:
    """Run folders by name: `receipts` (calibrated) and `questions` over one base; `kinds`, which compares replies."""
    output = tmp_path_factory.mktemp("runs")
    tasks: dict[str, Any] = {
        "receipts": {"extract": {"fields": FIELDS}},
        "questions": {"answer": {}},
        "kinds": {"classify": {"classes": ["invoice", "receipt", "letter"]}},
    }
    made = {
        name: make_run(
            output, name, tiny_model_folder, task, seed=seed, files=files[:6] if name == "receipts" else None
        )
        for seed, (name, task) in enumerate(tasks.items())
    }
    calibrate(made["receipts"])
    return {name: folder.path for name, folder in made.items()}


def make_state(paths: list[Path], **settings: Any) -> ServerState:
    """A server's state; its models are loaded once the application starts."""
    models = served_models(paths)
    chosen = ServeSettings(limits=LIMITS, **settings)
    return ServerState(chosen, {model.name: model for model in models}, EngineWorker(models, chosen.window))


@pytest.fixture(scope="session")
def client(runs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    """A client of a server that is ready."""
    with running(make_state(list(runs.values())), tmp_path_factory.mktemp("files")) as client:
        yield client


class running:
    """A server in this process, ready; its client is what the block gets."""

    def __init__(self, state: ServerState, files: Path) -> None:
        self.client = TestClient(make_app(state, files), base_url="http://localhost", raise_server_exceptions=False)

    def __enter__(self) -> TestClient:
        self.client.__enter__()
        until = time.monotonic() + 60
        while self.client.get("/health").status_code != 200:
            assert time.monotonic() < until
            time.sleep(0.02)
        return self.client

    def __exit__(self, *error: object) -> None:
        self.client.__exit__(*error)


def data_url(file: Path) -> str:
    """A file as clients embed it."""
    return "data:image/png;base64," + base64.b64encode(file.read_bytes()).decode()


def image_message(file: Path, text: str = "") -> list[dict[str, Any]]:
    """A message with a picture."""
    parts: list[dict[str, Any]] = [{"type": "image_url", "image_url": {"url": data_url(file)}}]
    return [{"role": "user", "content": [*parts, *([{"type": "text", "text": text}] if text else [])]}]
