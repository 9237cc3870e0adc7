"""Columns by the names that people give them: questions, answers, options, files by stem, tables without header."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from fixtures.data_examples import image, recording
from fixtures.label_files import write

from mllm_tailor.core.errors import DataError
from mllm_tailor.core.sample import Sample
from mllm_tailor.data import DataIssue, propose_recipe, read_samples
from mllm_tailor.recipe import read_recipe
from mllm_tailor.tasks import Task, open_task

A, B = "a.png", "b.png"


def look(folder: Path, files: dict[str, Any]) -> tuple[list[Sample], Task, str]:
    """The samples, the task that init proposes, and the recipe."""
    write(folder / "set", {A: image(A), B: image(B), **files})
    issues: list[DataIssue] = []
    dataset = read_samples(folder / "set", on_issue=issues.append)
    text = propose_recipe(dataset, issues)
    (folder / "recipe.yaml").write_text(text, encoding="utf-8")
    recipe = read_recipe(folder / "recipe.yaml")
    return list(dataset.samples), open_task(recipe.task_name, recipe.task_settings), text


@pytest.mark.parametrize(
    "row",
    [
        {"Question": "Which?", "Answer": "x"},
        {"user": "Which?", "assistant": "x"},
        {"input": "Which?", "output": "x"},
        {"problem": "Which?", "solution": "x"},
        {"query": "Which?", "label": ["x"], "human_or_machine": 0},
        {"question": "Which?", "answer": ["x", "x", "y"]},
        {"qa_pairs": [{"question": "Which?", "answer": "x"}]},
        {"QA": [{"q": "Which?", "a": "x"}]},
        {"questions": ["Which?"], "answers": ["x"]},
    ],
)
def test_a_question_is_asked_and_never_learned(row: dict[str, Any], tmp_path: Path) -> None:
    (sample,), task, _ = look(tmp_path, {"rows.jsonl": [{"image": A, **row}]})
    assert (task.name, sample.prompt, sample.answer) == ("answer", "Which?", "x")


def test_questions_of_one_row_are_samples(tmp_path: Path) -> None:
    pairs = [{"question": "Which?", "answer": "x", "kind": "k"}, {"question": "And?", "answers": ["y", "y", "z"]}]
    samples, task, _ = look(tmp_path, {"rows.json": [{"image": A, "qa": pairs}]})
    assert {(sample.prompt, sample.answer) for sample in samples} == {("Which?", "x"), ("And?", "y")}
    assert task.name == "answer" and len({sample.id for sample in samples}) == 2


@pytest.mark.parametrize(
    "row",
    [
        {"candidates": ["x", "y"], "answer": "y"},
        {"choice_a": "x", "choice_b": "y", "choice_c": "", "answer": "B"},
        {"Option A": "x", "Option B": "y", "answer": "y"},
        {"a0": "x", "a1": "y", "answer": 1},
        {"option1": "x", "option2": "y", "answer": "y"},
        {"options": {"B": "y", "A": "x"}, "answer": "B"},
        {"options": [{"label": "A", "text": "x"}, {"label": "B", "text": "y"}], "answer": "B"},
        {"Choice A": " A:x ", "Choice B": " B:y ", "answer": "y"},
    ],
)
def test_options_in_every_form(row: dict[str, Any], tmp_path: Path) -> None:
    (sample,), task, _ = look(tmp_path, {"rows.jsonl": [{"image": A, "question": "Which?", **row}]})
    assert (task.name, sample.options, task.labels(sample)) == ("choose", ("x", "y"), {"option": "B"})


def test_options_without_one_of_their_letters_are_refused(tmp_path: Path) -> None:
    row = {"image": A, "question": "Which?", "options": {"A": "x", "C": "y"}, "answer": "C"}
    with pytest.raises(DataError, match=r"rows\.jsonl:1: `options` has the letters A, C"):
        look(tmp_path, {"rows.jsonl": [row]})


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("rows.csv", "a.png,x\nb.png,y\n"),
        ("rows.tsv", "x\ta.png\ny\tb.png\n"),
        ("list.txt", "a.png x\nb.png y\n"),
        ("list.txt", 'a.png, "x"\nb.png, "y"\n'),
        ("rows.csv", "Id,text\na,x\nb,y\n"),
        ("meta/rows.csv", "filename,text\na.png,x\nb.png,y\n"),
        ("rows.json", {"a": {"query_id": 7, "caption": "-", "text": "x"}, "b": {"caption": "-", "text": "y"}}),
    ],
)
def test_no_row_is_taken_for_a_header(name: str, text: Any, tmp_path: Path) -> None:
    samples, _, _ = look(tmp_path, {name: text})
    found = [(sample.media[0].path.name, sample.fields["text"]) for sample in samples if sample.media[0].path]
    assert found == [(A, "x"), (B, "y")]


def test_a_class_is_learned_in_words(tmp_path: Path) -> None:
    rows = "filename,fold,target,category\n" + "".join(
        f"{number}.wav,1,{number % 2},{('dog', 'rain')[number % 2]}\n" for number in range(8)
    )
    files = {f"audio/{number}.wav": recording(str(number)) for number in range(8)}
    _, task, text = look(tmp_path, {"meta/esc50.csv": rows, **files})
    assert task.name == "classify" and "label: category" in text


def test_a_split_without_labels_is_not_held_out(tmp_path: Path) -> None:
    train = "image,label\n" + "".join(f"{name}.png,{'xy'[index % 2]}\n" for index, name in enumerate("cdefgh"))
    files = {f"{name}.png": image(name) for name in "cdefgh"}
    _, _, text = look(tmp_path, {"train.csv": train, "test.csv": "image\na.png\nb.png\n", **files})
    assert "value: test" not in text and "2 rows have no label" in text


def test_what_numbers_rows_is_not_learned(tmp_path: Path) -> None:
    rows = [
        {"image": name, "image_id": 7, "url": "http://x/y", "key": "k", "caption": "one two three"} for name in "ab"
    ]
    rows = [{**row, "image": f"{row['image']}.png"} for row in rows]
    _, task, _ = look(tmp_path, {"rows.jsonl": rows})
    assert task.name == "caption"
