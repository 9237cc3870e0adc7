"""Loading, too many requests, and an end that loses no reply."""

from __future__ import annotations

import http.client
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2
import pytest
from serving.conftest import LIMITS, image_message, make_state, running
from starlette.testclient import TestClient

from mllm_tailor.core.errors import ModelError
from mllm_tailor.serving.app import make_app
from mllm_tailor.serving.served import load_served

CHAT = "/v1/chat/completions"


@pytest.mark.slow
def test_ready_only_when_loaded(runs: dict[str, Path], files: list[Path], tmp_path: Path) -> None:
    state, loaded = make_state([runs["receipts"]]), threading.Event()

    def load_later(models: Any) -> Any:
        loaded.wait()
        return load_served(models)

    state.backend._load = load_later  # type: ignore[attr-defined]
    body = {"model": "receipts", "messages": image_message(files[0]), "max_tokens": 2}
    with TestClient(make_app(state, tmp_path), base_url="http://localhost") as client:
        assert client.get("/health").status_code == 503
        answer = client.post(CHAT, json=body)
        assert answer.status_code == 503 and answer.headers["retry-after"]
        loaded.set()
        while client.get("/health").status_code != 200:
            time.sleep(0.02)
        assert client.post(CHAT, json=body).status_code == 200


def test_a_model_that_cannot_be_loaded_is_said_without_its_inside(
    runs: dict[str, Path], files: list[Path], tmp_path: Path
) -> None:
    state = make_state([runs["receipts"]])

    def fail(_: Any) -> Any:
        raise ModelError("/secret/path is damaged")

    state.backend._load = fail  # type: ignore[attr-defined]
    with TestClient(make_app(state, tmp_path), base_url="http://localhost") as client:
        while client.get("/health").json()["status"] != "failed":
            time.sleep(0.02)
        answer = client.post(CHAT, json={"model": "receipts", "messages": image_message(files[0])})
        assert answer.status_code == 503 and "secret" not in answer.text


@pytest.mark.slow
def test_beyond_the_limit_429_with_retry_after(runs: dict[str, Path], files: list[Path], tmp_path: Path) -> None:
    """Every request is answered: some with a reply, the others with 429."""
    state = make_state([runs["receipts"]])
    state.settings = replace(state.settings, limits=replace(LIMITS, requests=3))
    body = {"model": "receipts", "messages": image_message(files[0])}
    with running(state, tmp_path) as client, ThreadPoolExecutor(16) as clients:
        answers = list(clients.map(lambda _: client.post(CHAT, json=body), range(16)))
        statuses = [answer.status_code for answer in answers]
        assert set(statuses) == {200, 429} and statuses.count(200) >= 3
        assert all(answer.headers.get("retry-after") for answer in answers if answer.status_code == 429)
        assert client.post(CHAT, json=body).status_code == 200


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@pytest.mark.slow
def test_idle_connections_stay_and_sigterm_finishes_what_runs(runs: dict[str, Path], files: list[Path]) -> None:
    port = free_port()
    command = [sys.executable, "-m", "mllm_tailor.cli.main", "serve", str(runs["receipts"]), "--port", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env={**os.environ})
    url = f"http://127.0.0.1:{port}"
    try:
        while True:
            assert server.poll() is None, server.stdout and server.stdout.read()
            try:
                if httpx2.get(f"{url}/health").status_code == 200:
                    break
            except httpx2.HTTPError:
                time.sleep(0.1)
        kept = http.client.HTTPConnection("127.0.0.1", port)
        for wait in (0.0, 6.0):  # clients of httpx keep an idle connection for five seconds
            time.sleep(wait)
            kept.request("GET", "/health")
            assert kept.getresponse().read()
        body = {"model": "receipts", "messages": image_message(files[0])}
        with ThreadPoolExecutor(12) as clients:
            waiting = [clients.submit(httpx2.post, url + CHAT, json=body, timeout=60) for _ in range(12)]
            while httpx2.get(f"{url}/metrics").text.find("tailor_requests_in_flight 12.0") < 0:
                if any(item.done() for item in waiting):
                    break  # quicker than the metrics: some are still running
            server.send_signal(signal.SIGTERM)
            statuses = [item.result().status_code for item in waiting]
        assert statuses == [200] * 12
        assert server.wait(30) in (0, -signal.SIGTERM, 128 + signal.SIGTERM)
    finally:
        server.kill()
