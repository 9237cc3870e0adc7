"""`tailor verify --url`: served equals measured, and likely causes where it does not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx2
import pytest
from fixtures.served_runs import endpoint_of
from starlette.testclient import TestClient

import mllm_tailor as tailor
from mllm_tailor.core.errors import RunError
from mllm_tailor.core.io import write_jsonl
from mllm_tailor.run.run_dir import RunFolder
from mllm_tailor.serving.verify_url import Evidence, Price, likely_causes, verify_endpoint


@pytest.fixture(scope="module")
def folder(runs: dict[str, Path], files: list[Path]) -> RunFolder:
    """The run with its replies to the held-out samples, tuned and untuned."""
    folder = RunFolder(runs["receipts"])
    for name, base in (("tuned_constrained", False), ("base_constrained", True)):
        rows = [prediction.row() for prediction in tailor.load_run(folder.path).predict(files[:6], base=base)]
        folder.predictions(name).parent.mkdir(exist_ok=True)
        write_jsonl(folder.predictions(name), rows)
    return folder


@pytest.mark.slow
def test_our_server_gives_every_reply_again(client: TestClient, folder: RunFolder) -> None:
    result = verify_endpoint(folder, endpoint_of(client), count=None, clients=2)
    assert result.same == result.count == 6 and result.differences == () and result.causes == ()
    assert result.left_out == () and all(gain.difference.value == 0 for gain in result.gains.values())
    assert Price(1.0, 2.0).of(result.replies) > 0


@pytest.mark.slow
def test_the_untuned_base_is_recognised(client: TestClient, folder: RunFolder) -> None:
    result = verify_endpoint(folder, endpoint_of(client, "receipts:base"), count=4, clients=1)
    assert result.same < result.count == 4 and result.causes[0].startswith("adapter:")
    first = result.differences[0]
    assert first.run != first.endpoint and first.token > 0 and 0 < (first.probability or 0) <= 1


@pytest.mark.slow
def test_unknown_parameters_are_left_out_one_by_one(folder: RunFolder) -> None:
    """An endpoint that knows neither log-probabilities nor schemas, and refuses the first request for lack of room."""
    asked: list[dict[str, Any]] = []

    def answer(request: httpx2.Request) -> httpx2.Response:
        body = json.loads(request.content)
        asked.append(body)
        if len(asked) == 1:
            return httpx2.Response(429, headers={"retry-after": "0"}, json={"error": {"message": "busy"}})
        for name in ("response_format", "logprobs"):
            if name in body:
                return httpx2.Response(400, json={"error": {"message": f"Unsupported parameter: {name}"}})
        message = {"content": '{"company": "A", "total": "0"}'}
        return httpx2.Response(200, json={"choices": [{"message": message, "finish_reason": "stop"}], "usage": None})

    client = httpx2.Client(transport=httpx2.MockTransport(answer))
    result = verify_endpoint(folder, endpoint_of(client), count=2, clients=1)
    assert result.left_out == ("response_format", "logprobs") and len(asked) == 5
    assert any("unconstrained" in cause for cause in result.causes)
    assert asked[0]["messages"][0]["content"][0]["image_url"]["url"].startswith("data:image/png;base64,")


@pytest.mark.parametrize("status", [401, 404, 500])
def test_an_endpoint_that_refuses(folder: RunFolder, status: int) -> None:
    client = httpx2.Client(
        transport=httpx2.MockTransport(lambda _: httpx2.Response(status, json={"error": {"message": "no"}}))
    )
    with pytest.raises(RunError, match=str(status)):
        verify_endpoint(folder, endpoint_of(client), count=1, clients=1)


@pytest.mark.parametrize(
    ("extra", "word"),
    [
        ([7, 7, 7], "template or system text"),
        ([64, 0, 128], "tiles: prompts differ"),
        ([3, 0, 9], "tiles or template"),
        ([0, 0, 0], "dtype"),
    ],
)
def test_likely_causes(extra: list[int], word: str) -> None:
    evidence = Evidence(["aa", "bb", "cc"], ["aa", "bx", "cc"], ["-", "-", "-"], extra, 64, [1])
    assert likely_causes(evidence)[0].startswith(word)
