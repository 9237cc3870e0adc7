"""Whatever a row of any layout states is shown, learned, in the ledger or named: the examples of docs/data.md, varied.

Each variation puts a mark into one value of a label file, or adds a key with a mark anywhere in it. The mark must
occur in what the model is shown, in the labels, in the ledger or in a message; or a message names its key or refuses
its row.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fixtures.data_examples import EXAMPLES, Example, write_example
from hypothesis import given, settings
from hypothesis import strategies as st

from mllm_tailor.core.errors import DataError
from mllm_tailor.core.sample import Sample
from mllm_tailor.data import DataIssue, propose_recipe, read_samples
from mllm_tailor.data.json_rows import HEADER_KEYS
from mllm_tailor.data.keys import HARMLESS_KEYS
from mllm_tailor.data.layouts import label_studio
from mllm_tailor.data.unread import unread_issues
from mllm_tailor.media.source import media_kind
from mllm_tailor.recipe import read_recipe
from mllm_tailor.run.ledger import _columns
from mllm_tailor.tasks import Task, open_task

MARK = "qzkv"
# What layouts document as saying nothing about what a sample shows: numbers of files and rows, who annotated and when.
HARMLESS = (
    HARMLESS_KEYS | HEADER_KEYS | label_studio.TASK_KEYS | label_studio.ANNOTATION_KEYS | label_studio.RESULT_KEYS
)
HARMLESS |= label_studio.MIN_KEYS | {
    *("id", "info", "licenses", "version", "area", "iscrowd", "image_id", "annotation_id", "answer_id"),
    *("answer_confidence", "raw_answer", "imageData", "length", "bbox", "box", "file_sha1"),
}
# Files that layouts read for names of classes or know by their format; what else they hold is not of a sample.
BESIDE = {"dataset_dict.json", "state.json", "class_list.txt", "in.tsv", "data.yaml"}
# One summarises, as its page states; the other is written by this program alone.
EVERY = [example for example in EXAMPLES if example.layout not in ("qa_captions", "review")]


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Paths to every value that is no list or object, and to every object."""
    if isinstance(value, dict):
        yield path
        for key, inner in value.items():
            if media_kind(key) and isinstance(inner, str):
                continue  # stands for the bytes of a file
            yield from places(inner, (*path, key))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from places(inner, (*path, index))
    else:
        yield path


def value_at(value: Any, path: tuple[Any, ...]) -> Any:
    return value_at(value[path[0]], path[1:]) if path else value


def changed(value: Any, path: tuple[Any, ...], mark: str) -> Any:
    """The value with a mark at a path: a key added to an object, a text exchanged, a number made another one."""
    if path:
        copy: Any = dict(value) if isinstance(value, dict) else list(value)
        copy[path[0]] = changed(value[path[0]], path[1:], mark)
        return copy
    if isinstance(value, dict):
        return {**value, f"key{mark}": mark}
    return f"{value} {mark}" if isinstance(value, str) else mark


def marked(content: str, suffix: str, seed: int, mark: str) -> tuple[str, str]:
    """A label file with one mark in it, and the key that the mark stands under ("" where it has none)."""
    rng = random.Random(seed)
    try:
        lines = [content] if suffix in (".json", ".tar") else content.splitlines()
        values = [json.loads(line) for line in lines]
    except ValueError:
        return marked_table(content, rng, mark, header=suffix in (".csv", ".tsv")), ""
    number = rng.randrange(len(values)) if suffix not in (".parquet", ".arrow") else 0  # which states the columns
    path = rng.choice(list(places(values[number])))
    at = value_at(values[number], path)
    values[number] = changed(values[number], path, mark)
    key = f"key{mark}" if isinstance(at, dict) else next(part for part in reversed(path) if isinstance(part, str))
    key = "info" if {"info", "licenses"} & set(path) else key
    return "\n".join(json.dumps(value, ensure_ascii=False) for value in values), key


def marked_table(content: str, rng: random.Random, mark: str, *, header: bool) -> str:
    """Lines of text with the mark behind one of its words; the names of columns stay."""
    lines = content.splitlines()
    number = rng.randrange(int(header), len(lines))
    words = lines[number].split(" ")
    place = rng.randrange(len(words))
    words[place] += mark
    return "\n".join([*lines[:number], " ".join(words), *lines[number + 1 :]]) + "\n"


def task_of(text: str, folder: Path) -> Task:
    recipe_file = folder / "recipe.yaml"
    recipe_file.write_text(text, encoding="utf-8")
    recipe = read_recipe(recipe_file)
    return open_task(recipe.task_name, recipe.task_settings)


def told(sample: Sample, task: Task) -> str:
    """Everything that becomes of a sample: what the model is shown and learns, and its line of the ledger."""
    ledger = [sample.id, sample.source, sample.group, sample.split, _columns(sample), sample.extra.get("ocr")]
    return repr([ledger, sample.extra.get("rejected"), sample.answers]) + shown(sample, task)


def shown(sample: Sample, task: Task) -> str:
    try:
        return repr([task.phrase(sample), task.labels(sample)])
    except DataError as error:
        return str(error)


def unaccounted(file: Path, folder: Path, layout: str, key: str, mark: str) -> str | None:
    """Why the mark in a file is lost; None where it is not."""
    issues: list[DataIssue] = []
    try:
        dataset = read_samples(folder, on_issue=issues.append)
        if dataset.layout != layout:
            return None  # another kind of file now; what it is read as has its own examples
        task = task_of(propose_recipe(dataset, issues), folder.parent)
    except DataError as error:
        return None if str(error) else "refused without a word"
    issues += unread_issues(dataset.samples, task, issues)
    messages = "\n".join(map(str, issues))
    if mark in messages or any(mark in told(sample, task) for sample in dataset.samples):
        return None
    named = key and (f"`{key}`" in messages or f".{key}`" in messages)
    refused = any(issue.severity == "error" or issue.source == str(file) for issue in issues)
    return None if named or refused or key in HARMLESS else f"`{key}` is lost: {messages or 'no message'}"


@pytest.mark.slow
@settings(max_examples=12)
@given(seed=st.integers(0, 2**32))
@pytest.mark.parametrize("example", EVERY, ids=lambda example: f"{example.layout}-{example.task}")
def test_nothing_that_a_row_states_is_lost(
    example: Example, seed: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("varied") / "set"
    rng = random.Random(seed)
    mark = f"{MARK}{rng.randrange(10**6):06}"
    files, key = list(example.files), ""
    varied = [number for number, (name, _) in enumerate(files) if Path(name).name not in BESIDE]
    if varied:
        number = rng.choice(varied)
        name, content = files[number]
        text, key = marked(content, Path(name).suffix, seed, mark)
        files[number] = (name, text)
    write_example(Example(example.layout, example.task, example.media, tuple(files)), folder)
    reason = unaccounted(folder / name, folder, example.layout, key, mark) if varied else None
    assert reason is None, f"{dict(files)[name]}\n{reason}"
