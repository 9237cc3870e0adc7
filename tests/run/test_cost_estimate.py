"""The forecast: passes rehearsed on a tiny model leave it as it was, and scale to a training."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from fixtures.small_job import make_conversations, prepare, snapshot

from mllm_tailor.cli.app import run_command
from mllm_tailor.commands.console import command
from mllm_tailor.commands.fit_memory import fit_recipe, milder
from mllm_tailor.core.conversation import Conversation
from mllm_tailor.core.device import watch_memory
from mllm_tailor.core.errors import RecipeError
from mllm_tailor.models import measure_length
from mllm_tailor.recipe import read_recipe
from mllm_tailor.run.cost_estimate import Shape, answers_per_sample, extrapolate
from mllm_tailor.run.resolve import resolve_saved
from mllm_tailor.synthetic import draw_folder
from mllm_tailor.training import StepProfile, TrainingConfig, profile_step

FULL = {"name": "full", "parts": ["vision", "projector", "language", "head"]}
MIB = 2**20


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> list[Conversation]:
    return make_conversations(tmp_path_factory.mktemp("pictures"))


@pytest.mark.slow
@pytest.mark.parametrize("freed", [0, 200])
def test_watched_memory_rises_by_what_is_held(freed: int) -> None:
    """Memory that was freed just before is not taken for free."""
    torch.ones(max(1, freed * MIB // 4)).sum()
    with watch_memory(torch.device("cpu")) as memory:
        held = torch.ones(150 * MIB // 4)
        del held
        torch.ones(50 * MIB // 4).sum()
    assert 145 * MIB < memory.rise < 175 * MIB
    assert memory.before > 50 * MIB


@pytest.mark.slow
def test_a_rehearsal_leaves_no_trace(tiny_model_folder: Path, samples: list[Conversation]) -> None:
    model, _, recipe = prepare(tiny_model_folder, FULL)
    before = snapshot(model)
    lengths = [measure_length(sample, model) for sample in samples]
    found = profile_step(model, samples, lengths, TrainingConfig.from_recipe(recipe))
    after = snapshot(model)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(weight.grad is None for weight in model.model.parameters())
    assert not found.cached and found.pass_seconds > 0
    trained = sum(weight.numel() for weight in model.model.parameters())
    assert found.standing_bytes == trained * (4 + 8)  # gradients and AdamW's two moments, in float32
    assert sorted(number for one in found.micro_batches for number in one) == list(range(len(samples)))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "train", "weight_bytes"),
    [(FULL, {"optimizer": "sgd"}, 4), ({**FULL, "name": "mezo"}, {}, 0), (FULL, {"optimizer": "adamw_8bit"}, 6)],
)
def test_optimizers_stand_for_what_they_keep(
    tiny_model_folder: Path, samples: list[Conversation], method: dict, train: dict, weight_bytes: int
) -> None:
    model, _, recipe = prepare(tiny_model_folder, method, **train)
    found = profile_step(
        model, samples, [measure_length(sample, model) for sample in samples], TrainingConfig.from_recipe(recipe)
    )
    assert found.standing_bytes == weight_bytes * sum(weight.numel() for weight in model.model.parameters())


@pytest.mark.slow
def test_the_vision_side_is_timed_apart_where_it_runs_once(
    tiny_model_folder: Path, samples: list[Conversation]
) -> None:
    model, _, recipe = prepare(tiny_model_folder, {"name": "lora", "rank": 2, "parts": ["language"]})
    lengths = [measure_length(sample, model) for sample in samples]
    found = profile_step(model, samples, lengths, TrainingConfig.from_recipe(recipe))
    assert found.cached and found.vision_seconds > 0
    shape = Shape.of(model)
    assert shape.operations(lengths[0], vision=True) > shape.operations(lengths[0], vision=False)


def test_seconds_follow_the_arithmetic_and_the_epochs(tiny_model_folder: Path, samples: list[Conversation]) -> None:
    """Twelve samples alike, one of which took a second, take twelve an epoch; a budget of minutes bounds them."""
    model, _, recipe = prepare(tiny_model_folder, FULL, epochs=3)
    group_by_length = [measure_length(samples[0], model)] * 12
    passes = tuple((number, number + 1, number + 2, number + 3) for number in (0, 4, 8))
    found = StepProfile(
        100, 20, 5, ((0,),), longest=0, micro_batches=passes, pass_seconds=1.0, timed=(0,), cached=False
    )
    said = extrapolate(found, Shape.of(model), group_by_length, recipe.train, 12)
    assert said.training_seconds == pytest.approx(36.0)
    assert said.peak_bytes == 100 + 20 + 4 * 5
    longer = [replace(group_by_length[0], tokens=2 * group_by_length[0].tokens), *group_by_length[1:]]
    assert extrapolate(found, Shape.of(model), longer, recipe.train, 12).training_seconds < said.training_seconds
    bounded = recipe.model_copy(update={"train": recipe.train.model_copy(update={"max_minutes": 0.1})})
    assert extrapolate(found, Shape.of(model), group_by_length, bounded.train, 12).training_seconds == pytest.approx(
        6.0
    )


@pytest.mark.parametrize(
    ("train", "passes", "drawn"),
    [
        ({"reward": {"group_size": 4}}, 4.0, 1.0),
        ({"reward": {"group_size": 4, "kl_weight": 0.1}}, 4 * 4 / 3, 1.0),
        ({"reward": {"group_size": 4, "updates": 2}}, 2 * 4.0, 1.0),
        ({"reward": {"group_size": 4, "updates": 2}, "steps": 3}, 4.0, 0.5),
        ({"distill": {"teacher": "large", "of": "replies"}}, 1.0, 1.0),
        ({"prefer": {"loss": "mpo"}}, 2.0, 0.0),
        ({"prefer": {"loss": "kto"}}, 3 * 4 / 3, 0.0),
    ],
)
def test_an_objective_reads_its_answers_and_samples_its_replies(
    train: dict[str, object], passes: float, drawn: float, tiny_model_folder: Path, samples: list[Conversation]
) -> None:
    """Twelve samples of a second each, and two seconds to sample the replies to one."""
    model, _, recipe = prepare(tiny_model_folder, FULL, epochs=1, **train)
    lengths = [measure_length(samples[0], model)] * 12
    found = StepProfile(
        100, 20, 5, ((0,),), longest=0, micro_batches=((0,),), pass_seconds=1.0, timed=(0,), cached=False
    )
    said = extrapolate(found, Shape.of(model), lengths, recipe.train, 12, sampling_seconds=2.0 if drawn else 0.0)
    assert said.training_seconds == pytest.approx(12 * passes + 24 * drawn)
    assert said.peak_bytes == 100 + 20 + 5 * answers_per_sample(recipe.train)


def write_recipe(folder: Path, opened: Path, receipts: Path, **changes: object) -> Path:
    values = {
        "name": "tiny",
        "model": str(opened),
        "data": {"train": str(receipts), "held_out": {"column": "split", "value": "dev"}, "dev": 0},
        "task": {"extract": {"company": "string", "date": "date", "address": "string", "total": "amount"}},
        "method": {"name": "lora", "rank": 2},
    }
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(values | changes))
    return path


def test_milder_settings_only_where_they_make_sense(tmp_path: Path) -> None:
    def last(**changes: object) -> list[str]:
        path = write_recipe(tmp_path, Path("embedded"), tmp_path, **changes)
        return list(milder(resolve_saved(read_recipe(path))))[-1]

    assert last() == [
        "train.micro_batch_size=1",
        "train.gradient_checkpointing=true",
        "train.optimizer=adamw_8bit",
        "method.name=qlora",
    ]
    assert last(method="lomo") == ["train.gradient_checkpointing=true"]
    assert last(method="full", train={"micro_batch_size": 1, "gradient_checkpointing": True, "optimizer": "sgd"}) == []
    assert last(model={"path": "embedded", "tiles": {"max": 6}})[-1] == "model.tiles.max=1"


@pytest.mark.slow
def test_what_fits_is_said_as_a_command(
    tmp_path: Path, tiny_model_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    draw_folder(tmp_path / "receipts", 3, 2, seed=5)
    path = write_recipe(tmp_path, tiny_model_folder, tmp_path / "receipts", train={"micro_batch_size": 1})
    assert fit_recipe(path, ["train.epochs=1"], "100GB")
    assert f"{command('run', path, 'train.epochs=1')}\n" in capsys.readouterr().out
    assert not fit_recipe(path, ["train.gradient_checkpointing=true", "train.optimizer=sgd"], "1MB")
    assert "None of these fits" in capsys.readouterr().out
    assert run_command(["check", str(path), "--fit", "--memory", "100GB", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["command"] == command("run", path) and document["trials"][0]["peak_bytes"] > 0
    with pytest.raises(RecipeError, match="no amount of memory"):
        fit_recipe(path, [], "10m")
