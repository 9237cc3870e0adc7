"""The drawn kitchen: the same for the same seed, readable by the recipe, and called drawn."""

from __future__ import annotations

from pathlib import Path

import pytest

from mllm_tailor.commands.draw import draw_set
from mllm_tailor.core.errors import DataError
from mllm_tailor.data import read_samples
from mllm_tailor.media.video import read_video
from mllm_tailor.recipe import read_recipe
from mllm_tailor.run.data_record import read_data_facts, write_held_out
from mllm_tailor.run.dataset import prepare
from mllm_tailor.run.report import _facts
from mllm_tailor.run.resolve import resolve
from mllm_tailor.run.run_dir import RunFolder

RECIPE = Path(__file__).resolve().parents[2] / "recipes" / "directed_cooking.yaml"


@pytest.fixture(scope="module")
def kitchen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("kitchen") / "drawn"
    draw_set("kitchen", folder, 12, 4, 0)
    return folder


@pytest.mark.slow
def test_the_same_seed_draws_the_same_kitchen(kitchen: Path, tmp_path: Path) -> None:
    for seed in (0, 1):
        draw_set("kitchen", tmp_path / str(seed), 12, 4, seed)
    made = [
        {file.relative_to(place): file.read_bytes() for file in sorted(place.rglob("*")) if file.is_file()}
        for place in (kitchen, tmp_path / "0", tmp_path / "1")
    ]
    assert made[0] == made[1] and made[0] != made[2] and len(made[0]) == 34


@pytest.mark.slow
def test_clips_and_pictures_read_back(kitchen: Path) -> None:
    clips, pictures = (read_samples(kitchen / name).samples for name in ("clips", "pictures"))
    assert [sum(sample.split == "dev" for sample in part) for part in (clips, pictures)] == [4, 4]
    assert all(sample.extra["drawn"] is True for sample in (*clips, *pictures))
    found = read_video(clips[0].media[0], 12)
    assert len(found.frames) == 12 and found.frames[0].size == (112, 112)
    assert found.seconds == pytest.approx(3, abs=0.1)


def test_the_recipe_mixes_three_kinds_and_the_report_says_what_is_drawn(kitchen: Path, tmp_path: Path) -> None:
    text = '{"video_id": "%d", "segments": [{"segment": [0, 5], "sentence": "cut the %d onions"}]}\n'
    (tmp_path / "text.jsonl").write_text("".join(text % (number, number) for number in range(9)))
    places = {"data": kitchen / "clips", "data.sources.pictures": kitchen / "pictures"}
    words = [
        f"{name}.train={place}" for name, place in (places | {"data.sources.text": tmp_path / "text.jsonl"}).items()
    ]
    recipe = read_recipe(RECIPE, words)
    run = resolve(recipe)
    splits, _ = prepare(run, decode=False)
    kinds = {source.name: {sample.modality for sample in source.samples} for source in splits.mixed}
    assert kinds == {"pictures": {"image"}, "text": {"text"}} and len(splits.held_out) == 4
    folder = RunFolder(tmp_path / "run")
    write_held_out(folder, run.task, splits)
    facts = _facts(run, [], {"trained_by_part": {}, "weights": 1, "epochs": 1}, read_data_facts(folder))
    pictures = len(splits.mixed[0].samples)
    assert facts["pixels"].startswith(f"drawn stand-ins in {len(splits.train) + 4 + pictures} of ")


def test_unknown_sets_and_full_folders_are_refused(kitchen: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="did you mean `kitchen`"):
        draw_set("kitchn", tmp_path / "new", 1, 1, 0)
    with pytest.raises(DataError, match="holds files already"):
        draw_set("kitchen", kitchen, 1, 1, 0)
