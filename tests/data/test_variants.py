"""Rows that say the same in other words: further file columns, numbered marks, options and answers by other names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from fixtures.data_examples import image, recording, write_tar
from fixtures.label_files import write

from mllm_tailor.core.conversation import Conversation
from mllm_tailor.core.sample import Media, Sample
from mllm_tailor.data import DataIssue, propose_recipe, read_samples, validate
from mllm_tailor.recipe import read_recipe
from mllm_tailor.tasks import Task, open_task

A, B = "a.png", "b.png"


def look(folder: Path, rows: Any, name: str = "rows.jsonl") -> tuple[list[Sample], Task, str]:
    """The samples, the task that init proposes, and everything that check states of them."""
    write(folder / "set", {A: image(A), B: image(B), name: rows})
    issues: list[DataIssue] = []
    dataset = read_samples(folder / "set", on_issue=issues.append)
    (folder / "recipe.yaml").write_text(propose_recipe(dataset, issues), encoding="utf-8")
    recipe = read_recipe(folder / "recipe.yaml")
    task = open_task(recipe.task_name, recipe.task_settings)
    found = validate(dataset.samples, [], task, faults=issues, decode=False)
    return list(dataset.samples), task, "\n".join(map(str, found.faults))


def shown(conversation: Conversation) -> list[str]:
    """The last message with the name of each file in its place."""
    return [
        part.path.name if isinstance(part, Media) and part.path else str(part)
        for part in conversation.messages[-1].content
    ]


@pytest.mark.parametrize("mark", ["<image {}>", "<image_{}>", "<image{}>"])
def test_numbered_marks_are_places(mark: str, tmp_path: Path) -> None:
    text = f"Is {mark.format(1)} like {mark.format(2)}?"
    message = [{"role": "user", "content": text}, {"role": "assistant", "content": "no"}]
    forms = [{"messages": message, "images": [A, B]}]
    columns = [{"question": text, "image_1": A, "image_2": B, "image_3": None, "answer": "no"}]
    for number, rows in enumerate((forms, columns)):
        (sample,), task, said = look(tmp_path / str(number), rows)
        assert shown(task.phrase(sample)) == ["Is ", A, " like ", B, "?"] and not said


@pytest.mark.parametrize(
    "text",
    ["<image_2>Which?", "<image>Which?<image>", "[IMG] Which?", "<start_of_image>Which?", "<Image>Which?", "<bbox>"],
)
def test_marks_that_stand_for_no_file_are_refused(text: str, tmp_path: Path) -> None:
    _, _, said = look(tmp_path, [{"image": A, "question": text, "answer": "no"}])
    assert "rows.jsonl:1" in said and "control token" in said


def test_several_file_columns_are_shown_and_masks_are_no_labels(tmp_path: Path) -> None:
    rows = "image_left,image_right,label\na.png,b.png,same\nb.png,a.png,other\n"
    (first, _), task, _ = look(tmp_path / "0", rows, "rows.csv")
    assert [media.path.name for media in first.media if media.path] == [A, B] and task.labels(first) == {
        "label": "same"
    }
    (first, _), task, said = look(tmp_path / "1", "image,mask,kind\na.png,b.png,x\nb.png,a.png,y\n", "rows.csv")
    assert len(first.media) == 1 and task.field_names == ("kind",) and "`mask`" in said


@pytest.mark.parametrize(
    ("row", "answer"),
    [
        ({"options": "['x', 'y']", "answer": "B"}, "B"),
        ({"options": '["x", "y"]', "answer": "y"}, "B"),
        ({"choices": ["x", "y"], "correct_choice_idx": 1}, "B"),
        ({"choices": ["x", "y"], "answer_idx": "B"}, "B"),
        ({"label": "y"}, "y"),
        ({"target": "10.50"}, "10.50"),
    ],
)
def test_options_and_answers_by_other_names(row: dict[str, Any], answer: str, tmp_path: Path) -> None:
    (sample, _), task, said = look(tmp_path, [{"image": name, "question": "Which?", **row} for name in (A, B)])
    assert task.name == ("choose" if len(row) == 2 else "answer") and task.phrase(sample).answer == answer and not said


def test_numbers_are_proposed_as_they_are_written(tmp_path: Path) -> None:
    rows = (
        '{"file_name": "a.png", "price": 10.50, "share": 0.5}\n{"file_name": "b.png", "price": 2.25, "share": 0.25}\n'
    )
    samples, task, _ = look(tmp_path, rows, "rows.ndjson")
    assert task.phrase(samples[0]).answer == '{"price": "10.50", "share": 0.5}'


def test_keys_of_a_part_that_change_what_is_shown_are_named(tmp_path: Path) -> None:
    part = {"type": "image", "image": A, "width": 64, "fps": 2.0, "max_pixels": 50176}
    message = [{"role": "user", "content": [part, "What?"]}, {"role": "assistant", "content": "no"}]
    _, _, said = look(tmp_path, [{"messages": message, "tools": "[]"}])
    assert "`fps`" in said and "`max_pixels`" in said and "`width`" not in said


def test_a_table_of_excel_states_its_separator(tmp_path: Path) -> None:
    (first, _), task, said = look(tmp_path, "sep=;\nfile_name;total\na.png;2,50\nb.png;3,50\n", "rows.csv")
    assert task.labels(first) == {"total": "2,50"} and first.source.endswith("rows.csv:3") and not said


def test_pairs_of_user_and_assistant_are_a_conversation(tmp_path: Path) -> None:
    """The Cauldron's rows, in JSON lines and as a member of a tar file."""
    pairs = [{"user": "Which?", "assistant": "x", "source": "s"}, {"user": "And?", "assistant": "y", "source": "s"}]
    samples, task, said = look(tmp_path, [{"texts": pairs, "images": [A, B]}])
    assert task.name == "answer" and [task.phrase(sample).answer for sample in samples] == ["x", "y"]
    assert [turn.text for turn in samples[1].history] == ["Which?", "x"] and "`source`" in said


@pytest.mark.parametrize(
    "stated",
    [
        {"conversations": [{"from": "human", "value": "<image>Which?"}, {"from": "gpt", "value": "x"}]},
        {"texts": [{"user": "Which?", "assistant": "x"}], "image": "elsewhere.png"},
    ],
)
def test_conversations_of_tar_files_are_read(stated: dict[str, Any], tmp_path: Path) -> None:
    members = {"0.jpg": "image", "0.json": stated, "1.jpg": "image", "1.json": stated}
    write_tar(tmp_path / "shard.tar", members)
    first, second = read_samples(tmp_path).samples
    assert (first.prompt, first.answer, len(first.media), second.id) == ("Which?", "x", 1, "1")


@pytest.mark.parametrize("question", ["Which?", {"de": "Welche?", "en": "Which?"}])
@pytest.mark.parametrize("answers", [["x", "y", "x"], '["x", "y", "x"]', "['x', 'y', 'x']"])
def test_lists_of_answers_by_other_names(question: Any, answers: Any, tmp_path: Path) -> None:
    rows = [{"image": name, "query": question, "answers": answers} for name in (A, B)]
    (sample, _), task, said = look(tmp_path, rows)
    assert (task.name, sample.prompt, sample.answer) == ("answer", "Which?", "x")
    assert task.labels(sample) == {"answer": ["x", "y", "x"]} and ("`query.de`" in said) == isinstance(question, dict)


@pytest.mark.parametrize(
    ("row", "span"),
    [
        ({"start": "0.5", "end": "1.5"}, (0.5, 1.5)),
        ({"begin": 0.5, "end": 1.5}, (0.5, 1.5)),
        ({"start_time": 0.5, "end_time": 1.5}, (0.5, 1.5)),
        ({"offset": "0.5", "duration": "1"}, (0.5, 1.5)),
        ({"start": None, "end": None}, None),
    ],
)
def test_spans_by_their_names(row: dict[str, Any], span: tuple[float, float] | None, tmp_path: Path) -> None:
    write(tmp_path, {"a.wav": recording("a"), "rows.jsonl": [{"audio": "a.wav", "text": "x", **row}]})
    (sample,) = read_samples(tmp_path).samples
    assert sample.media[0].span == span
    assert not span or not set(row) - {"duration"} & set(sample.fields)
