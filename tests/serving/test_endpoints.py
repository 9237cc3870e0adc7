"""The endpoints in the forms that real clients use."""

from __future__ import annotations

import base64
import io
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fixtures.pdfs import pdf
from serving.conftest import data_url, image_message, make_state, running
from starlette.testclient import TestClient

CHAT = "/v1/chat/completions"
WHOLE = {
    "type": "object",
    "title": "Receipt",
    "properties": {
        "total": {"type": "string", "title": "Total"},
        "company": {"anyOf": [{"type": "string"}, {"type": "null"}]},
    },
    "required": ["total"],
}


def post(client: TestClient, body: dict[str, Any], path: str = CHAT) -> dict[str, Any]:
    answer = client.post(path, json=body)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def chat(client: TestClient, file: Path, **more: Any) -> dict[str, Any]:
    return post(client, {"model": "receipts", "messages": image_message(file, more.pop("words", "Read it")), **more})


@pytest.fixture(scope="module")
def text(client: TestClient, files: list[Path]) -> str:
    """The reply of the run to the first picture."""
    return str(chat(client, files[0], words="")["choices"][0]["message"]["content"])


@pytest.mark.slow
def test_a_schema_is_answered_by_the_tuned_question(client: TestClient, files: list[Path], text: str) -> None:
    for form in (
        {"type": "json_object"},
        {"type": "json_schema", "json_schema": {"name": "r", "strict": True, "schema": WHOLE}},
        {"type": "json_schema", "json_schema": {"name": "r", "schema": {"$defs": {"R": WHOLE}, "$ref": "#/$defs/R"}}},
    ):
        answer = chat(client, files[0], response_format=form)
        assert answer["choices"][0]["message"]["content"] == text
        assert answer["tailor"]["asked"] == "task" and "question" in answer["tailor"]["replaced"][0]


@pytest.mark.slow
def test_a_part_of_the_schema_is_cut_from_the_reading(client: TestClient, files: list[Path], text: str) -> None:
    schema = {"type": "object", "properties": {"total": {"type": "string"}}, "required": ["total"]}
    answer = chat(
        client, files[0], response_format={"type": "json_schema", "json_schema": {"name": "r", "schema": schema}}
    )
    assert json.loads(answer["choices"][0]["message"]["content"]) == {"total": json.loads(text)["total"]}


@pytest.mark.parametrize(
    ("properties", "reason"),
    [
        ({"vendor": {"type": "string"}}, "no field `vendor`"),
        ({"total": {"type": "number"}}, "`total` is string"),
        ({"total": {"type": "string", "format": "date"}}, "`total`"),
        ({"total": {"enum": ["a"]}}, "`total` is not limited"),
        ({"total": {"$ref": "#/nowhere"}}, "`$ref`"),
        ({"total": {"type": "string", "maxLength": "x"}}, "not a valid JSON schema"),
    ],
)
def test_a_schema_that_does_not_fit_is_refused(
    client: TestClient, files: list[Path], properties: Any, reason: str
) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "r", "schema": {"type": "object", "properties": properties}}}
    body = {"model": "receipts", "messages": image_message(files[0]), "response_format": form}
    answer = client.post(CHAT, json=body)
    assert answer.status_code == 400 and reason in answer.json()["error"]["message"]


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "final_result"}}])
def test_a_forced_tool_is_the_schema(client: TestClient, files: list[Path], text: str, choice: Any) -> None:
    tool = {"type": "function", "function": {"name": "final_result", "parameters": WHOLE}}
    body = {"tools": [tool], "tool_choice": choice, "max_completion_tokens": 100}
    message = chat(client, files[0], **body)["choices"][0]["message"]
    assert message["content"] is None and message["tool_calls"][0]["function"]["name"] == "final_result"
    assert json.loads(message["tool_calls"][0]["function"]["arguments"]) == json.loads(text)
    refused = client.post(CHAT, json={"model": "receipts", "messages": image_message(files[0]), "tools": [tool]})
    assert refused.status_code == 400 and refused.json()["error"]["param"] == "tool_choice"
    for odd in ([], True, "x"):
        body["tools"] = [{"type": "function", "function": {"name": "final_result", "parameters": odd}}]
        answer = client.post(CHAT, json={"model": "receipts", "messages": image_message(files[0]), **body})
        assert answer.status_code == 400 and answer.json()["error"]["param"] == "tools[0]"


def test_other_words_are_a_question_of_their_own(client: TestClient, files: list[Path], text: str) -> None:
    answer = chat(client, files[0], words="Which colour is it?", max_tokens=8)
    assert answer["tailor"]["asked"] == "question" and answer["choices"][0]["message"]["content"] != text
    assert answer["usage"]["completion_tokens"] <= 8


def test_a_reply_closed_by_force_says_length(client: TestClient, files: list[Path]) -> None:
    choice = chat(client, files[0], words="", max_tokens=6, logprobs=True)["choices"][0]
    assert choice["finish_reason"] == "length" and set(json.loads(choice["message"]["content"])) == {"company", "total"}
    tokens = choice["logprobs"]["content"]
    assert "".join(token["token"] for token in tokens) == choice["message"]["content"]
    assert tokens[-1]["logprob"] == -9999.0 and all(token["logprob"] <= 0 for token in tokens)


def events(client: TestClient, path: str, body: dict[str, Any]) -> list[Any]:
    with client.stream("POST", path, json=body) as answer:
        assert answer.status_code == 200 and answer.headers["content-type"].startswith("text/event-stream")
        lines = [line.removeprefix("data: ") for line in answer.iter_lines() if line.startswith("data: ")]
    return [json.loads(line) for line in lines if line != "[DONE]"] + [line for line in lines if line == "[DONE]"]


def test_a_stream_adds_up_to_the_reply(client: TestClient, files: list[Path], text: str) -> None:
    body = {"model": "receipts", "messages": image_message(files[0]), "stream": True}
    *chunks, usage, done = events(client, CHAT, {**body, "stream_options": {"include_usage": True}})
    pieces = [chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks]
    assert "".join(pieces) == text and sum(map(bool, pieces)) > 2
    assert usage["usage"]["total_tokens"] > 0 and usage["choices"] == [] and done == "[DONE]"
    assert chunks[-1]["choices"][0]["finish_reason"] in ("stop", "length") and chunks[-1]["tailor"]["fields"]


def test_a_stream_of_a_tool_call(client: TestClient, files: list[Path], text: str) -> None:
    tool = {"type": "function", "function": {"name": "f", "parameters": {}}}
    body = {
        "model": "receipts",
        "messages": image_message(files[0]),
        "stream": True,
        "tools": [tool],
        "tool_choice": "required",
    }
    *chunks, _ = events(client, CHAT, body)
    calls = [call for chunk in chunks for call in chunk["choices"][0]["delta"].get("tool_calls", ())]
    assert "".join(call["function"]["arguments"] for call in calls) == text and calls[0]["function"]["name"] == "f"


def test_responses(client: TestClient, files: list[Path], text: str) -> None:
    parts = [{"type": "input_image", "image_url": data_url(files[0])}, {"type": "input_text", "text": "Read"}]
    form = {"format": {"type": "json_schema", "name": "r", "schema": WHOLE, "strict": True}}
    body = {"model": "receipts", "input": [{"role": "user", "content": parts}], "text": form}
    answer = post(client, body, "/v1/responses")
    assert answer["output"][0]["content"][0]["text"] == text and answer["store"] is False
    assert answer["status"] == ("incomplete" if answer["incomplete_details"] else "completed")
    seen = events(client, "/v1/responses", {**body, "stream": True})
    assert "".join(event["delta"] for event in seen if event["type"] == "response.output_text.delta") == text
    assert [event["sequence_number"] for event in seen] == list(range(len(seen)))
    assert seen[-1]["type"] in ("response.completed", "response.incomplete")
    refused = client.post("/v1/responses", json={**body, "previous_response_id": "resp_1"})
    assert refused.json()["error"]["param"] == "previous_response_id"


def test_decisions(client: TestClient, files: list[Path]) -> None:
    parts = [{"type": "input_image", "image_url": data_url(files[0])}, {"type": "input_text", "text": "A page."}]
    questions = [
        {"type": "predicate", "instructions": "Is it a receipt?", "name": "receipt"},
        {
            "type": "choice",
            "instructions": "Kind?",
            "choices": [{"value": name} for name in ("invoice", "receipt", "letter")],
        },
        {"type": "choice", "instructions": "Is it paid?", "choices": [{"value": True}, {"value": False}]},
        {
            "type": "score",
            "instructions": "How legible?",
            "levels": [{"label": "poor"}, {"label": "fair"}, {"label": "good"}],
        },
    ]
    body = {"model": "kinds", "input": [{"role": "user", "content": parts}], "questions": questions}
    predicate, kind, paid, score = post(client, body, "/v1/decisions")["answers"]
    assert 0 < predicate["probability"] < 1 and predicate["name"] == "receipt"
    assert sum(item["probability"] for item in kind["probabilities"]) == pytest.approx(1, abs=1e-5)
    assert paid["choice"] in (True, False) and 0 <= score["score"] <= 2
    own = post(client, {"model": "kinds", "messages": image_message(files[0])})
    assert json.loads(own["choices"][0]["message"]["content"])["class"] == kind["choice"]
    assert own["tailor"]["raw"]["class"]["mean"] == pytest.approx(kind["confidence"], abs=1e-4)


def test_extract_takes_forms_and_json(client: TestClient, files: list[Path], text: str) -> None:
    form = client.post(
        "/v1/extract", data={"model": "receipts"}, files={"file": ("../../etc/passwd", files[0].read_bytes())}
    )
    assert (
        form.status_code == 200 and form.json()["text"] == text and set(form.json()["fields"]) == {"company", "total"}
    )
    as_json = post(client, {"model": "receipts", "file": data_url(files[0])}, "/v1/extract")
    assert as_json["text"] == text and as_json["raw"].keys() == as_json["fields"].keys()
    assert client.post("/v1/extract", json={"file": data_url(files[0])}).status_code == 400  # three runs: which one?


def test_a_pdf_is_read_by_its_pages(client: TestClient) -> None:
    short = base64.b64encode(pdf(2)).decode()
    part = {"type": "file", "file": {"filename": "a.pdf", "file_data": f"data:application/pdf;base64,{short}"}}
    answer = post(client, {"model": "receipts", "messages": [{"role": "user", "content": [part]}]})
    assert answer["tailor"]["fields"].keys() == {"company", "total"}
    long = base64.b64encode(pdf(4)).decode()
    part = {"type": "file", "file": {"file_data": long}}
    refused = client.post(CHAT, json={"model": "receipts", "messages": [{"role": "user", "content": [part]}]})
    assert refused.status_code == 413 and "pages" in refused.json()["error"]["message"]


def recording(seconds: float) -> str:
    import soundfile

    out = io.BytesIO()
    soundfile.write(out, np.zeros(int(8000 * seconds), np.float32), 8000, format="WAV")
    return base64.b64encode(out.getvalue()).decode()


def test_recordings(client: TestClient) -> None:
    """This model has no ears, which is said; a recording that is too long is refused before that."""
    for seconds, reason in ((0.5, "audio"), (6.0, "limit")):
        part = {"type": "input_audio", "input_audio": {"data": recording(seconds), "format": "wav"}}
        answer = client.post(CHAT, json={"model": "receipts", "messages": [{"role": "user", "content": [part]}]})
        assert answer.status_code == 400 and reason in answer.json()["error"]["message"], answer.text


@pytest.mark.slow
def test_batches_are_answered_and_continued(runs: dict[str, Path], files: list[Path], tmp_path: Path) -> None:
    lines = [
        {
            "custom_id": str(index),
            "method": "POST",
            "url": CHAT,
            "body": {"model": "receipts", "messages": image_message(file)},
        }
        for index, file in enumerate(files[:5])
    ]
    lines[4]["body"] = {"model": "receipts", "messages": image_message(files[0]), "temperature": 1}
    content = "\n".join(map(json.dumps, lines))
    with running(make_state([runs["receipts"]]), tmp_path) as client:
        upload = client.post("/v1/files", data={"purpose": "batch"}, files={"file": ("in.jsonl", content)}).json()
        body = {"input_file_id": upload["id"], "endpoint": CHAT, "completion_window": "24h"}
        batch = post(client, body, "/v1/batches")
    output = json.loads((tmp_path / f"{batch['id']}.json").read_text())["row"]["output_file_id"]
    if output:  # a row as a kill or a full disk leaves it
        with (tmp_path / output).open("a") as file:
            file.write('{"custom_id": "4", "respo')
    with running(make_state([runs["receipts"]]), tmp_path) as client:  # whatever the first server had not done
        until = time.monotonic() + 60
        while (row := client.get(f"/v1/batches/{batch['id']}").json())["status"] != "completed":
            assert time.monotonic() < until and row["status"] in ("validating", "in_progress"), row
            time.sleep(0.05)
        answers = [
            json.loads(line) for line in client.get(f"/v1/files/{row['output_file_id']}/content").text.splitlines()
        ]
        expected = post(client, lines[0]["body"])["choices"][0]["message"]["content"]
    assert row["request_counts"] == {"total": 5, "completed": 4, "failed": 1}
    by_id = {answer["custom_id"]: answer["response"] for answer in answers}
    assert len(answers) == 5 and by_id["4"]["status_code"] == 400
    assert by_id["0"]["body"]["choices"][0]["message"]["content"] == expected


def test_models_health_and_metrics(client: TestClient, files: list[Path]) -> None:
    listed = {model["id"]: model for model in client.get("/v1/models").json()["data"]}
    assert {"receipts", "receipts:base", "kinds", "questions"} < set(listed)
    assert listed["receipts"]["tailor"]["json_schema"]["required"] == ["company", "total"]
    assert client.get("/v1/models/receipts:base").json()["tailor"]["tuned"] is False
    chat(client, files[0], words="", max_tokens=2)
    metrics = client.get("/metrics").text
    assert (
        'tailor_requests_total{endpoint="/v1/chat/completions",status="200"}' in metrics
        and "tailor_ready 1.0" in metrics
    )
