"""What resolving a recipe takes from the data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mllm_tailor.core.errors import RecipeError
from mllm_tailor.data import Dataset
from mllm_tailor.recipe import make_recipe
from mllm_tailor.run import resolve as module
from mllm_tailor.run.dataset import prepare
from mllm_tailor.run.ledger import measure
from mllm_tailor.run.predict import open_base
from mllm_tailor.run.resolve import resolve, resolve_saved
from mllm_tailor.synthetic import draw_folder


def chat(folder: Path, systems: list[str | None], **model: Any) -> dict[str, Any]:
    """A recipe on chat rows of text, each with its system text."""
    rows = []
    for number, system in enumerate(systems):
        said = [("system", system)] if system else []
        said += [("user", f"question {number}"), ("assistant", f"answer {number}")]
        rows.append({"messages": [{"role": role, "content": text} for role, text in said]})
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {"data": str(folder), "task": "answer", "model": {"path": "tiny", "device": "cpu", **model}}


def test_a_system_text_that_all_rows_share_is_the_model_s_and_rows_are_read_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    readings = []

    def counted(*arguments: Any, **settings: Any) -> Dataset:
        readings.append(arguments)
        return module_read(*arguments, **settings)

    module_read = module.read_samples
    monkeypatch.setattr(module, "read_samples", counted)
    run = resolve(make_recipe(chat(tmp_path, ["Be brief."] * 10)))
    assert run.model.system == "Be brief."
    splits, _ = prepare(run)
    assert len(splits.train) + len(splits.dev) + len(splits.held_out) == 10
    assert len(readings) == 1


@pytest.mark.parametrize("systems", [["Be brief."] * 9 + ["Be long."], ["Be brief."] * 9 + [None], [None] * 10])
def test_other_system_texts_stay_with_their_rows(tmp_path: Path, systems: list[str | None]) -> None:
    assert resolve(make_recipe(chat(tmp_path, systems))).model.system is None


def test_two_system_texts_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="leave one of them out"):
        resolve(make_recipe(chat(tmp_path, ["Be brief."] * 3, system="Be long.")))


def test_framings_that_cannot_be_put_to_a_vote_are_refused_before_anything_is_read() -> None:
    recipe = {
        "data": "unused",
        "task": "answer",
        "model": {"path": "tiny", "device": "cpu"},
        "predict": {"framings": 2},
    }
    with pytest.raises(RecipeError, match=r"predict\.framings: `answer`"):
        resolve_saved(make_recipe(recipe))
    run = resolve_saved(make_recipe({**recipe, "task": {"extract": ["total"]}}))
    assert run.recipe.predict.framings == 2 and run.reading_once().recipe.predict.framings == 1


def test_transcripts_become_further_turns_and_the_ledger_counts_their_tokens(tmp_path: Path) -> None:
    draw_folder(tmp_path / "receipts", 4, 1, seed=5)
    values = {"data": {"train": str(tmp_path / "receipts"), "held_out": {"column": "split", "value": "dev"}, "dev": 0},
              "task": {"extract": {"company": "string"}}, "model": {"path": "tiny", "device": "cpu"}}  # fmt: skip
    lengths = []
    for turns in (False, True):
        values["data"] |= {"transcription_share": 0.5, "transcription_turns": turns}
        run = resolve(make_recipe(values))
        splits = prepare(run)[0]
        joined = [conversation for conversation in splits.phrased if conversation.further]
        assert (len(joined), len(splits.transcriptions)) == ((2, 0) if turns else (0, 2))
        lengths.append(measure(open_base(run), run.task, splits))
    for conversation in joined:
        alone, reading, together = lengths[0][conversation.id], lengths[0][f"{conversation.id}#read"], lengths[1]
        assert together[conversation.id].supervised == alone.supervised + reading.supervised
        assert together[conversation.id].tokens < alone.tokens + reading.tokens - reading.media_tokens
