"""The comparison of all peers: rounds in turns that can be continued, and the tables made of them."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
Sides = dict[str, Callable[[int], dict[str, Any]]]


@pytest.fixture(autouse=True)
def _scripts(monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in ("benchmarks", "tools/docs"):
        monkeypatch.syspath_prepend(str(REPOSITORY / folder))


def sides(calls: list[str], failing: str = "") -> Sides:
    """Three sides that note their calls."""

    def side(key: str) -> Callable[[int], dict[str, Any]]:
        def run(number: int) -> dict[str, Any]:
            calls.append(f"{key}{number}")
            if key == failing:
                raise RuntimeError("no such package")
            return {"round": number}

        return run

    return {key: side(key) for key in "abc"}


def test_rounds_take_turns_and_a_side_that_failed_is_left() -> None:
    from rounds import Measurements

    calls: list[str] = []
    kept: list[int] = []
    measured = Measurements(keep=lambda: kept.append(len(calls)))
    measured.interleave(sides(calls, failing="b"), 3, "work")
    assert calls == ["a0", "b0", "c0", "c1", "a1", "a2", "c2"]
    assert measured.errors == {"b": "no such package"}
    assert kept == [1, 2, 3, 4, 5, 6, 7]  # after every measurement


def test_a_later_call_measures_what_is_missing() -> None:
    from rounds import Measurements

    calls: list[str] = []
    found = {"a": [{"round": 0}, {"round": 1}], "b": [{"round": 0}]}
    measured = Measurements(found)
    measured.interleave(sides(calls), 2, "work")
    assert calls == ["c0", "c1", "b1"]
    assert all(rounds == [{"round": 0}, {"round": 1}] for rounds in measured.found.values())


def test_a_result_is_continued_within_a_day_on_the_same_builds() -> None:
    from side_by_side import may_continue

    now = datetime(2026, 11, 30, 23, 50, tzinfo=UTC)
    builds = {"base": "1", "ours": "2", "sources": "3"}
    stored = {**builds, "begun": now.isoformat(timespec="minutes")}
    assert may_continue(stored, builds, now + timedelta(hours=2))
    assert not may_continue(stored, builds, now + timedelta(hours=25))
    assert not may_continue(stored, builds | {"sources": "4"}, now)


def test_sizes_of_another_work_begin_anew(tmp_path: Path) -> None:
    from side_by_side import Record

    record = Record(tmp_path / "result.json", {})
    first = record.group("training", "embedded", {"samples": 2}, ())
    first.found["ours"] = [{"cpu_seconds": 1.0}]
    first.errors.update(trl="not installed", peft="not installed")
    again = record.group("training", "embedded", {"samples": 2}, ("trl", "ours"))
    assert again.found == first.found
    assert again.errors == {"peft": "not installed"}  # TRL is tried again, and PEFT, which is left out, still stated
    assert record.group("training", "embedded", {"samples": 8}, ()).found == {}


def record_of() -> dict[str, Any]:
    def training(*seconds: float) -> list[dict[str, Any]]:
        return [{"cpu_seconds": one, "peak_memory": 2**30, "curve": [{"dev_loss": 1.25}]} for one in seconds]

    def reading(seconds: float, *replies: str) -> list[dict[str, Any]]:
        return [{"cpu": seconds, "peak_memory": 2**29, "replies": list(replies)}]

    return {
        "base": "f139a21", "ours": "abc", "begun": "2026-11-30T21:00+00:00", "ended": "2026-11-30T22:00+00:00",
        "machine": {"cpu_cores": 2, "memory_gib": 23.4}, "gflops": 90.0, "precision": "float32",
        "left_out": ["bf16: no"],
        "training": {"embedded": {
            "facts": {"work": {"batch": 4}, "steps": 6},
            "found": {"plain": training(24, 48, 12), "peft": training(12), "base": training(8), "ours": training(6),
                      "trl": []},
            "errors": {"trl": "Traceback\nImportError: a | b"},
        }},
        "prediction": {"float32, constrained": {
            "facts": {"mode": {"samples": 2}}, "errors": {},
            "found": {"vllm": reading(1.0, "x", "y"), "ours": reading(2.0, "x", "z")},
        }},
        "savings": {"training": {"rounds": 2, "rows": [
            {"left_out": "ours", "instead": "", "seconds": [1.0, 1.0]},
            {"left_out": "cache", "instead": "vision tower in each pass", "seconds": [2.0, 3.0]},
        ]}},
    }  # fmt: skip


def test_tables_hold_medians_spreads_ratios_and_errors() -> None:
    from side_by_side_tables import tables

    lines = tables(record_of()).splitlines()
    assert "90 GFLOP/s of large float32 products" in lines[0]
    assert lines[0].endswith("Left out: bf16: no.")
    row = {line.split(" | ")[1]: line.split(" | ") for line in lines if line.startswith("| training, embedded")}
    assert row["published recipe, transformers' Trainer"][2:6] == ["1.000 (0.500 to 2.000)", "1.00", "0.50", "0.33"]
    assert row["**ours**"][2:8] == ["4.000 (4.000 to 4.000)", "4.00", "2.00", "1.33", "1,024", "dev loss 1.2500 |"]
    assert row["TRL SFTTrainer"][2] == "cannot run: ImportError: a / b"
    assert "ours at f139a21" in row
    prediction = [line for line in lines if line.startswith("| prediction, float32, constrained")]
    assert [line.split(" | ")[1:6] for line in prediction] == [
        ["vLLM", "2.000 (2.000 to 2.000)", "", "1.00", ""],
        ["**ours**", "1.000 (1.000 to 1.000)", "", "0.50", ""],
    ]
    assert "1 of 2 replies as ours" in prediction[0]
    assert "| training step: cache | vision tower in each pass | 2.50 (2.00 to 3.00) |" in lines
