"""Stages: each a run on the weights of the one before, with gain and forgetting in one table."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import yaml
from fixtures import commands
from safetensors.torch import load_file

from mllm_tailor.commands.predict import open_predictor, predict_paths
from mllm_tailor.commands.run import report_run, run_recipe
from mllm_tailor.core.errors import DataError, RecipeError, RunError
from mllm_tailor.core.io import read_jsonl, sha256
from mllm_tailor.core.manifest import record
from mllm_tailor.models import load_model
from mllm_tailor.recipe import read_recipe
from mllm_tailor.run.run_dir import open_run, start_run
from mllm_tailor.synthetic import draw_folder

FIELDS = {"company": "string", "date": "date", "address": "string", "total": "amount"}


@pytest.fixture(scope="module")
def receipts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight training receipts and three held out."""
    folder = tmp_path_factory.mktemp("receipts")
    draw_folder(folder, 8, 3, seed=5)
    return folder


def write_yaml(folder: Path, data: Path, model: Path, **changes: Any) -> Path:
    """A small recipe, by default of two stages that ask different fields of the same receipts."""
    values: dict[str, Any] = {
        "name": "tiny",
        "model": {"path": str(model), "dtype": "float32"},
        "data": {"train": str(data), "held_out": {"column": "split", "value": "dev"}, "dev": 0},
        "task": {"extract": FIELDS},
        "method": {"name": "lora", "rank": 4, "parts": ["language"]},
        "train": {"epochs": 1, "batch_size": 4, "learning_rate": 1e-2},
        "predict": {"max_new_tokens": 16},
        "score": "fuzzy",
        "output": str(folder / "runs"),
        "stages": [
            {"name": "total", "task": {"extract": {"total": "amount"}}},
            {"name": "all", "method": {"name": "full", "parts": ["language"]}, "train": {"epochs": 2}},
        ],
    }
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(values | changes))
    return path


def run(recipe: Path) -> Path:
    return run_recipe(recipe, [], exclude_faulty=False, fresh=False).path


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, receipts: Path, tiny_model_folder: Path) -> Path:
    """A finished run of two stages."""
    return run(write_yaml(tmp_path_factory.mktemp("job"), receipts, tiny_model_folder))


def trained(folder: Path) -> dict[str, str]:
    return {file.name: sha256(file) for file in (folder / "adapter").glob("*.safetensors")}


@pytest.mark.slow
def test_one_stage_is_the_plain_run_bit_for_bit(receipts: Path, tiny_model_folder: Path, tmp_path: Path) -> None:
    plain = run(write_yaml(tmp_path, receipts, tiny_model_folder, name="plain", stages=[]))
    staged = run(write_yaml(tmp_path, receipts, tiny_model_folder, name="staged", stages=[{"name": "only"}]))
    assert trained(staged / "1-only") == trained(plain) != {}
    both = [json.loads((folder / "scores.json").read_text()) for folder in (plain, staged / "1-only")]
    assert both[0] == both[1]
    assert not (staged / "1-only" / "model").exists()  # no stage follows that would need it


@pytest.mark.slow
def test_the_second_stage_starts_from_what_the_first_one_learned(finished: Path, tiny_model_folder: Path) -> None:
    """Folded = base + scale * B A, computed here by hand; the second stage's base is that folder."""
    folded = load_file(finished / "1-total" / "model" / "model.safetensors")
    base = load_file(tiny_model_folder / "model.safetensors")
    adapter = load_file(finished / "1-total" / "adapter" / "adapter_model.safetensors")
    name = "language_model.layers.0.self_attn.q_proj"
    key = next(key for key in base if key.endswith(f"{name.partition('.')[2]}.weight") and "vision" not in key)
    pair = [next(adapter[one] for one in adapter if f"{name}.lora_{half}" in one) for half in "AB"]
    expected = base[key] + 2 * pair[1] @ pair[0]  # alpha defaults to twice the rank
    assert (folded[key] - expected).abs().max() < 1e-6 < (folded[key] - base[key]).abs().max()
    noted = json.loads((finished / "2-all" / "adapter" / "tailor.json").read_text())["base"]
    assert noted["weights_sha256"] == load_model(finished / "1-total" / "model").identity["weights_sha256"]


@pytest.mark.slow
def test_every_state_is_scored_on_every_held_out_set(finished: Path) -> None:
    """The table's figures are those of the stages' own scores, and the sign of a change is after minus before."""
    table = json.loads((finished / "scores.json").read_text())
    assert table["states"] == ["untouched", "after 1-total", "after 2-all"]
    assert [one["name"] for one in table["sets"]] == ["1-total", "2-all"]
    for place, one in enumerate(table["sets"], 1):
        values = [cell["value"] for cell in one["values"]]
        own = json.loads((finished / one["name"] / "scores.json").read_text())["gain"]["fuzzy"]
        assert values[place - 1 : place + 1] == pytest.approx([own["base"]["value"], own["tuned"]["value"]])
        assert one["total"]["difference"]["value"] == pytest.approx(values[2] - values[0])
    first, last = table["sets"]
    assert first["since"]["difference"]["value"] == pytest.approx(
        first["values"][2]["value"] - first["values"][1]["value"]
    )
    assert last["since"] is None
    report = (finished / "report.html").read_text()
    assert f"{first['values'][2]['value']:.1f}" in report and 'href="2-all/report.html"' in report


@pytest.mark.slow
def test_commands_on_the_whole_run_use_its_last_stage(finished: Path, receipts: Path, tmp_path: Path) -> None:
    assert open_run(finished).path == finished / "2-all"
    file = next((receipts / "images").glob("*.jpg"))
    rows = []
    for place in (finished, finished / "2-all", finished / "1-total"):
        out = tmp_path / f"{place.name}.jsonl"
        predict_paths(open_predictor(place), [file], out)
        rows.append([row["text"] for _, row in read_jsonl(out)])
    assert rows[0] == rows[1] != rows[2]
    before = (finished / "scores.json").read_text()
    report_run(finished)
    assert (finished / "scores.json").read_text() == before


@pytest.mark.slow
def test_a_run_that_was_moved_still_finds_its_models(finished: Path, receipts: Path, tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere"
    shutil.copytree(finished, moved)
    recipe = (moved / "2-all" / "recipe.yaml").read_text()
    (moved / "2-all" / "recipe.yaml").write_text(recipe.replace(str(finished), "/gone/tiny"))
    record(moved / "2-all", moved / "2-all" / "recipe.yaml")  # as if it had been written at that place
    assert open_run(moved).recipe().model.path == str(moved / "1-total" / "model")


@pytest.mark.slow
@pytest.mark.parametrize(
    "moment", [f"{one}/{file}" for one in ("1-total", "2-all") for file in ("log.jsonl", "training.json")]
)
def test_killed_in_any_stage_it_goes_on_and_ends_the_same(
    moment: str, finished: Path, receipts: Path, tiny_model_folder: Path, tmp_path: Path
) -> None:
    recipe = write_yaml(tmp_path, receipts, tiny_model_folder)
    folder = tmp_path / "runs" / "tiny"
    command = commands.start("run", recipe, errors=tmp_path / "errors")
    command.wait_for((folder / moment).exists)
    assert command.kill() == -signal.SIGKILL
    kept = (folder / "1-total" / "training.json").read_text() if moment.startswith("2") else None
    assert run(recipe) == folder
    assert kept is None or (folder / "1-total" / "training.json").read_text() == kept
    for stage in ("1-total", "2-all"):
        assert trained(folder / stage) == trained(finished / stage)
    both = [json.loads((place / "scores.json").read_text()) for place in (folder, finished)]
    assert both[0] == both[1]


@pytest.mark.slow
def test_a_file_held_out_in_one_stage_is_not_trained_on_in_another(receipts: Path, tmp_path: Path) -> None:
    rows = [row for _, row in read_jsonl(receipts / "metadata.jsonl")]
    other = tmp_path / "other"
    (other / "images").mkdir(parents=True)
    for row in rows:
        shutil.copy(receipts / row["file_name"], other / row["file_name"])
    swapped = [row | {"split": "dev" if place < 2 else "train"} for place, row in enumerate(rows)]
    (other / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in swapped))
    held_out = {"column": "split", "value": "dev"}
    stages = [{"name": "one"}, {"name": "two", "data": {"train": str(other), "held_out": held_out, "dev": 0}}]
    recipe = write_yaml(tmp_path, receipts, tmp_path / "no-model", stages=stages)
    with pytest.raises(DataError, match=r"5 faults(.|\n)*held out in stage 2-two(.|\n)*held out in stage 1-one"):
        run(recipe)


def test_what_cannot_be_folded_comes_last_or_is_refused(receipts: Path, tmp_path: Path) -> None:
    stages = [{"name": "one", "method": "bottleneck"}, {"name": "two"}]
    recipe = write_yaml(tmp_path, receipts, tmp_path / "no-model", stages=stages)
    with pytest.raises(RecipeError, match="stage 1-one: bottleneck cannot be merged"):
        run(recipe)


def test_a_run_whose_last_stage_has_not_begun_says_so(receipts: Path, tmp_path: Path) -> None:
    folder = start_run(read_recipe(write_yaml(tmp_path, receipts, tmp_path / "no-model"))).path
    with pytest.raises(RunError, match="its last stage has not begun"):
        open_run(folder)
