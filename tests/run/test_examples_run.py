"""`tailor init` on every example of docs/data.md proposes a recipe that is Ready and whose two-step run finishes."""

from __future__ import annotations

from pathlib import Path

import pytest
from fixtures.data_examples import EXAMPLES, Example, write_example
from fixtures.small_job import save_lively

from mllm_tailor.core.io import read_jsonl
from mllm_tailor.data import DataIssue, propose_recipe, read_samples
from mllm_tailor.models.bundled.build import build_tokenizer
from mllm_tailor.recipe import read_recipe
from mllm_tailor.run.check import check
from mllm_tailor.run.execute import execute


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The smallest model that reads images and text."""
    folder = tmp_path_factory.mktemp("smallest")
    save_lively(folder, build_tokenizer(), 0)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: f"{example.layout}-{example.task}")
def test_the_proposed_recipe_is_ready_and_runs(example: Example, model: Path, tmp_path: Path) -> None:
    folder, out = tmp_path / "set", tmp_path / "recipe.yaml"
    write_example(example, folder)
    issues: list[DataIssue] = []
    by_name = example.layout if example.layout == "qa_captions" else None
    out.write_text(propose_recipe(read_samples(folder, by_name, on_issue=issues.append), issues), encoding="utf-8")
    changes = [f"model.path={model}", f"output={tmp_path / 'runs'}", "train.steps=2", "train.processes=1"]
    changes += ["method=lora", "predict.max_new_tokens=4", *([f"data.layout={by_name}"] if by_name else [])]
    recipe = read_recipe(out, changes)
    result = check(recipe)
    (stage,) = result.stages
    assert result.ready, (stage.data.validation.errors(), stage.model)
    run = execute(recipe)
    ledger = [row["part"] for _, row in read_jsonl(run.path / "samples.jsonl")]
    predictions = list(read_jsonl(run.path / "predictions.jsonl"))
    assert {"train", "held_out"} <= set(ledger) and "excluded" not in ledger
    assert len(predictions) == ledger.count("held_out") and (run.path / "report.html").is_file()
