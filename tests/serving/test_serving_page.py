"""Every command and snippet of docs/serving.md that needs no further package is run against a server."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import uvicorn
from PIL import Image
from serving.conftest import make_state
from serving.test_server import free_port

from mllm_tailor.serving.app import make_app

PAGE = Path(__file__).resolve().parents[2] / "docs" / "serving.md"
FENCE = re.compile(r"^```(bash|python)\n(.*?)^```", re.MULTILINE | re.DOTALL)
BLOCKS = [(kind, text) for kind, text in FENCE.findall(PAGE.read_text(encoding="utf-8")) if "import OpenAI" not in text]


@pytest.fixture(scope="module")
def address(runs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server on a port of this machine."""
    port = free_port()
    app = make_app(make_state([runs["receipts"]]), tmp_path_factory.mktemp("files"))
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=port, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.02)
    yield f"http://localhost:{port}"
    server.should_exit = True
    thread.join()


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "text"), BLOCKS)
def test_block_runs(kind: str, text: str, address: str, files: list[Path], tmp_path: Path) -> None:
    import httpx2

    while httpx2.get(f"{address}/health").status_code != 200:
        time.sleep(0.02)
    if kind == "bash" and shutil.which("curl") is None:
        pytest.skip("no curl here")
    Image.open(files[0]).convert("RGB").save(tmp_path / "receipt.jpg")
    command = [sys.executable, "-c"] if kind == "python" else ["sh", "-c"]
    script = text.replace("http://localhost:8000", address)
    done = subprocess.run([*command, script], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and "total" in done.stdout, done.stderr


def test_there_are_such_blocks() -> None:
    assert {kind for kind, _ in BLOCKS} == {"bash", "python"}
