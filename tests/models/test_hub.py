"""Downloads from a hub, which a small server on this machine stands in for: broken, resumed, pinned, offline."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import huggingface_hub.constants
import pytest

from mllm_tailor.core.errors import ModelError
from mllm_tailor.models.resolve import find_checkpoint

FIRST, SECOND = "a" * 40, "b" * 40
WEIGHTS = "model.safetensors"


class Hub(ThreadingHTTPServer):
    """Serves one repository at two commits, and breaks off in the middle of the weights `breaks` times."""

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder = folder
        self.main = FIRST
        self.breaks = 0
        self.asked: list[tuple[str, int]] = []  # files sent, and from which byte on

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def do_HEAD(self) -> None:
        self.answer(send=False)

    def do_GET(self) -> None:
        self.answer(send=True)

    def answer(self, send: bool) -> None:
        path = self.path.partition("?")[0]
        if match := re.fullmatch(r"/api/models/owner/tiny(?:/revision/(\w+))?", path):
            return self.describe({None: self.server.main, "main": self.server.main}.get(match[1], match[1]))
        if re.fullmatch(r"/api/models/owner/tiny/tree/\w+", path):
            return self.list_files()
        match = re.fullmatch(r"/owner/tiny/resolve/(\w+)/(.+)", path)
        file = self.server.folder / match[2] if match else None
        if match is None or not file.is_file():
            return self.send_error(404)
        commit = self.server.main if match[1] == "main" else match[1]
        self.send_file(file, commit, send)

    def describe(self, commit: str) -> None:
        siblings = [{"rfilename": file.name} for file in self.server.folder.iterdir()]
        self.send_json({"id": "owner/tiny", "sha": commit, "siblings": siblings, "private": False})

    def list_files(self) -> None:
        files = [file for file in self.server.folder.iterdir() if file.is_file()]
        sums = [hashlib.sha1(file.read_bytes()).hexdigest() for file in files]
        rows = zip(files, sums, strict=True)
        self.send_json(
            [{"type": "file", "path": file.name, "size": file.stat().st_size, "oid": oid} for file, oid in rows]
        )

    def send_json(self, value: object) -> None:
        body = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def send_file(self, file: Path, commit: str, send: bool) -> None:
        content = file.read_bytes()
        asked = re.match(r"bytes=(\d+)-", self.headers.get("Range", ""))
        start = int(asked[1]) if asked else 0
        if send:
            self.server.asked.append((file.name, start))
        cut = None
        if send and file.name == WEIGHTS and self.server.breaks:
            self.server.breaks -= 1
            cut = start + (len(content) - start) // 2
        self.send_response(206 if asked else 200)
        self.send_header("Content-Length", str(len(content) - start))
        if asked:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", commit)
        self.send_header("Accept-Ranges", "bytes")
        self.end_headers()
        if send:
            self.wfile.write(content[start:cut])
            self.close_connection = cut is not None


@pytest.fixture
def hub(tiny_model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """The server, an empty cache, and both in use, as HF_ENDPOINT and HF_HUB_CACHE would have it."""
    server = Hub(tiny_model_folder)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", server.address)
    files = server.address + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", files)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(huggingface_hub.constants, "DOWNLOAD_CHUNK_SIZE", 2**14)  # what is kept of a broken download
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda seconds: None)
    yield server
    server.shutdown()
    server.server_close()


def test_a_download_that_breaks_goes_on_where_it_broke(hub: Hub) -> None:
    whole = (hub.folder / WEIGHTS).read_bytes()
    hub.breaks = 1
    assert (find_checkpoint("owner/tiny").folder / WEIGHTS).read_bytes() == whole
    first, second = (start for name, start in hub.asked if name == WEIGHTS)
    assert first == 0 and len(whole) // 3 < second < len(whole)


def test_a_download_that_was_given_up_keeps_what_is_whole(hub: Hub) -> None:
    hub.breaks = 100
    with pytest.raises(ModelError, match=r"owner/tiny: download failed .* complete files are kept"):
        find_checkpoint("owner/tiny")
    before, hub.asked, hub.breaks = {name for name, _ in hub.asked}, [], 0
    checkpoint = find_checkpoint("owner/tiny")
    assert {"config.json", "tokenizer.json"} <= before and {name for name, _ in hub.asked} == {WEIGHTS}
    assert (checkpoint.folder / WEIGHTS).read_bytes() == (hub.folder / WEIGHTS).read_bytes()


def test_the_commit_is_noted_and_can_be_asked_for(hub: Hub) -> None:
    assert find_checkpoint("owner/tiny").revision == FIRST
    hub.main = SECOND  # the repository moves on
    assert find_checkpoint("owner/tiny", FIRST).revision == FIRST
    assert find_checkpoint("owner/tiny").revision == SECOND


def test_what_was_fetched_once_opens_without_the_hub(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    fetched = find_checkpoint("owner/tiny")
    hub.shutdown()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert find_checkpoint("owner/tiny") == fetched
    with pytest.raises(ModelError, match="not in the local cache"):
        find_checkpoint("owner/other")


def test_a_repository_that_is_not_there(hub: Hub) -> None:
    with pytest.raises(ModelError, match="owner/other"):
        find_checkpoint("owner/other")


def test_only_what_is_safe_is_fetched(hub: Hub, tmp_path: Path) -> None:
    folder = tmp_path / "repository"
    folder.mkdir()
    for file in hub.folder.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    for name in ("pytorch_model.bin", "modeling_own.py", "training_args.pt"):
        (folder / name).write_bytes(b"never to be read")
    hub.folder = folder
    find_checkpoint("owner/tiny")
    fetched = {name for name, _ in hub.asked}
    assert WEIGHTS in fetched and not {name for name in fetched if name.endswith((".bin", ".py", ".pt"))}
