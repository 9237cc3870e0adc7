"""Confidences of what is served are counted, kept, and compared window by window."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
from serving.conftest import data_url, make_state, running

import mllm_tailor as tailor
from mllm_tailor.core.sample import Prediction
from mllm_tailor.run.predict import write_predictions
from mllm_tailor.run.run_dir import RunFolder
from mllm_tailor.scoring.drift import count_confidences
from mllm_tailor.serving.drift import FALSE_ALARMS, DriftWatch


def replies(mean: float, count: int, seed: int) -> list[Prediction]:
    draws = np.random.default_rng(seed).beta(20 * mean, 20 * (1 - mean), (count, 2))
    return [Prediction("a", "", confidence={"total": float(a), "date": float(b)}) for a, b in draws]


def held_out() -> dict[str, np.ndarray]:
    drawn = replies(0.9, 80, 0)
    return {name: count_confidences(reply.confidence[name] for reply in drawn) for name in ("total", "date")}


def test_a_window_that_differs_is_named_and_the_next_one_forgets(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "drift.json"
    watch = DriftWatch("receipts", held_out(), file, window=100)
    for reply in replies(0.9, 100, 1):
        watch.add(reply)
    assert not any(counts.left for counts in watch.fields.values()) and not caplog.records
    for reply in replies(0.9, 100, 2):
        watch.add(Prediction("a", "", confidence={**reply.confidence, "total": reply.confidence["total"] / 2}))
    assert [name for name, counts in watch.fields.items() if counts.left] == ["total"]
    assert "receipts: confidences of `total` differ" in caplog.text and "`date`" not in caplog.text
    row = json.loads(file.read_text())
    assert row["false_alarms"] == FALSE_ALARMS and sum(row["fields"]["date"]["served"]) == 200
    assert [window["fields"]["total"]["left"] for window in row["windows"]] == [False, True]
    for reply in replies(0.9, 60, 3):
        watch.add(reply)
    watch.save()
    again = DriftWatch("receipts", held_out(), file, window=100)  # the next server
    assert again.row() == watch.row() and again.replies == 60
    for reply in replies(0.9, 40, 4):
        again.add(reply)
    assert not any(counts.left for counts in again.fields.values())
    other = DriftWatch("receipts", {**held_out(), "date": count_confidences([0.5])}, file, window=100)
    assert other.replies == 0  # of another held-out split
    file.write_text("{}")
    assert DriftWatch("receipts", held_out(), file).replies == 0


def test_a_folder_that_cannot_be_written_is_named_once(caplog: pytest.LogCaptureFixture) -> None:
    watch = DriftWatch("receipts", held_out(), Path("/proc/none/drift.json"), window=10)
    with caplog.at_level(logging.WARNING):
        for reply in replies(0.9, 20, 5):
            watch.add(reply)
    assert caplog.text.count("cannot be written") == 1


@pytest.mark.slow
def test_a_server_counts_its_replies(runs: dict[str, Path], files: list[Path], tmp_path: Path) -> None:
    shutil.copytree(runs["receipts"], tmp_path / "receipts")
    folder = RunFolder(tmp_path / "receipts")
    write_predictions(folder.reply_rows, list(tailor.load_run(folder.path).predict(files[:2])))
    with running(make_state([folder.path]), tmp_path / "files") as client:
        for file in files[:3]:
            assert client.post("/v1/extract", json={"file": data_url(file)}).status_code == 200
        client.post("/v1/extract", json={"model": "receipts:base", "file": data_url(files[0])})
        figures = client.get("/metrics").text
        assert 'tailor_confidence_count{field="total",model="receipts"} 3.0' in figures
        assert 'tailor_drift{field="total",model="receipts"} 0.0' in figures
    row = json.loads(folder.drift.read_text())
    assert row["replies_in_window"] == 3 and sum(row["fields"]["company"]["served"]) == 3
    assert sum(row["fields"]["company"]["held_out"]) == 2
