"""`--accept-changes`: whatever followed from changed data is computed again, and nothing else."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mllm_tailor.core.errors import RunError
from mllm_tailor.core.io import sha256
from mllm_tailor.core.sample import Prediction
from mllm_tailor.recipe import Recipe, make_recipe
from mllm_tailor.run import pipeline
from mllm_tailor.run.data_changes import reconcile
from mllm_tailor.run.dataset import prepare
from mllm_tailor.run.execute import Options, execute, resolve_stages
from mllm_tailor.run.predict import write_predictions
from mllm_tailor.run.run_dir import RunFolder, read_predictions, start_run
from mllm_tailor.run.stages import Stage, reconcile_stages
from mllm_tailor.training import TrainResult

TRAIN, HELD_OUT = range(2, 6), range(2)


def write_data(folder: Path) -> Path:
    """Two held-out images and four to train on."""
    folder.mkdir()
    rows = []
    for number in (*HELD_OUT, *TRAIN):
        Image.new("RGB", (56, 56), (40 * number, 9, 9)).save(folder / f"{number}.png")
        split = "test" if number in HELD_OUT else "train"
        rows.append({"file_name": f"{number}.png", "id": str(number), "total": f"{number}.00", "split": split})
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def replace_image(folder: Path, number: int) -> None:
    Image.new("RGB", (56, 56), (1, 2, 250)).save(folder / f"{number}.png")


def edit_label(folder: Path, number: int) -> None:
    file = folder / "metadata.jsonl"
    file.write_text(file.read_text().replace(f'"{number}.00"', '"99.00"'))


def recipe_of(folder: Path, name: str, model: Path | str = "model", **changes: Any) -> Recipe:
    values: dict[str, Any] = {
        "name": name,
        "model": {"path": str(model), "dtype": "float32"},
        "data": {"train": str(folder / "data"), "held_out": {"column": "split", "value": "test"}, "dev": 0},
        "task": {"extract": {"total": "string"}},
        "method": {"name": "lora", "rank": 2},
        "train": {"epochs": 1, "batch_size": 2, "checkpoint_every": 1e-9, "processes": 1},
        "predict": {"max_new_tokens": 8},
        "output": str(folder / "runs"),
    }
    return make_recipe(values | changes)


# --- Stages: what is removed -----------------------------------------------------------------------------------------


@pytest.fixture
def staged(tmp_path: Path) -> tuple[RunFolder, list[Stage]]:
    """A run of two stages on data of their own, as if both had ended."""
    for name in ("data", "other"):
        write_data(tmp_path / name)
    other = {"train": str(tmp_path / "other"), "held_out": {"column": "split", "value": "test"}, "dev": 0}
    recipe = recipe_of(tmp_path, "a", stages=[{"name": "x"}, {"name": "y", "data": other}])
    folder = start_run(recipe)
    stages = [(run, prepare(run, exclude_faulty=True, decode=False)[0]) for run in resolve_stages(recipe)]
    for number, (run, splits) in enumerate(stages, 1):
        stage = start_run(run.recipe)
        reconcile(stage, splits)
        stage.adapter.mkdir()
        stage.training.write_text("{}")
        replies = [Prediction(sample.id, "", {"total": "1"}) for sample in splits.held_out]
        for name in ("base_constrained", "tuned_constrained"):
            write_predictions(stage.predictions(name), replies)
        for state in range(3):
            if state not in (number - 1, number):
                write_predictions(folder.predictions(f"after_{state}_on_{number}"), replies)
    return folder, stages


def read_again(stages: list[Stage]) -> list[Stage]:
    return [(run, prepare(run, exclude_faulty=True, decode=False)[0]) for run, _ in stages]


@pytest.mark.parametrize("change", [replace_image, edit_label])
def test_a_changed_training_sample_of_a_stage_takes_later_stages_with_it(
    staged: tuple[RunFolder, list[Stage]], change: Any, tmp_path: Path
) -> None:
    folder, stages = staged
    change(tmp_path / "data", 3)
    with pytest.raises(RunError, match=r"1-x: the data changed(.|\n)*3(.|\n)*--accept-changes"):
        reconcile_stages(folder, read_again(stages), accept=False)
    first, second = (RunFolder(folder.path / run.name) for run, _ in stages)
    assert first.training.exists() and second.path.exists()
    reconcile_stages(folder, read_again(stages), accept=True)
    assert not first.training.exists() and not first.adapter.exists() and not second.path.exists()
    assert read_predictions(first.predictions("base_constrained"))  # of the untouched model
    assert not first.predictions("tuned_constrained").exists()
    assert {file.name for file in (folder.path / "predictions").iterdir()} == {"after_0_on_2.jsonl"}


def test_a_changed_sample_of_the_last_stage_leaves_the_first(
    staged: tuple[RunFolder, list[Stage]], tmp_path: Path
) -> None:
    folder, stages = staged
    edit_label(tmp_path / "other", 4)
    reconcile_stages(folder, read_again(stages), accept=True)
    first, second = (RunFolder(folder.path / run.name) for run, _ in stages)
    assert first.training.exists() and second.path.exists() and not second.training.exists()
    assert {file.name for file in (folder.path / "predictions").iterdir()} == {"after_0_on_2.jsonl"}


def test_a_changed_held_out_sample_of_a_stage_is_predicted_again_by_every_state(
    staged: tuple[RunFolder, list[Stage]], tmp_path: Path
) -> None:
    folder, stages = staged
    replace_image(tmp_path / "other", 1)
    reconcile_stages(folder, read_again(stages), accept=True)
    first, second = (RunFolder(folder.path / run.name) for run, _ in stages)
    assert first.training.exists() and second.training.exists()
    for path in (
        second.predictions("base_constrained"),
        second.predictions("tuned_constrained"),
        folder.predictions("after_0_on_2"),
    ):
        assert [row.id for row in read_predictions(path)] == ["0"]
    assert len(read_predictions(folder.predictions("after_2_on_1"))) == 2


# --- Whole runs: as if the data had been so from the start -----------------------------------------------------------


def adapters(folder: RunFolder) -> dict[str, str]:
    return {
        file.relative_to(folder.path).as_posix(): sha256(file)
        for file in folder.path.rglob("adapter_model.safetensors")
    }


def gains(folder: RunFolder) -> Any:
    values = json.loads(folder.scores.read_text())
    return values.get("sets", values.get("systems"))


@pytest.mark.slow
def test_stages_end_as_a_fresh_run_on_the_changed_data(tmp_path: Path, tiny_model_folder: Path) -> None:
    data = write_data(tmp_path / "data")
    stages = [{"name": "x"}, {"name": "y", "method": {"name": "lora", "rank": 3}}]
    recipe = recipe_of(tmp_path, "a", tiny_model_folder, stages=stages)
    before = adapters(execute(recipe))
    replace_image(data, 3)
    assert adapters(execute(recipe)) == before  # finished: named, and left as it is
    changed = execute(recipe, Options(accept_changes=True))
    fresh = execute(recipe_of(tmp_path, "b", tiny_model_folder, stages=stages))
    assert adapters(changed) == adapters(fresh) != before
    assert len(adapters(changed)) == 2 and gains(changed) == gains(fresh)


@pytest.mark.slow
@pytest.mark.parametrize("change", [replace_image, edit_label])
def test_a_resumed_training_ends_as_a_fresh_one_on_the_changed_data(
    change: Any, tmp_path: Path, tiny_model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = write_data(tmp_path / "data")
    recipe = recipe_of(tmp_path, "a", tiny_model_folder)

    def stopped(*arguments: Any, **named: Any) -> TrainResult:
        pipeline_train(*arguments, **named)
        raise KeyboardInterrupt  # checkpoints and an adapter are there, training.json is not

    pipeline_train = pipeline.train
    monkeypatch.setattr(pipeline, "train", stopped)
    with pytest.raises(KeyboardInterrupt):
        execute(recipe)
    monkeypatch.undo()
    change(data, 3)
    with pytest.raises(RunError, match="--accept-changes"):
        execute(recipe)
    changed = execute(recipe, Options(accept_changes=True))
    fresh = execute(recipe_of(tmp_path, "b", tiny_model_folder))
    assert adapters(changed) == adapters(fresh) != {}
    assert gains(changed) == gains(fresh)


@pytest.mark.slow
def test_a_base_model_that_is_exchanged_between_two_calls_is_refused(
    tmp_path: Path, tiny_model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of the replies would be of one model, half of another, and the gain of neither."""
    write_data(tmp_path / "data")
    model = Path(shutil.copytree(tiny_model_folder, tmp_path / "model"))
    recipe = recipe_of(tmp_path, "a", model)

    def stopped(*arguments: Any, **named: Any) -> TrainResult:
        raise KeyboardInterrupt

    monkeypatch.setattr(pipeline, "train", stopped)
    with pytest.raises(KeyboardInterrupt):
        execute(recipe)
    for name, what in (("model.safetensors", "weights"), ("generation_config.json", "tokenizer, processor")):
        file = model / name
        whole = file.read_bytes()
        file.write_bytes(whole[:-2] + bytes([whole[-2] ^ 1]) + whole[-1:] if name.endswith("s") else whole + b" ")
        with pytest.raises(RunError, match=f"its {what}.* changed after the run had used them.*--fresh"):
            execute(recipe)
        file.write_bytes(whole)
    with pytest.raises(KeyboardInterrupt):  # as it was: the run continues
        execute(recipe)
