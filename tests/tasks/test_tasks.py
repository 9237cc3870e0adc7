"""Tasks: phrasing a sample, and reading replies that no longer look like what was asked for."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mllm_tailor.core.conversation import as_conversation
from mllm_tailor.core.errors import DataError, RecipeError
from mllm_tailor.core.sample import Sample
from mllm_tailor.data import read_samples
from mllm_tailor.tasks import open_task, with_transcriptions
from mllm_tailor.tasks.reply import read_object

FIELDS = {"company": "string", "total": "amount"}


def labelled(**fields: Any) -> Sample:
    return Sample(id="a", fields=fields, source="labels.jsonl:3")


def test_extract_answers_in_recipe_order_with_absent_fields_empty() -> None:
    sample = open_task("extract", FIELDS).phrase(labelled(total=9, other="x"))
    assert sample.prompt == "Extract company, total as JSON."
    assert sample.answer == '{"company": "", "total": "9"}'


def test_an_unlabelled_sample_gets_a_question_and_no_answer() -> None:
    sample = open_task("extract", FIELDS).phrase(Sample(id="a"))
    assert sample.answer is None and sample.prompt


def test_unlabelled_copies_hold_no_answer() -> None:
    sample = open_task("extract", FIELDS).phrase(labelled(total="SECRET"))
    assert "SECRET" not in repr(sample.unlabelled())


@pytest.mark.parametrize(
    ("settings", "fields", "words"),
    [
        (FIELDS, {"totals": "9"}, "none of the recipe's fields is labelled"),
        (FIELDS, {"total": {"value": 9}}, "should be one value"),
        ({"n": "number"}, {"n": "nine"}, "cannot be read as number"),
        ({"n": "integer"}, {"n": "1.5"}, "cannot be read as integer"),
        ({"n": "number"}, {"n": "inf"}, "cannot be read as number"),
        ({"lines": {"type": "list", "items": {"price": "string"}}}, {"lines": "9.00"}, "list of objects"),
        ({"kind": {"type": "choice", "choices": ["food", "fuel"]}}, {"kind": "feul"}, "did you mean `fuel`"),
    ],
)
def test_labels_that_do_not_fit_name_the_row(settings: Any, fields: dict[str, Any], words: str) -> None:
    with pytest.raises(DataError, match=words) as caught:
        open_task("extract", settings).phrase(labelled(**fields))
    assert "labels.jsonl:3" in str(caught.value)


def test_an_unknown_task_or_type_is_refused() -> None:
    with pytest.raises(RecipeError, match="did you mean `extract`"):
        open_task("extrakt", FIELDS)
    with pytest.raises(RecipeError, match="'strin'"):
        open_task("extract", {"total": "strin"})


@pytest.mark.parametrize(
    "text",
    [
        '{"total": "9.00"}',
        '```json\n{"total": "9.00"}\n```',
        'Here it is: {"total": "9.00"} as you asked.',
        '[{"total": "9.00"}]',
        '{"total": "9.00"} {"total": "1.00"}',
        '{"total": "9.00"} and } more',
    ],
)
def test_replies_are_read_through_common_dressings(text: str) -> None:
    assert open_task("extract", FIELDS).parse(text).fields == {"total": "9.00"}


@pytest.mark.parametrize("text", ["", "nine", '{"total": ', '{"total": NaN}', "{" * 5000, '["a"]'])
def test_unreadable_replies_say_why(text: str) -> None:
    reply = open_task("extract", FIELDS).parse(text)
    assert reply.problem and not reply.fields


@pytest.mark.slow
@given(
    st.dictionaries(st.text(), st.text() | st.integers() | st.none()),
    st.text(alphabet=st.characters(exclude_characters="{}")),
)
def test_any_object_after_any_preamble_is_found(value: dict[str, Any], preamble: str) -> None:
    assert read_object(preamble + json.dumps(value)).fields == value


@given(st.text())
def test_reading_never_raises(text: str) -> None:
    read_object(text)


def test_answer_keeps_question_and_answer() -> None:
    sample = Sample(id="a", prompt="Is it broken?", answer=" yes ", source="q.jsonl:1")
    task = open_task("answer")
    assert task.phrase(sample).prompt == "Is it broken?" and task.labels(sample) == {"answer": "yes"}
    with pytest.raises(DataError, match=r"q\.jsonl:2: no question"):
        task.phrase(Sample(id="b", source="q.jsonl:2"))


def test_transcripts_become_rows_from_top_to_bottom() -> None:
    words = [
        {"quad": [300, 102, 360, 102, 360, 118, 300, 118], "text": "9.00"},
        {"quad": [10, 100, 90, 100, 90, 116, 10, 116], "text": "TOTAL"},
        {"quad": [10, 20, 200, 20, 200, 40, 10, 40], "text": "BOOK SHOP"},
    ]
    sample = Sample(id="a", fields={"total": "9.00"}, extra={"ocr": words})
    samples = [sample, Sample(id="b")]
    phrased = [as_conversation(replace(each, answer="{}")) for each in samples]
    same, (reading,) = with_transcriptions(phrased, samples, 1.0, 0, as_turns=False)
    assert same == tuple(phrased)
    assert reading.id == "a#read" and reading.answer == "BOOK SHOP\nTOTAL 9.00" and not reading.sample.fields
    (asked, alone), none = with_transcriptions(phrased, samples, 1.0, 0, as_turns=True)
    assert not none and alone == phrased[1] and asked.answer == "{}"
    assert [(turn.question, turn.answer) for turn in asked.further] == [(reading.prompt, reading.answer)]
    assert not asked.unlabelled().further


def test_a_share_of_the_transcripts_is_chosen_by_seed() -> None:
    word = [{"quad": [0, 0, 9, 0, 9, 9, 0, 9], "text": "x"}]
    samples = [Sample(id=str(number), extra={"ocr": word}) for number in range(40)]
    phrased = list(map(as_conversation, samples))
    readings = [with_transcriptions(phrased, samples, 0.25, seed, as_turns=False)[1] for seed in (0, 0, 1)]
    chosen = [{reading.id for reading in each} for each in readings]
    assert len(chosen[0]) == 10 and chosen[0] == chosen[1] != chosen[2]


def test_labels_are_learned_as_they_are_written(tmp_path: Path) -> None:
    row = '{"file_name": "a.png", "total": 10.50, "paid": true, "code": "007", "rate": "2,50", "sum": "1,250.5"}\n'
    (tmp_path / "metadata.jsonl").write_text(row)
    Image.new("RGB", (60, 60)).save(tmp_path / "a.png")
    (sample,) = read_samples(tmp_path).samples
    texts = open_task("extract", ["total", "paid", "code", "rate"])
    assert texts.labels(sample) == {"total": "10.50", "paid": "true", "code": "007", "rate": "2,50"}
    assert open_task("extract", {"sum": "number"}).labels(sample) == {"sum": 1250.5}
    with pytest.raises(DataError, match="cannot be read as number"):
        open_task("extract", {"rate": "number"}).labels(sample)
