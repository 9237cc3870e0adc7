"""Cross-validation: each sample is scored once by a model of the other folds; resumed between and within folds."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path

import pytest
import yaml

from mllm_tailor.commands.run import run_recipe
from mllm_tailor.core.errors import DataError, RecipeError
from mllm_tailor.core.io import read_json, read_jsonl
from mllm_tailor.core.sample import Sample
from mllm_tailor.data.split import make_folds
from mllm_tailor.recipe import make_recipe
from mllm_tailor.run import folds as folds_module
from mllm_tailor.run.folds import fold_run, is_cross_validated
from mllm_tailor.run.pipeline import run_pipeline
from mllm_tailor.run.resolve import resolve_saved
from mllm_tailor.run.run_dir import RunFolder
from mllm_tailor.synthetic.folder import draw_folder


def test_folds_hold_every_sample_once_keep_groups_and_spread_classes() -> None:
    samples = [Sample(str(index), group=f"g{index // 3}" if index < 30 else None) for index in range(60)]
    strata = {sample.id: "rare" if int(sample.id) % 12 < 3 else "often" for sample in samples}
    folds = make_folds(samples, 5, "0:fold", strata)
    assert Counter(name for fold in folds for name in fold) == Counter(sample.id for sample in samples)
    for group in range(10):
        assert sum(f"{3 * group}" in fold for fold in folds) == 1
        assert any({f"{3 * group + index}" for index in range(3)} <= fold for fold in folds)
    sizes = [Counter(strata[name] for name in fold) for fold in folds]
    assert all(abs(size["rare"] - 3) <= 1 and abs(size["often"] - 9) <= 2 for size in sizes)
    assert folds == make_folds(samples[::-1], 5, "0:fold", strata) != make_folds(samples, 5, "1:fold", strata)
    with pytest.raises(DataError, match="5 folds need as many groups, and there are 2"):
        make_folds(samples[:6], 5, "0")


def recipe_values(data: Path, model: Path, output: Path) -> dict[str, object]:
    return {
        "name": "cv",
        "model": {"path": str(model), "device": "cpu", "dtype": "float32"},
        "data": {"train": str(data), "held_out": {"folds": 2}, "dev": 0},
        "task": {"extract": {"company": "string", "date": "date", "total": "amount", "address": "string"}},
        "method": "lora",
        "train": {"steps": 1, "batch_size": 2},
        "predict": {"max_new_tokens": 24},
        "accept": {"right": 0.9},
        "output": str(output),
    }


def test_settings_that_do_not_go_together(tmp_path: Path, tiny_model_folder: Path) -> None:
    values = recipe_values(tmp_path, tiny_model_folder, tmp_path)
    run = resolve_saved(make_recipe(values))
    assert is_cross_validated(run) and not is_cross_validated(fold_run(run, 2))
    assert fold_run(run, 2).recipe.output == f"{tmp_path}/cv" and fold_run(run, 2).name == "fold-2"
    with pytest.raises(RecipeError, match="holds out one split"):
        run_pipeline(RunFolder(tmp_path), run, None)  # type: ignore[arg-type]
    for wrong in ({"folds": 2, "fraction": 0.1}, {"fold": 1}, {"folds": 2, "fold": 3}, {"folds": 1}):
        with pytest.raises(RecipeError, match="fold"):
            make_recipe(values | {"data": {"train": "x", "held_out": wrong}})


@pytest.mark.slow
def test_a_run_of_folds_stops_continues_and_pools(
    tmp_path: Path, tiny_model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tmp_path / "receipts"
    draw_folder(data, 8, 2, seed=5)
    recipe = tmp_path / "cv.yaml"
    recipe.write_text(yaml.safe_dump(recipe_values(data, tiny_model_folder, tmp_path / "runs")))
    real = folds_module.run_pipeline

    def stop_in_the_second(folder: RunFolder, *arguments: object, **named: object) -> object:
        if folder.path.name == "fold-2":
            raise KeyboardInterrupt
        return real(folder, *arguments, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(folds_module, "run_pipeline", stop_in_the_second)
    with pytest.raises(KeyboardInterrupt):
        run_recipe(recipe, [], exclude_faulty=True, fresh=False)
    first = tmp_path / "runs" / "cv" / "fold-1"
    before = (first / "report.html").stat().st_mtime_ns
    monkeypatch.setattr(folds_module, "run_pipeline", real)
    folder = run_recipe(recipe, [], exclude_faulty=True, fresh=False)
    assert (first / "report.html").stat().st_mtime_ns == before

    scored = [row["id"] for _, row in read_jsonl(folder.reply_rows)]
    learned = {row["id"] for _, row in read_jsonl(folder.ledger) if row["part"] == "train"}
    assert len(scored) == len(set(scored)) == 10 and learned == set(scored)  # the final model is trained on all
    for number in (1, 2):
        fold = RunFolder(folder.path / f"fold-{number}")
        parts = {row["id"]: row["part"] for _, row in read_jsonl(fold.ledger)}
        assert all(parts[row["id"]] == "held_out" for _, row in read_jsonl(fold.reply_rows))
    scores = read_json(folder.scores)
    assert scores["folds"] == 2 and scores["gain"]["fuzzy"]["count"] == 10
    calibration = read_json(folder.calibration)
    assert calibration["source"] == "folds" and calibration["samples"] <= 10
    assert "each sample was scored once" in folder.report.read_text()
    assert (folder.adapter / "tailor.json").is_file()

    shutil.rmtree(folder.path / "fold-2")
    folder.report.unlink()
    rows = folder.reply_rows.read_text()
    again = run_recipe(recipe, [], exclude_faulty=True, fresh=False)
    texts = [
        [json.loads(line)["text"] for line in content.splitlines()] for content in (rows, again.reply_rows.read_text())
    ]
    assert texts[0] == texts[1]
