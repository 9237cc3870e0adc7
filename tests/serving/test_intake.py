"""A matrix of addresses and paths: nothing is fetched and no file is opened."""

from __future__ import annotations

import base64
import builtins
import http.client
import io
import os
import socket
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from serving.conftest import LIMITS, image_message
from starlette.testclient import TestClient

from mllm_tailor.serving import remote
from mllm_tailor.serving.errors import ApiError
from mllm_tailor.serving.intake import MediaIntake
from mllm_tailor.serving.remote import fetch

ADDRESSES = [
    "http://127.0.0.1/a.png",
    "http://localhost:22/",
    "http://[::1]/",
    "http://0.0.0.0/",
    "http://10.0.0.5/a",
    "http://192.168.1.1/a",
    "http://169.254.169.254/latest/meta-data/",
    "http://[fd00::1]/",
    "http://[::ffff:127.0.0.1]/",
    "http://2130706433/",
    "http://0x7f.1/",
    "http://127.1/",
    "http://allowed.example@127.0.0.1/",
    "http://127.0.0.1#@allowed.example/",
    "http://allowed.example.evil.test/",
    "https://evil.test/?u=http://allowed.example",
    "HTTP://LOCALHOST/",
    "http:///etc/passwd",
    "http://allowed.example:99999/",
    "file:///etc/passwd",
    "file://localhost/etc/passwd",
    "FILE:///etc/passwd",
    "/etc/passwd",
    "../../../../etc/passwd",
    "C:\\Windows\\win.ini",
    "ftp://127.0.0.1/a",
    "gopher://127.0.0.1:70/_x",
    "dict://127.0.0.1:11211/stat",
    "jar:file:///a!/b",
    "blob:http://localhost/1",
    "data:image/png,notbase64",
    "data:image/png;base64,####",
    "data:;base64,L2V0Yy9wYXNzd2Q=",
    "",
    "\x00/etc/passwd",
    "http://\x00/",
    "https://пример.испытание/",
]


@pytest.fixture
def sealed(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[Any]]:
    """Whatever reaches for the network, or opens a file of these names, is written down."""
    seen: dict[str, list[Any]] = {"network": [], "files": []}

    def no_network(*arguments: Any, **named: Any) -> Any:
        seen["network"].append(arguments)
        raise OSError("sealed")

    real_open = builtins.open

    def watched(file: Any, *arguments: Any, **named: Any) -> Any:
        if isinstance(file, (str, bytes, os.PathLike)) and any(
            name in os.fsdecode(file) for name in ("passwd", "win.ini")
        ):
            seen["files"].append(file)
        return real_open(file, *arguments, **named)

    monkeypatch.setattr(socket, "create_connection", no_network)
    monkeypatch.setattr(socket, "getaddrinfo", no_network)
    monkeypatch.setattr(builtins, "open", watched)
    monkeypatch.setattr(io, "open", watched)
    return seen


@pytest.mark.slow
def test_no_address_leaves_the_server(client: TestClient, sealed: dict[str, list[Any]]) -> None:
    """Every address in every place that takes one: 0 connections, 0 files."""
    for address in ADDRESSES:
        for part in (
            {"type": "image_url", "image_url": {"url": address}},
            {"type": "video_url", "video_url": {"url": address}},
            {"type": "file", "file": {"file_data": address}},
            {"type": "file", "file": {"file_id": address}},
            {"type": "input_audio", "input_audio": {"data": address, "format": "wav"}},
            {"type": "input_image", "image_url": address},
        ):
            body = {"model": "receipts", "messages": [{"role": "user", "content": [part]}]}
            answer = client.post("/v1/chat/completions", json=body)
            assert answer.status_code == 400, (address, answer.text)
            assert "root:" not in answer.text
        assert client.post("/v1/extract", json={"model": "receipts", "file": address}).status_code == 400
    assert sealed == {"network": [], "files": []}


@pytest.mark.parametrize(
    "path",
    [
        "../../etc/passwd",
        "..%2f..%2fetc%2fpasswd",
        "%2e%2e/%2e%2e/etc/passwd",
        "file-../../etc/passwd",
        "/etc/passwd",
        "file-" + "0" * 24,
    ],
)
def test_no_path_is_readable(client: TestClient, path: str, sealed: dict[str, list[Any]]) -> None:
    for place in (f"/v1/files/{path}", f"/v1/files/{path}/content", f"/v1/batches/{path}", f"/docs/{path}", f"/{path}"):
        answer = client.get(place)
        assert answer.status_code in (404, 405), place
    assert client.delete(f"/v1/files/{path}").status_code == 404
    body = {"input_file_id": path, "endpoint": "/v1/chat/completions", "completion_window": "24h"}
    assert client.post("/v1/batches", json=body).status_code == 404
    assert sealed == {"network": [], "files": []}


def resolving(monkeypatch: pytest.MonkeyPatch, *addresses: str) -> list[Any]:
    """`allowed.example` resolves to these addresses; connections are refused and written down."""
    connections: list[Any] = []

    def connect(address: Any, *_: Any, **__: Any) -> Any:
        connections.append(address)
        raise OSError("refused")

    found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 80)) for address in addresses]
    monkeypatch.setattr(remote.socket, "getaddrinfo", lambda *_, **__: found)
    monkeypatch.setattr(remote.socket, "create_connection", connect)
    return connections


@pytest.mark.parametrize(
    "address", ["127.0.0.1", "10.1.2.3", "169.254.169.254", "::1", "fd00::2", "100.64.0.1", "224.0.0.1"]
)
def test_an_allowed_host_with_a_private_address_is_refused(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    for addresses in ([address], ["93.184.216.34", address]):
        connections = resolving(monkeypatch, *addresses)
        with pytest.raises(ApiError, match="not a public one"):
            fetch("http://allowed.example/a.png", frozenset({"allowed.example"}), 1000)
        assert connections == []


def test_the_checked_address_is_the_one_connected_to(monkeypatch: pytest.MonkeyPatch) -> None:
    connections = resolving(monkeypatch, "93.184.216.34")
    with pytest.raises(ApiError, match="no answer"):
        fetch("http://allowed.example:8080/a.png", frozenset({"allowed.example"}), 1000)
    assert connections == [("93.184.216.34", 8080)]


def test_redirects_and_large_answers_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    resolving(monkeypatch, "93.184.216.34")
    monkeypatch.setattr(http.client.HTTPConnection, "request", lambda *_, **__: None)
    for status, data, reason in ((302, b"", "status 302"), (200, b"x" * 2000, "over the limit")):
        answer = type("Answer", (), {"status": status, "read1": io.BytesIO(data).read1})()
        monkeypatch.setattr(http.client.HTTPConnection, "getresponse", lambda _, answer=answer: answer)
        with pytest.raises(ApiError, match=reason):
            fetch("http://allowed.example/a.png", frozenset({"allowed.example"}), 1000)


def test_pixels_are_counted_before_they_are_decoded() -> None:
    """A small file that claims many pixels, and many images that have them together."""
    bomb = io.BytesIO()
    Image.new("1", (3_000, 3_000)).save(bomb, "PNG")
    with pytest.raises(ApiError, match="pixels"):
        MediaIntake(LIMITS).image("data:image/png;base64," + base64.b64encode(bomb.getvalue()).decode(), "url")
    half = io.BytesIO()
    Image.new("RGB", (500, 500)).save(half, "PNG")
    url = "data:image/png;base64," + base64.b64encode(half.getvalue()).decode()
    intake = MediaIntake(LIMITS)
    intake.image(url, "url")
    with pytest.raises(ApiError, match="pixels in all"):
        intake.image(url, "url")


def test_files_that_cannot_be_read_are_named(client: TestClient, files: list[Path]) -> None:
    cut = base64.b64encode(files[0].read_bytes()[:60]).decode()
    body = {"model": "receipts", "messages": image_message(files[0])}
    body["messages"][0]["content"][0]["image_url"]["url"] = f"data:image/png;base64,{cut}"  # type: ignore[index]
    answer = client.post("/v1/chat/completions", json=body)
    assert answer.status_code == 400 and "cut off" in answer.json()["error"]["message"]
