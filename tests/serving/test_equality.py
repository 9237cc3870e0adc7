"""What is served equals what `tailor predict` writes, alone and under many clients, and with several runs at once."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from serving.conftest import data_url, image_message
from starlette.testclient import TestClient

import mllm_tailor as tailor


def predicted(run: Path, files: list[Path]) -> dict[str, dict[str, Any]]:
    return {prediction.id: prediction.row() for prediction in tailor.load_run(run).predict(files, boxes=True)}


def ask(client: TestClient, file: Path, model: str, text: str = "") -> dict[str, Any]:
    body = {"model": model, "messages": image_message(file, text)}
    answer = client.post("/v1/chat/completions", json=body)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


@pytest.fixture(scope="module")
def rows(runs: dict[str, Path], files: list[Path]) -> dict[str, dict[str, Any]]:
    return predicted(runs["receipts"], files)


@pytest.mark.slow
def test_replies_equal_those_of_predict(client: TestClient, files: list[Path], rows: dict[str, Any]) -> None:
    assert len({row["text"] for row in rows.values()}) > 3  # they depend on the picture
    for file in files:
        answer = ask(client, file, "receipts")
        row = rows[file.stem]
        assert answer["choices"][0]["message"]["content"] == row["text"]
        assert answer["tailor"]["fields"] == row["fields"]
        for name, scores in row["raw"].items():
            assert answer["tailor"]["raw"][name] == pytest.approx(scores, abs=1e-4)
        assert answer["choices"][0]["finish_reason"] == ("length" if row.get("cut") else "stop")


def extract(client: TestClient, file: Path) -> dict[str, Any]:
    answer = client.post("/v1/extract", json={"model": "receipts", "file": data_url(file)})
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def without_rounding(row: dict[str, Any]) -> bytes:
    """A row's bytes without its time, the id of a file, and digits that depend on who else is in the batch."""
    kept = {name: value for name, value in row.items() if name not in ("id", "run", "seconds")}
    for scores in (kept["confidence"], *kept["raw"].values()):
        scores.update({name: round(value, 2) for name, value in scores.items()})
    return json.dumps(kept, sort_keys=True).encode()


@pytest.mark.slow
def test_extract_answers_with_the_row_of_predict(client: TestClient, files: list[Path], rows: dict[str, Any]) -> None:
    """Fields, calibrated confidences, what needs no eye, and where it stands, of each of twenty documents."""
    accepted = {value for row in rows.values() for value in row["accept"].values()}
    assert accepted == {True, False}
    for file in files:
        row, answer = rows[file.stem], extract(client, file)
        assert answer["run"] == "receipts" and "calibrated" not in answer
        assert answer["confidence"].keys() == answer["accept"].keys() == answer["where"].keys() == row["fields"].keys()
        assert without_rounding(answer) == without_rounding(json.loads(json.dumps(row)))
    plain = client.post("/v1/extract", json={"model": "receipts", "file": data_url(files[0]), "where": False})
    assert "where" not in plain.json() and plain.json()["accept"] == rows[files[0].stem]["accept"]


@pytest.mark.slow
def test_fifty_clients_get_the_same(
    client: TestClient, files: list[Path], rows: dict[str, Any], runs: dict[str, Path]
) -> None:
    """Mixed with requests to other runs over the same base, which share its weights and not its adapter."""
    base = {
        name: ask(client, files[0], name, "Total?")["choices"][0]["message"]["content"]
        for name in ("questions", "kinds", "receipts:base")
    }
    wanted = [(files[index % 20], "receipts") for index in range(44)] + [
        (files[0], name) for name in base for _ in range(2)
    ]
    with ThreadPoolExecutor(50) as clients:
        answers = list(
            clients.map(lambda item: ask(client, *item, text="" if item[1] == "receipts" else "Total?"), wanted)
        )
        extracted = list(clients.map(lambda index: extract(client, files[index % 20]), range(50)))
    for index, answer in enumerate(extracted):
        row = json.loads(json.dumps(rows[files[index % 20].stem]))
        assert without_rounding(answer) == without_rounding(row)
    for (file, name), answer in zip(wanted, answers, strict=True):
        expected = rows[file.stem]["text"] if name == "receipts" else base[name]
        assert answer["choices"][0]["message"]["content"] == expected
    assert len({*base.values(), rows["0"]["text"]}) == 4


@pytest.mark.slow
@pytest.mark.parametrize("name", ["kinds", "questions"])
def test_other_tasks_equal_predict(
    client: TestClient, runs: dict[str, Path], files: list[Path], name: str, tmp_path: Path
) -> None:
    manifest = tmp_path / "ask.jsonl"
    manifest.write_text(f'{{"id": "a", "image": "{files[3]}", "question": "Total?"}}\n')
    row = predicted(runs[name], [manifest])["a"]
    answer = ask(client, files[3], name, "Total?" if name == "questions" else "")
    assert answer["choices"][0]["message"]["content"] == row["text"]
    assert answer["tailor"]["fields"] == row["fields"]
