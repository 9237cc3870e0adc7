"""The examples of docs/data.md: each is written as shown, recognised, read, and given a recipe with the task stated."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

import pytest
from fixtures.data_examples import (
    EXAMPLES,
    PAGE,
    Example,
    image,
    write_example,
)

from mllm_tailor.core.errors import DataError
from mllm_tailor.core.sample import Prediction, Sample
from mllm_tailor.data import LAYOUTS, DataIssue, Dataset, propose_recipe, read_samples, split
from mllm_tailor.recipe import HeldOut, read_recipe
from mllm_tailor.scoring import score
from mllm_tailor.tasks import open_task


def test_every_layout_has_a_line_and_an_example() -> None:
    lines = re.findall(r"^\| `(\w+)` \|", PAGE.read_text(encoding="utf-8"), re.M)
    assert sorted(lines) == sorted(LAYOUTS)
    assert {example.layout for example in EXAMPLES} == set(LAYOUTS)


@pytest.mark.slow
@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: f"{example.layout}-{example.task}")
def test_example_is_read_and_proposed(example: Example, tmp_path: Path) -> None:
    folder = tmp_path / "set"
    write_example(example, folder)
    issues: list[DataIssue] = []
    by_name = example.layout if example.layout == "qa_captions" else None
    dataset = read_samples(folder, by_name, on_issue=issues.append)
    assert dataset.layout == example.layout
    assert not [str(issue) for issue in issues if issue.severity == "error"]
    assert all(media.path is None or media.path.exists() for sample in dataset.samples for media in sample.media)
    assert all(sample.answer is not None or sample.fields for sample in dataset.samples)
    out = tmp_path / "recipe.yaml"
    out.write_text(propose_recipe(dataset, issues), encoding="utf-8")
    recipe = read_recipe(out)
    assert recipe.task_name == example.task
    task = open_task(recipe.task_name, recipe.task_settings)
    for sample in dataset.samples:
        conversation = task.phrase(sample)
        assert conversation.answer and task.labels(sample)


def test_all_answers_count_as_right(tmp_path: Path) -> None:
    example = next(example for example in EXAMPLES if (example.layout, example.task) == ("answers", "answer"))
    write_example(example, tmp_path)
    first = read_samples(tmp_path).samples[0]
    label = open_task("answer").labels(first)
    assert first.answer == "9.00" and label == {"answer": ["9.00", "$9.00"]}
    names = ("accuracy", "exact", "anls", "token_recall")
    for reply, right in (("9.00", 100.0), ("$9.00", 100.0), ("8.50", 0.0)):
        prediction = Prediction(first.id, reply, {"answer": reply})
        scores = score([label], [prediction], names, ["answer"]).values()
        assert scores["exact"] == scores["accuracy"] == right


def test_media_root_is_a_setting_and_no_row_can_name_one(tmp_path: Path) -> None:
    folder, elsewhere = tmp_path / "labels", tmp_path / "photos"
    folder.mkdir()
    elsewhere.mkdir()
    (elsewhere / "a.png").write_bytes(image())
    rows = [{"image": "a.png", "total": "9.00"}, {"image": "../secret/a.png", "total": "9.00"}]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    issues: list[DataIssue] = []
    (sample,) = read_samples(folder, on_issue=issues.append, media_root=elsewhere).samples
    assert sample.media[0].path == (elsewhere / "a.png").resolve()
    assert [issue.source.rpartition(":")[2] for issue in issues] == ["2"]
    with pytest.raises(DataError, match="media_root"):
        read_samples(folder, media_root=tmp_path / "none")


def test_stratified_and_grouped_held_out(tmp_path: Path) -> None:
    samples = tuple(
        Sample(str(number), fields={"label": "rare" if number % 10 == 0 else "common", "site": f"s{number % 50}"})
        for number in range(400)
    )
    dataset = Dataset(samples)
    _, held = split(dataset, HeldOut(fraction=0.1, stratify_by="label"), 0)
    assert Counter(sample.fields["label"] for sample in held) == {"common": 36, "rare": 4}
    train, held = split(dataset, HeldOut(fraction=0.1, stratify_by="label", group_by="site"), 0)
    assert Counter(sample.fields["label"] for sample in held)["rare"] in range(9)
    assert not {sample.fields["site"] for sample in train} & {sample.fields["site"] for sample in held}
    with pytest.raises(DataError, match="stratify by"):
        split(dataset, HeldOut(fraction=0.1, stratify_by="lable"), 0)
