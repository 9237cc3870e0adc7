"""Commands that need no run: what they print, and the same as one JSON document."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mllm_tailor.cli.app import run_command
from mllm_tailor.commands.check import _power
from mllm_tailor.commands.console import command, console
from mllm_tailor.commands.list import LISTINGS
from mllm_tailor.models import FAMILIES
from mllm_tailor.scoring import samples_needed


def document(words: list[str], capsys: pytest.CaptureFixture[str]) -> dict[str, object]:
    assert run_command([*words, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def longest_line(text: str) -> int:
    return max(len(line.rstrip()) for line in text.splitlines())


def test_methods_lists_every_registry(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, "width", 80)
    assert run_command(["methods"]) == 0
    shown = capsys.readouterr().out
    assert longest_line(shown) <= 80
    told = document(["methods"], capsys)
    for listing in LISTINGS:
        assert list(told[listing.key]) == list(listing.registry)
        assert all(f"\n{name} " in shown for name in listing.registry)


def test_models_lists_every_family(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, "width", 80)
    assert run_command(["models"]) == 0
    table = capsys.readouterr().out.split("\n\n")[0]
    assert longest_line(table) <= 80
    assert all(f"\n{name} " in table for name in FAMILIES)
    families = document(["models"], capsys)["families"]
    assert list(families) == list(FAMILIES)
    assert families["qwen2_audio"]["input"] == ["audio"]


def test_draw_then_init(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, recipe = tmp_path / "drawn [red]", tmp_path / "recipe.yaml"
    assert run_command(["draw", "receipts", str(data), "--train", "2", "--held-out", "1"]) == 0
    assert capsys.readouterr().out.endswith(f"2 training and 1 held-out samples of `receipts` in {data}\n")
    told = document(["init", str(data), "--out", str(recipe)], capsys)
    assert told["samples"] == 3 and told["recipe"] == str(recipe) and recipe.is_file()
    assert {field["field"] for field in told["fields"]} >= {"company", "total"}
    assert run_command(["init", str(data), "--out", str(recipe)]) == 2
    assert "--force" in capsys.readouterr().err
    assert run_command(["init", str(data), "--out", str(recipe), "--force"]) == 0
    shown = capsys.readouterr().out
    assert str(data) in shown and f"Next: {command('check', recipe)}" in shown
    assert run_command(["draw", "recipts", str(tmp_path / "x")]) == 2
    assert "did you mean `receipts`" in capsys.readouterr().err


def test_what_a_held_out_split_can_decide() -> None:
    few, some, many = (_power(samples_needed([None] * count)) for count in (2, 40, 2000))
    assert few == "2 held-out samples are too few for any interval; a gain of 5 points needs about 199."
    assert "usually decide a gain of 11 points; one of 5 points needs about 199" in some
    assert many.endswith("points.") and "needs" not in many
    grouped = _power(samples_needed(["a"] * 10 + ["b"] * 10 + ["c"] * 10))
    assert "30 held-out samples in 3 independent groups" in grouped and "groups)" in grouped
