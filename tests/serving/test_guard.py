"""What the server refuses, and that its errors hold nothing of its inside."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from serving.conftest import image_message, make_state, running
from starlette.testclient import TestClient

from mllm_tailor.core.errors import RunError
from mllm_tailor.serving.settings import ServeSettings

CHAT = "/v1/chat/completions"


def error_of(answer: Any) -> dict[str, Any]:
    error = dict(answer.json()["error"])
    assert "Traceback" not in json.dumps(error) and "/mllm_tailor/" not in json.dumps(error)
    return error


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", 0.7),
        ("top_p", 0.9),
        ("n", 2),
        ("stop", ["\n"]),
        ("logit_bias", {"5": 1}),
        ("presence_penalty", 1),
        ("top_logprobs", 5),
        ("store", True),
        ("stream_options", {"include_usage": True}),
        ("best_of", 3),
        ("tool_choice", "required"),
        ("reasoning_effort", "high"),
        ("modalities", ["audio"]),
        ("functions", []),
    ],
)
def test_parameters_are_refused_by_name(client: TestClient, files: list[Path], name: str, value: Any) -> None:
    extra = {"logprobs": True} if name == "top_logprobs" else {}
    body = {"model": "receipts", "messages": image_message(files[0]), name: value, **extra}
    answer = client.post(CHAT, json=body)
    assert answer.status_code == 400, answer.text
    assert name in error_of(answer)["param"] and name in error_of(answer)["message"]


@pytest.mark.parametrize(
    "name", ["temperature", "top_p", "n", "stop", "tools", "seed", "max_tokens", "response_format"]
)
def test_null_counts_as_absent(client: TestClient, files: list[Path], name: str) -> None:
    body = {"model": "receipts", "messages": image_message(files[0]), "max_completion_tokens": 2, name: None}
    assert client.post(CHAT, json=body).status_code == 200


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b'"x"',
        b"\xff",
        b'{"model": NaN}',
        b'{"model": "a", "model": "b"}',
        b"[" * 100_000,
        b'{"model": "receipts", "messages": [{"role": "user", "content": "\\ud800"}]}',
    ],
)
def test_broken_bodies(client: TestClient, body: bytes) -> None:
    answer = client.post(CHAT, content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 400
    error_of(answer)


def test_unknown_model_and_path(client: TestClient, files: list[Path]) -> None:
    answer = client.post(CHAT, json={"model": "recipts", "messages": image_message(files[0])})
    assert answer.status_code == 404 and "did you mean `receipts`" in error_of(answer)["message"]
    assert client.get("/v1/nothing").status_code == 404
    assert client.get(CHAT).status_code == 405


def test_headers_and_own_pages(client: TestClient) -> None:
    """No page of the server loads anything from elsewhere."""
    page = client.get("/docs")
    assert page.status_code == 200 and CHAT in page.text
    assert "http://" not in page.text and "https://" not in page.text and "<script" not in page.text
    for answer in (page, client.get("/openapi.json"), client.get("/v1/nothing"), client.get("/metrics")):
        assert answer.headers["content-security-policy"].startswith("default-src 'none'")
        assert answer.headers["x-content-type-options"] == "nosniff"


def test_the_openapi_document_names_the_models(client: TestClient) -> None:
    document = client.get("/openapi.json").json()
    extract = document["paths"]["/v1/extract"]["post"]["requestBody"]["content"]
    names = [form["schema"]["properties"]["model"] for form in extract.values()]
    names.append(document["components"]["schemas"]["ChatRequest"]["properties"]["model"])
    served = [model["id"] for model in client.get("/v1/models").json()["data"]]
    assert all(served in [option.get("enum") for option in name.get("anyOf", [name])] for name in names)


def test_pages_of_other_origins_and_other_names_are_refused(client: TestClient) -> None:
    assert client.get("/v1/models", headers={"origin": "https://example.org"}).status_code == 403
    assert client.get("/v1/models", headers={"host": "example.org"}).status_code == 403
    assert client.get("/v1/models", headers={"origin": "http://localhost:8000"}).status_code == 200


@pytest.mark.slow
def test_a_key_is_needed_and_compared_whole(runs: dict[str, Path], tmp_path: Path) -> None:
    with running(make_state([runs["kinds"]], key="sekret", host="0.0.0.0"), tmp_path) as client:
        for header in (None, "Bearer sekre", "Bearer sekrett", "Basic sekret", "Bearer ", "Bearer \xff"):
            given = {} if header is None else {"authorization": header.encode("latin-1")}
            assert client.get("/v1/models", headers=given).status_code == 401  # type: ignore[arg-type]
        answer = client.get("/v1/models", headers={"authorization": "Bearer sekret"})
        assert answer.status_code == 200
        assert client.get("/metrics").status_code == 401 and client.get("/health").status_code == 200


def test_open_to_others_only_with_a_key() -> None:
    with pytest.raises(RunError, match="TAILOR_API_KEY"):
        ServeSettings(host="0.0.0.0").check()
    ServeSettings(host="0.0.0.0", key="k").check()
    ServeSettings(host="127.0.0.1").check()


def test_a_body_over_the_limit(client: TestClient, files: list[Path]) -> None:
    for body in (b"x" * 2_000_001, iter([b"x" * 1_500_000, b"x" * 1_500_000])):
        answer = client.post(CHAT, content=body, headers={"content-type": "application/json"})
        assert answer.status_code == 413
    long = {"model": "questions", "messages": [{"role": "user", "content": "x" * 5_001}]}
    assert client.post(CHAT, json=long).status_code == 413
    many = {"model": "receipts", "messages": image_message(files[0]) * 5}
    assert client.post(CHAT, json=many).status_code == 413
