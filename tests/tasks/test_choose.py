"""Multiple choice: options from every common spelling, letters as replies, scored by the likelihood of each."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mllm_tailor.commands.predict import open_predictor, predict_paths
from mllm_tailor.commands.run import run_recipe
from mllm_tailor.core.errors import DataError
from mllm_tailor.core.io import read_json, read_jsonl
from mllm_tailor.core.sample import Sample
from mllm_tailor.data import read_samples
from mllm_tailor.tasks import open_task
from mllm_tailor.tasks.choose import Choose

task = open_task("choose")


def asked(answer: str | None, options: tuple[str, ...] = ("a cat", "a dog", "3")) -> Sample:
    return Sample("a", prompt="What is it?", answer=answer, options=options, source="train.jsonl:3")


def test_the_options_stand_below_the_question_with_a_letter_each() -> None:
    phrased = task.phrase(asked("a dog"))
    assert phrased.prompt.splitlines()[:4] == ["What is it?", "A. a cat", "B. a dog", "C. 3"]
    assert phrased.answer == "B"
    assert task.phrase(asked(None)).answer is None
    assert task.phrase(asked("B").unlabelled()).prompt == phrased.prompt  # options are asked, not told


@pytest.mark.parametrize("said", ["A Dog", "B", "(b)", "B.", "1"])
def test_the_right_option_is_named_by_text_letter_or_place(said: str) -> None:
    assert task.labels(asked(said)) == {"option": "B"}


def test_an_option_that_is_a_number_is_meant_before_a_place() -> None:
    assert task.labels(asked("3")) == {"option": "C"}


@pytest.mark.parametrize(
    ("sample", "words"),
    [
        (asked("a bird"), "none of its 3 options"),
        (asked("D"), "letter .A to C."),
        (asked("A", options=()), "0 options, where a question has 2 to 26"),
        (Sample("a", options=("x", "y"), source="train.jsonl:3"), "no question"),
    ],
)
def test_what_cannot_be_chosen_names_the_row(sample: Sample, words: str) -> None:
    with pytest.raises(DataError, match=words) as caught:
        task.phrase(sample)
    assert "train.jsonl:3" in str(caught.value)


@pytest.mark.parametrize(
    ("said", "letter"),
    [("B", "B"), ("b", "B"), ("(C) a bird", "C"), ("A. a cat", "A"), ("The answer is D.", "D"), ("a dog", "A")],
)
def test_replies_are_read_as_letters(said: str, letter: str) -> None:
    assert task.parse(said).fields == {"option": letter}


@given(st.text())
def test_parsing_never_raises(text: str) -> None:
    reply = task.parse(text)
    assert bool(reply.fields) != bool(reply.problem)


@pytest.mark.parametrize(
    "stated",
    [
        {"options": ["red", "blue", "green"], "answer": "blue"},
        {"choices": {"A": "red", "B": "blue", "C": "green"}, "answer": "B"},
        {"A": "red", "B": "blue", "C": "green", "answer": "B"},
        {"options": ["red", "blue", "green"], "answer": 1},
    ],
)
def test_rows_of_every_spelling(stated: dict[str, Any], tmp_path: Path) -> None:
    Image.new("RGB", (60, 60), "blue").save(tmp_path / "0.png")
    (tmp_path / "train.jsonl").write_text(json.dumps({"image": "0.png", "question": "Which colour?"} | stated))
    (sample,) = read_samples(tmp_path).samples
    assert sample.options == ("red", "blue", "green") and not sample.fields
    assert task.labels(sample) == {"option": "B"}


def test_a_column_that_only_shares_the_name_stays_a_field(tmp_path: Path) -> None:
    Image.new("RGB", (60, 60), "blue").save(tmp_path / "0.png")
    (tmp_path / "train.jsonl").write_text(json.dumps({"image": "0.png", "options": "fast", "A": "x", "B": "y"}))
    (sample,) = read_samples(tmp_path).samples
    assert sample.options == () and set(sample.fields) == {"options", "A", "B"}


@pytest.mark.slow
def test_a_run_is_scored_by_likelihood_and_predicts_from_a_manifest(tmp_path: Path, tiny_model_folder: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    rows = []
    for number in range(10):
        colours = ["red", "blue", "green"][: 2 + number % 2]
        Image.new("RGB", (60 + number, 60), colours[number % 2]).save(data / f"{number}.png")
        row = {"image": f"{number}.png", "question": f"Which colour, {number}?", "options": colours}
        rows.append(row | {"answer": colours[number % 2], "split": "test" if number > 5 else "train"})
    (data / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    values = {
        "name": "colours",
        "model": str(tiny_model_folder),
        "data": {"train": str(data), "held_out": {"column": "split", "value": "test"}, "dev": 0},
        "task": "choose",
        "method": {"name": "lora", "rank": 2},
        "train": {"epochs": 1, "batch_size": 4},
        "predict": {"max_new_tokens": 4},
        "output": str(tmp_path / "runs"),
    }
    (tmp_path / "colours.yaml").write_text(yaml.safe_dump(values))
    run = run_recipe(tmp_path / "colours.yaml", [], exclude_faulty=False, fresh=False)
    scores = read_json(run.scores)
    assert scores["mode"] == "likelihood" and {"tuned_unconstrained", "base_likelihood"} <= set(scores["systems"])
    new = [{name: row[name] for name in ("image", "question", "options")} for row in rows[6:]]
    (data / "new.jsonl").write_text("\n".join(map(json.dumps, [*new, {"image": "0.png", "question": "Which?"}])))
    out = tmp_path / "out.jsonl"
    predict_paths(open_predictor(run.path), [data / "new.jsonl"], out)
    found = [row for _, row in read_jsonl(out)]
    kept = [row for _, row in read_jsonl(run.predictions("tuned_likelihood"))]
    assert [row["fields"]["option"] for row in found[:-1]] == [row["fields"]["option"] for row in kept]
    assert all(
        row["fields"]["option"] in "ABC"[: len(asked["options"])] for row, asked in zip(found, new, strict=False)
    )
    assert all(0 < row["raw"]["option"]["mean"] <= 1 for row in found[:-1])
    assert "0 options" in found[-1]["problem"]  # one bad row stops no other


def test_answers_are_read_in_one_way_for_the_whole_set() -> None:
    """Options that are numbers or letters do not change what an answer means from row to row."""

    def rows(*pairs: tuple[str, str]) -> list[Sample]:
        return [
            Sample(str(n), (), "Which?", answer, options=tuple(options)) for n, (options, answer) in enumerate(pairs)
        ]

    places = rows(("3210", "1"), ("4021", "0"), (("red", "blue", "green"), "2"))
    task = Choose({}).resolve_from(places)
    assert task.settings.answers == "index"
    assert [task.labels(sample)["option"] for sample in places] == ["B", "A", "C"]
    letters = rows(("BAC", "A"), (("red", "blue"), "B"))
    task = Choose({}).resolve_from(letters)
    assert [task.labels(sample)["option"] for sample in letters] == ["A", "B"]
    counted = rows((("red", "blue"), "1"), (("red", "blue"), "2"))
    assert Choose({}).resolve_from(counted).settings.answers == "number"
    with pytest.raises(DataError, match="read both ways"):
        Choose({}).resolve_from(rows(("3210", "1"), ("3210", "2")))
    mixed = rows((("red", "blue"), "red"), (("red", "blue"), "blue"), (("red", "blue"), "A"))
    task = Choose({}).resolve_from(mixed)
    with pytest.raises(DataError, match="read as text, as the other rows"):
        task.labels(mixed[2])
