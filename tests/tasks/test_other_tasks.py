"""Classify, caption and transcribe: labels that fit, replies read back, nothing that raises."""

from __future__ import annotations

import json
from typing import Any

import pytest
from fixtures.real_data import real_data
from hypothesis import given
from hypothesis import strategies as st

from mllm_tailor.core.errors import DataError, RecipeError
from mllm_tailor.core.sample import Media, Sample
from mllm_tailor.data import read_samples
from mllm_tailor.scoring.metrics import METRICS
from mllm_tailor.tasks import open_task

GESTURES = ["Swiping", "Swiping Up", "No gesture", "C++"]
classify = open_task("classify", GESTURES)
TASKS = [classify, open_task("caption"), open_task("transcribe")]


def labelled(answer: str | None = None, **fields: Any) -> Sample:
    return Sample("a", answer=answer, fields=fields, source="train.jsonl:3")


@pytest.mark.parametrize(
    "sample", [labelled(label="swiping  UP"), labelled("Swiping Up."), labelled('{"class": "swiping up"}')]
)
def test_a_class_is_written_as_the_recipe_writes_it(sample: Sample) -> None:
    phrased = classify.phrase(sample)
    assert phrased.answer == '{"class": "Swiping Up"}' and classify.labels(sample) == {"class": "Swiping Up"}
    assert all(name in phrased.prompt for name in GESTURES)
    assert classify.parse(phrased.answer).fields == classify.labels(sample)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"label": "Swipping Up"}, "not one of the recipe's classes — did you mean `Swiping Up`"),
        ({"lable": "Swiping"}, "there is no field `label` for the class — did you mean `lable`"),
        ({"label": 7}, "'7' is not one of the recipe's classes"),
    ],
)
def test_a_class_never_declared_names_the_row_and_the_nearest(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(DataError, match=words) as caught:
        classify.phrase(labelled(**fields))
    assert "train.jsonl:3" in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["only"], "at least 2"),
        (["a", " A "], "named twice"),
        (["a", " . "], "the name of a class is empty"),
        ({"classes": ["a", "b"], "promt": "?"}, "did you mean `prompt`"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings: Any, words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        open_task("classify", settings)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('{"class": "No gesture"}', "No gesture"),
        ('```json\n{"class": "no gesture"}\n```', "No gesture"),
        ("swiping up", "Swiping Up"),  # not Swiping
        ("It is **Swiping Up**.", "Swiping Up"),
        ("Swiping Up, yes: swiping up", "Swiping Up"),
        ("c++", "C++"),
        ("Swiping, then no gesture", None),
        ("Swipings", None),
        ('{"class": ["Swiping"', "Swiping"),
        ("", None),
    ],
)
def test_replies_are_read_whatever_their_case_and_dressing(text: str, found: str | None) -> None:
    reply = classify.parse(text)
    assert reply.fields.get("class") == found and bool(reply.problem) == (found is None)


def test_the_schema_holds_exactly_the_classes() -> None:
    assert classify.schema()["properties"] == {"class": {"enum": GESTURES}}
    assert classify.schema()["required"] == ["class"] and not classify.schema()["additionalProperties"]


def test_captions_and_transcripts_take_their_field_or_the_answer() -> None:
    caption, transcribe = TASKS[1:]
    clip = Sample("a", media=(Media("video", data=b"x"),), fields={"caption": " a pan\non a stove "}, source="x:1")
    assert caption.phrase(clip).prompt == "Describe the clip briefly."
    assert caption.phrase(clip).answer == "a pan on a stove"
    assert transcribe.phrase(labelled(text="seven", speaker="theo")).answer == "seven"
    assert transcribe.phrase(labelled("seven")).answer == "seven"
    for task in (caption, transcribe):
        assert task.phrase(Sample("a")).answer is None and task.labels(Sample("a")) == {}
        with pytest.raises(DataError, match=r"train\.jsonl:3: no field"):
            task.phrase(labelled(speaker="theo"))
        with pytest.raises(DataError, match="should be text"):
            task.phrase(labelled(text=7, caption=7))


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_unlabelled_samples_get_a_question_and_metrics_exist(task: Any) -> None:
    assert task.phrase(Sample("a", fields={}, source="x:1")).answer is None
    assert task.phrase(Sample("a")).prompt
    assert set(task.metrics) <= set(METRICS)


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
@given(text=st.text() | st.builds(lambda value: json.dumps({"class": value}), st.text() | st.none() | st.integers()))
def test_parsing_never_raises_and_says_why_it_found_nothing(task: Any, text: str) -> None:
    reply = task.parse(text)
    assert bool(reply.fields) != bool(reply.problem) and set(reply.fields) <= set(task.field_names)


@given(name=st.sampled_from(GESTURES), noise=st.text(alphabet="xyz ,;\n", max_size=8))
def test_a_class_is_found_within_other_words(name: str, noise: str) -> None:
    assert classify.parse(f"{noise} {name} {noise}").fields == {"class": name}


@pytest.mark.slow
def test_real_gestures_and_digits_fit() -> None:
    gestures = read_samples(real_data("gesture17")).samples
    names = sorted({str(sample.fields["label"]) for sample in gestures})
    task = open_task("classify", {"classes": names})
    assert len(names) == 17 and {task.labels(sample)["class"] for sample in gestures} == set(names)
    digits = read_samples(real_data("fsdd")).samples
    assert {TASKS[2].labels(sample)["text"] for sample in digits} >= {"zero", "nine"}
