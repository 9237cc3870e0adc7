"""Mixtures: how much of each source an epoch holds, in which steps, and what became of everything else."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from fixtures.small_job import make_samples, small_recipe, snapshot
from fixtures.small_job import prepare as prepare_small
from fixtures.small_job import train as train_small
from hypothesis import given
from hypothesis import strategies as st

from mllm_tailor.commands.run import run_recipe
from mllm_tailor.core.errors import DataError, RecipeError
from mllm_tailor.core.io import read_jsonl
from mllm_tailor.core.sample import Media, Sample
from mllm_tailor.data import mix
from mllm_tailor.models import Length
from mllm_tailor.recipe import Source, make_recipe
from mllm_tailor.run.dataset import Splits, prepare
from mllm_tailor.run.epoch_summary import summarise_epoch
from mllm_tailor.run.ledger import write_ledger
from mllm_tailor.run.resolve import resolve
from mllm_tailor.synthetic import draw_folder
from mllm_tailor.training.sampler import BatchSchedule, epoch_order

SAMPLES = [Sample(f"s{number}") for number in range(10)]


@pytest.mark.parametrize(
    ("said", "beside", "counts", "left_out"),
    [
        ({}, 100, {1: 10}, 0),
        ({"repeat": 3}, 100, {3: 10}, 0),
        ({"repeat": 2.5}, 100, {2: 5, 3: 5}, 0),
        ({"repeat": 0.3}, 100, {1: 3}, 7),
        ({"weight": 0.5}, 12, {1: 6}, 4),
        ({"weight": 2}, 12, {2: 6, 3: 4}, 0),
        ({"weight": 0.001}, 12, {1: 1}, 9),
    ],
)
def test_an_epoch_holds_what_the_recipe_says(
    said: dict[str, float], beside: int, counts: dict[int, int], left_out: int
) -> None:
    amount = mix(SAMPLES, Source(train="x", **said), beside, seed=0)
    times = Counter(sample.id for sample in amount.samples)
    assert Counter(times.values()) == counts
    assert len(amount.left_out) == left_out and set(times) | {one.id for one in amount.left_out} == {
        one.id for one in SAMPLES
    }
    assert mix(SAMPLES[::-1], Source(train="x", **said), beside, seed=0).left_out == amount.left_out[::-1]


@given(
    st.integers(1, 40), st.integers(1, 7), st.integers(0, 3), st.lists(st.sampled_from("abc"), min_size=1, max_size=40)
)
def test_steps_of_one_modality_hold_every_sample_once(batch: int, seed: int, epoch: int, kinds: list[str]) -> None:
    course = BatchSchedule(len(kinds), batch, 4, seed, tuple(kinds))
    span = range(epoch * course.steps_per_epoch, (epoch + 1) * course.steps_per_epoch)
    steps = [course.samples(step) for step in span]
    assert all(len({kinds[number] for number in step}) == 1 and len(step) <= batch for step in steps)
    assert sorted(number for step in steps for number in step) == list(range(len(kinds)))
    if len(set(kinds)) == 1:
        together = {number for step in steps for number in step}
        assert together == set(epoch_order(seed, epoch, len(kinds)))


def test_without_kinds_the_order_is_what_it_was() -> None:
    course = BatchSchedule(10, 4, 2, seed=3)
    assert [course.samples(step) for step in range(3)] == [
        epoch_order(3, 0, 10)[start : start + 4] for start in (0, 4, 8)
    ]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`main` (8 receipts for training, 3 held out), `more` (4 others) and `chat` (6 questions without pictures)."""
    home = tmp_path_factory.mktemp("data")
    draw_folder(home / "main", 8, 3, seed=5)
    draw_folder(home / "more", 3, 1, seed=6)
    rows = [
        {"messages": [{"role": "user", "content": f"{n} + {n}?"}, {"role": "assistant", "content": str(2 * n)}]}
        for n in range(6)
    ]
    (home / "chat.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return home


def values(home: Path, **source: Any) -> dict[str, Any]:
    sources = [
        {"train": str(home / "more"), "repeat": 2},
        {"name": "general", "train": str(home / "chat.jsonl"), "task": "answer", "limit": 5, "weight": 0.5} | source,
    ]
    held_out = {"column": "split", "value": "dev"}
    return {
        "name": "mixed",
        "data": {"train": str(home / "main"), "held_out": held_out, "dev": 0, "sources": sources},
        "task": {"extract": {"total": "string"}},
    }


def ready(said: dict[str, Any]) -> Splits:
    return prepare(resolve(make_recipe(said)), decode=False)[0]


@pytest.mark.slow
def test_the_ledger_accounts_for_every_sample_of_every_source(folders: Path, tmp_path: Path) -> None:
    splits = ready(values(folders))
    lengths = {sample.id: Length(10, 2, 1, 0, 0) for sample in (*splits.learned, *splits.held_out)}
    write_ledger(tmp_path / "samples.jsonl", resolve(make_recipe(values(folders))).task, splits, lengths)
    rows = [row for _, row in read_jsonl(tmp_path / "samples.jsonl")]
    parts = Counter((row["part"], row.get("times", 1)) for row in rows)
    assert parts == {("train", 1): 8, ("held_out", 1): 3, ("mixed", 2): 4, ("mixed", 1): 4, ("excluded", 1): 2}
    assert len({row["id"] for row in rows}) == len(rows) == 8 + 3 + 4 + 6
    reasons = Counter(row["reason"] for row in rows if row["part"] == "excluded")
    assert reasons == {"beyond limit of source general=5": 1, "beyond weight=0.5 of its source": 1}


@pytest.mark.slow
def test_each_source_is_phrased_by_its_own_task(folders: Path) -> None:
    more, general = ready(values(folders)).mixed
    assert (more.name, general.name) == ("more", "general")
    assert all(sample.answer.startswith('{"total"') for sample in more.samples if sample.answer)
    assert all(
        sample.id.startswith("general/") and sample.answer.isdigit() for sample in general.samples if sample.answer
    )


def test_the_plan_adds_up(folders: Path) -> None:
    splits = ready(values(folders))
    lengths = {sample.id: Length(len(sample.prompt), 2, 1, 0, 0) for sample in splits.learned}
    shares = summarise_epoch("main", splits, lengths)
    assert [(one.source, one.modality, one.samples, one.distinct) for one in shares] == [
        ("main", "image", 8, 8), ("more", "image", 8, 4), ("general", "text", 4, 4)
    ]  # fmt: skip
    assert sum(one.tokens for one in shares) == sum(len(sample.prompt) for sample in splits.learned)


def test_a_modality_is_named_by_all_its_media() -> None:
    media = [Media("image"), Media("audio"), Media("image")]
    assert [Sample("a", tuple(media[:n])).modality for n in (0, 1, 2)] == ["text", "image", "audio+image"]


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"train": "main"}, DataError, "the same file as"),  # what is held out of data.train is in this source too
        ({"name": "more"}, RecipeError, "two sources are called `more`"),
        ({"train": "none"}, DataError, "no such folder or file"),
        ({"task": {"anwser": {}}}, RecipeError, "did you mean `answer`"),
    ],
)
def test_sources_that_make_no_sense_are_refused(
    folders: Path, change: dict[str, Any], error: type[Exception], words: str
) -> None:
    if "train" in change:
        change = change | {"train": str(folders / change["train"]), "task": {"extract": {"total": "string"}}}
    with pytest.raises(error, match=words):
        ready(values(folders, **change))


@pytest.mark.slow
def test_a_mixture_runs_from_beginning_to_end(
    folders: Path, tiny_model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = values(folders) | {
        "model": str(tiny_model_folder),
        "method": {"name": "lora", "rank": 4},
        "train": {"epochs": 1, "batch_size": 4, "one_modality": True},
        "predict": {"max_new_tokens": 8},
        "output": str(tmp_path),
    }
    file = tmp_path / "mixed.yaml"
    file.write_text(yaml.safe_dump(said))
    run = run_recipe(file, [], exclude_faulty=False, fresh=False)
    rows = [row for _, row in read_jsonl(run.path / "log.jsonl")]
    assert len([row for row in rows if "loss" in row]) == 4 + 1  # 16 receipts and 4 questions, 4 a step
    shown = capsys.readouterr().out
    assert "An epoch of training" in shown and "general" in shown
    assert "mixed" in run.report.read_text()


@pytest.mark.slow
def test_a_kind_of_samples_moves_its_parts_alone(tiny_model_folder: Path, tmp_path: Path) -> None:
    pictures = [replace(sample, answer="7") for sample in make_samples(tmp_path / "pictures", 4)]
    texts = [Sample(f"t{number}", prompt="Say seven.", answer=str(number)) for number in range(4)]
    settings = {"one_modality": True, "epochs": 1, "weight_decay": 0.1}
    full = {"name": "full", "parts": ["vision", "projector", "language", "head"]}

    def moved(samples: list[Sample], **train: Any) -> set[str]:
        model, method, recipe = prepare_small(tiny_model_folder, full, **settings, **train)
        before = snapshot(model)
        train_small(model, method, samples, recipe, tmp_path / f"{len(list(tmp_path.iterdir()))}")
        after = snapshot(model)
        return {name.split(".")[1] for name in before if not torch.equal(before[name], after[name])}

    everything = {"vision_tower", "multi_modal_projector", "language_model", "weight"}
    assert moved(pictures, modality_parts={"image": ["projector"]}) == {"multi_modal_projector"}
    assert moved(texts, modality_parts={"text": ["language"]}) == {"language_model"}
    assert moved([*pictures, *texts], modality_parts={"text": ["language"]}) == everything


@pytest.mark.slow
@pytest.mark.parametrize(
    ("parts", "words"),
    [({"txt": ["language"]}, "did you mean `text`"), ({"text": ["audio"]}, "none of audio is trained")],
)
def test_kinds_and_parts_that_are_not_there_are_refused(
    parts: dict[str, list[str]], words: str, tiny_model_folder: Path, tmp_path: Path
) -> None:
    model, method, recipe = prepare_small(tiny_model_folder, {"name": "full"}, one_modality=True, modality_parts=parts)
    with pytest.raises(RecipeError, match=words):
        train_small(model, method, [Sample("t", prompt="a", answer="b")], recipe, tmp_path)
    with pytest.raises(RecipeError, match="one_modality: true"):
        small_recipe({"name": "full"}, modality_parts={"text": ["language"]})
