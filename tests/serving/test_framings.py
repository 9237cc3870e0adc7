"""A served run that reads each file in several framings: replies equal those of predict, and every token counts."""

from __future__ import annotations

from pathlib import Path

import pytest
from fixtures.served_runs import FIELDS, make_run
from serving.conftest import data_url, image_message, make_state, running

import mllm_tailor as tailor


@pytest.mark.parametrize("task", ["extract", "classify"])
def test_framings_are_served(task: str, tmp_path: Path, tiny_model_folder: Path, files: list[Path]) -> None:
    settings = {"extract": {"fields": FIELDS}, "classify": {"classes": ["invoice", "receipt"]}}
    single, framed = (
        make_run(tmp_path, f"read-{count}", tiny_model_folder, {task: settings[task]}, predict={"framings": count}).path
        for count in (1, 3)
    )
    rows = {prediction.id: prediction.row() for prediction in tailor.load_run(framed).predict(files[:3])}
    with running(make_state([single, framed]), tmp_path / "files") as client:
        for file in files[:3]:
            body = {"messages": image_message(file, "")}
            once, read = (
                client.post("/v1/chat/completions", json={**body, "model": name}).json()
                for name in ("read-1", "read-3")
            )
            row = rows[file.stem]
            assert read["choices"][0]["message"]["content"] == row["text"]
            assert read["tailor"]["fields"] == row["fields"]
            for name, scores in row["raw"].items():
                assert read["tailor"]["raw"][name] == pytest.approx(scores, abs=1e-4)
            assert "framings" not in str(once["tailor"]["raw"])
            assert read["usage"]["prompt_tokens"] == 3 * once["usage"]["prompt_tokens"]
        refused = client.post("/v1/chat/completions", json={**body, "model": "read-3", "logprobs": True})
        assert refused.status_code == 400 and "logprobs" in refused.text
        lost = client.post(
            "/v1/chat/completions", json={"model": "read-3", "messages": image_message(files[0], "Why?")}
        )
        assert lost.status_code == 200, lost.text  # a question in other words is answered in text: read once
        if task == "extract":
            stream = client.post("/v1/chat/completions", json={**body, "model": "read-3", "stream": True})
            assert "[DONE]" in stream.text
            spots = client.post("/v1/extract", json={"model": "read-3", "file": data_url(files[0])})
            assert spots.status_code == 200 and "where" in spots.json()
