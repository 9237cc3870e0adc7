"""`--engine vllm` as far as it can be shown without vLLM: a stand-in is started, asked, and ended."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
from serving.conftest import LIMITS, image_message, running
from serving.test_server import free_port

from mllm_tailor.core.errors import RunError
from mllm_tailor.serving import vllm_backend
from mllm_tailor.serving.served import served_models
from mllm_tailor.serving.settings import ServeSettings
from mllm_tailor.serving.state import ServerState
from mllm_tailor.serving.vllm_backend import VllmBackend, vllm_command

STAND_IN = Path(__file__).parents[1] / "fixtures" / "fake_vllm.py"


@pytest.mark.slow
def test_requests_pass_through(runs: dict[str, Path], files: list[Path], tmp_path: Path) -> None:
    port = free_port()
    model = served_models([runs["receipts"]])[0]
    backend = VllmBackend(model, [sys.executable, str(STAND_IN), str(port)], port)
    state = ServerState(ServeSettings(limits=LIMITS), {model.name: model}, backend)
    with running(state, tmp_path) as client:
        body = {"model": "receipts", "messages": image_message(files[0])}
        answer = client.post("/v1/chat/completions", json=body).json()
        assert answer["tailor"]["fields"] == {"company": "ACME", "total": "9.00"}
        assert answer["tailor"]["raw"]["total"]["mean"] == pytest.approx(0.6065, abs=1e-3)
        assert answer["usage"]["prompt_tokens"] == 11
        streamed = client.post("/v1/chat/completions", json={**body, "stream": True}).text
        assert "[DONE]" in streamed and "ACME" in streamed
    assert backend._process is not None and backend._process.poll() is not None


def test_without_vllm_it_is_said(runs: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(RunError, match="pip install"):
        vllm_command(served_models([runs["receipts"]])[0], 1)


def test_framings_are_refused(runs: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm_backend.shutil, "which", lambda _: "vllm")
    served = served_models([runs["receipts"]])[0]
    settings = served.run.recipe.predict.model_copy(update={"framings": 2})
    run = replace(served.run, recipe=served.run.recipe.model_copy(update={"predict": settings}))
    with pytest.raises(RunError, match=r"predict\.framings=2.*--engine builtin"):
        vllm_command(replace(served, run=run), 1)


def test_a_model_that_reads_reflowed_pages_is_refused(
    runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "processor_config.json").write_text('{"reflow": true}')
    monkeypatch.setattr(vllm_backend, "merged_folder", lambda *_: tmp_path)
    monkeypatch.setattr(vllm_backend.shutil, "which", lambda _: "vllm")
    with pytest.raises(RunError, match=r"model\.reflow.*--engine builtin"):
        vllm_command(served_models([runs["receipts"]])[0], 1)
