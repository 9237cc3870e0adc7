"""The examples of docs/data.md, damaged: whatever a label file holds, rows become samples or named issues."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from fixtures.data_examples import EXAMPLES, Example, write_example
from hypothesis import given, settings
from hypothesis import strategies as st

from mllm_tailor.core.errors import DataError
from mllm_tailor.data import DataIssue, propose_recipe, read_samples

STRANGE: tuple[Any, ...] = (
    None,
    True,
    -1,
    1e300,
    "",
    "..",
    "a\0b",
    "x" * 300,
    [],
    {},
    [[]],
    [{}],
    {"": ""},
    [1, "a"],
    "é\n|,\t#;=",
)


def damaged(content: str, seed: int) -> str:
    """The text with a value exchanged where it is JSON, else with some characters cut out, repeated or exchanged."""
    rng = random.Random(seed)
    lines = content.splitlines(keepends=True)
    number = rng.randrange(len(lines))
    try:
        whole = rng.random() < 0.5
        value = json.loads(content if whole else lines[number])
    except ValueError:
        start = rng.randrange(len(content))
        return (
            content[:start]
            + rng.choice(("", "\0", '"', "{", "\t", "|", "=", "\n"))
            + content[start + rng.randrange(9) :]
        )
    text = json.dumps(exchanged(value, rng), ensure_ascii=False)
    return text if whole else "".join([*lines[:number], text + "\n", *lines[number + 1 :]])


def exchanged(value: Any, rng: random.Random) -> Any:
    if rng.random() < 0.15 or not isinstance(value, (dict, list)) or not value:
        return rng.choice(STRANGE)
    if isinstance(value, list):
        index = rng.randrange(len(value))
        return [exchanged(item, rng) if place == index else item for place, item in enumerate(value)]
    name = rng.choice(list(value))
    if rng.random() < 0.2:
        return {key: item for key, item in value.items() if key != name}
    return value | {name: exchanged(value[name], rng)}


@pytest.mark.slow
@settings(max_examples=8)
@given(seeds=st.lists(st.integers(0, 2**32), min_size=1, max_size=4))
@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: f"{example.layout}-{example.task}")
def test_damaged_examples_never_crash(
    example: Example, seeds: list[int], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("damaged")
    write_example(example, folder)
    texts = [
        (name, content) for name, content in example.files if Path(name).suffix not in (".parquet", ".arrow", ".tar")
    ]
    for seed in seeds:
        if texts:
            name, content = texts[seed % len(texts)]
            (folder / name).write_text(damaged(content, seed), encoding="utf-8", errors="replace")
    issues: list[DataIssue] = []
    layouts = [None, example.layout]
    for layout in layouts:
        try:
            dataset = read_samples(folder, layout, on_issue=issues.append)
            propose_recipe(dataset, issues)
        except DataError as error:
            assert str(error)
    assert all(issue.source and issue.problem and issue.fix for issue in issues)
