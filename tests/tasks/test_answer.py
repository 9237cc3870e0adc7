"""Questions about pictures: the published normalisation, one split for two views of a set, captions made of facts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from fixtures.real_data import real_data
from hypothesis import given
from hypothesis import strategies as st

from mllm_tailor.core.errors import DataError
from mllm_tailor.core.sample import Sample
from mllm_tailor.data import detect, read_samples, split
from mllm_tailor.data.layouts.base import Folder
from mllm_tailor.data.split import by_name
from mllm_tailor.recipe import HeldOut, make_recipe
from mllm_tailor.run.dataset import prepare
from mllm_tailor.run.resolve import resolve
from mllm_tailor.run.slices import break_down, majority_answers
from mllm_tailor.scoring.metrics.answers import published


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("X-Ray", "x ray"),
        ("Chest X-ray.", "the chest xray"),
        ("Two nodules", "2 nodules"),
        ("none", "0"),
        ("Yes!", "yes"),
        ("right-sided", "right sided"),
        ("a\nmass", "mass"),
        ("don't know", "dont know"),
    ],
)
def test_answers_the_published_rules_make_equal(one: str, other: str) -> None:
    assert published(one) == published(other)


@pytest.mark.parametrize(("one", "other"), [("1.5 cm", "15 cm"), ("left", "right"), ("no", "none")])
def test_answers_they_do_not(one: str, other: str) -> None:
    assert published(one) != published(other)


def test_every_point_vanishes_not_only_the_first_32() -> None:
    assert published("a.b" * 40) == ["ab" * 40]


@given(st.text())
def test_normalised_words_have_no_capitals_points_or_articles(text: str) -> None:
    found = published(text)
    assert not {"a", "an", "the"} & set(found)
    assert all(not word.isspace() and "," not in word and "'" not in word for word in found)


def questions(folder: Path) -> Path:
    """Thirty pictures, each with one to three questions."""
    (folder / "images").mkdir(parents=True)
    rows = []
    for number in range(30):
        (folder / "images" / f"{number}.png").write_bytes(b"")
        facts = [("What plane is this?", "Axial.", "PLANE"), ("Is it normal?", "No", "ABN"), ("Where?", "left", "POS")]
        for question, answer, kind in facts[: 1 + number % 3]:
            row = {"image": f"images/{number}.png", "question": question, "answer": answer, "question_type": kind}
            rows.append(row | {"organ": "ABD", "answer_type": "CLOSED" if kind == "ABN" else "OPEN"})
    (folder / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


def test_both_views_of_a_set_hold_out_the_same_files(tmp_path: Path) -> None:
    data = questions(tmp_path / "data")
    held = HeldOut(fraction=0.3, fixed=True)
    asked, told = read_samples(data), read_samples(data, "qa_captions")
    assert len(asked.samples) == 60 and len(told.samples) == 30
    sides = [
        [{sample.media[0].path for sample in side} for side in split(found, held, seed=3)] for found in (asked, told)
    ]
    assert sides[0] == sides[1] and not sides[0][0] & sides[0][1]
    assert 3 <= len(sides[0][1]) <= 16


def test_a_file_is_held_out_whatever_else_is_in_the_set() -> None:
    samples = [Sample(str(number), group=f"g{number}") for number in range(200)]
    whole = {sample.id for sample in by_name(samples, 0.25, "0:x")[1]}
    half = {sample.id for sample in by_name(samples[::2], 0.25, "0:x")[1]}
    assert half == whole & {sample.id for sample in samples[::2]} and 30 <= len(whole) <= 70


def test_captions_are_made_of_what_answers_say(tmp_path: Path) -> None:
    data = questions(tmp_path / "data")
    assert detect(Folder(data))[0] == "metadata"  # the other view is chosen by name
    captions = [sample.answer for sample in read_samples(data, "qa_captions").samples]
    assert captions[0] == captions[1] == "abdomen. plane: axial"  # `no` says nothing without its question
    assert captions[2] == "abdomen. plane: axial. position: left"
    with pytest.raises(DataError, match="not laid out as `qa_captions`"):
        (tmp_path / "other").mkdir()
        (tmp_path / "other" / "rows.jsonl").write_text('{"image": "a.png", "total": "1"}')
        read_samples(tmp_path / "other", "qa_captions")


@pytest.mark.slow
def test_the_majority_floor_answers_each_type_with_its_own_most_frequent_answer() -> None:
    folder = real_data("vqa_rad")
    values = {
        "data": {"train": str(folder), "held_out": {"fraction": 0.2, "fixed": True}},
        "task": "answer",
        "score_by": ["answer_type", "question_type"],
    }
    run = resolve(make_recipe(values))
    splits, _ = prepare(run, exclude_faulty=True, decode=False)
    floor = majority_answers(run.task, run.recipe.score_by, splits.train, splits.held_out)
    places = break_down(run.recipe.score_by, splits.held_out)["answer_type"]
    assert sum(map(len, places.values())) == len(floor) == len(splits.held_out)
    assert {floor[place]["answer"].lower() for place in places["CLOSED"]} & {"yes", "no"}
    assert not {floor[place]["answer"].lower() for place in places["OPEN"]} & {"yes", "no"}
    files = [{sample.media[0].path for sample in side} for side in (splits.train, splits.held_out)]
    assert not files[0] & files[1]
