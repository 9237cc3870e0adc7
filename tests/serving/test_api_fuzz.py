"""No request ends in a 5xx: bodies of every endpoint, mutated at random."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from serving.conftest import data_url, image_message
from starlette.testclient import TestClient

ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(allow_nan=False),
    st.sampled_from(["", "\x00", "data:", "data:image/png;base64,", "file-000000000000000000000000", "é" * 300]),
    st.just([]),
    st.just({}),
    st.just([[[]]]),
    st.just({"type": "json_schema", "json_schema": {"schema": {"$ref": "#"}}}),
    st.just({"anyOf": [{"enum": 5}], "properties": 3, "required": "x"}),
    st.lists(st.one_of(st.none(), st.text(max_size=3)), max_size=2),
)


def bodies(file: Path) -> dict[str, dict[str, Any]]:
    schema = {"type": "object", "properties": {"total": {"type": "string"}}, "required": ["total"]}
    form = {"type": "json_schema", "json_schema": {"name": "r", "schema": schema}}
    tool = {"type": "function", "function": {"name": "f", "parameters": schema}}
    question = {"type": "choice", "instructions": "?", "choices": [{"value": "a"}, {"value": "b"}]}
    chat = {"model": "receipts", "messages": image_message(file, "x"), "max_tokens": 1}
    return {
        "/v1/chat/completions": {**chat, "response_format": form, "stream_options": None, "seed": 1},
        "/v1/chat/completions?tool": {**chat, "tools": [tool], "tool_choice": "required"},
        "/v1/responses": {
            "model": "receipts",
            "input": [{"role": "user", "content": [{"type": "input_image", "image_url": data_url(file)}]}],
            "text": {"format": {"type": "json_schema", "name": "r", "schema": schema}},
            "max_output_tokens": 1,
        },
        "/v1/decisions": {"model": "kinds", "input": "x", "questions": [question]},
        "/v1/extract": {"model": "receipts", "file": data_url(file)},
        "/v1/batches": {"input_file_id": "x", "endpoint": "/v1/responses", "completion_window": "24h"},
    }


def paths(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The way to every value inside."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(way for key, item in inner for way in paths(item, (*path, key)))]


def changed(body: Any, path: tuple[Any, ...], value: Any) -> Any:
    if not path:
        return value
    body = copy.copy(body)
    body[path[0]] = changed(body[path[0]], path[1:], value)
    return body


@pytest.mark.slow
def test_no_request_ends_in_a_5xx(client: TestClient, files: list[Path]) -> None:
    cases = [(url, body, way) for url, body in bodies(files[0]).items() for way in paths(body)]

    @settings(max_examples=120, suppress_health_check=list(HealthCheck), derandomize=True)
    @given(st.sampled_from(cases), ODD)
    def check(case: tuple[str, Any, tuple[Any, ...]], odd: Any) -> None:
        url, body, way = case
        content = json.dumps(changed(body, way, odd))
        answer = client.post(url, content=content, headers={"content-type": "application/json"})
        assert answer.status_code < 500, (url, way, odd, answer.text)

    check()
