"""Line items: rows aligned by assignment, figures of rows and cells, columns, order; typed fields."""

from __future__ import annotations

import datetime
import io
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fixtures.pdfs import pdf
from hypothesis import given, settings
from hypothesis import strategies as st
from llguidance import LLMatcher, LLTokenizer
from rich.console import Console

from mllm_tailor.core.errors import DataError, RecipeError
from mllm_tailor.core.sample import Prediction, Sample
from mllm_tailor.data import read_samples
from mllm_tailor.data.field_types import guess_fields
from mllm_tailor.reporting.tables import gain_table
from mllm_tailor.scoring import compare, score
from mllm_tailor.scoring.assignment import best_alignment, best_assignment
from mllm_tailor.synthetic.folder import draw_folder_with_items
from mllm_tailor.tasks.extract import Extract
from mllm_tailor.tasks.values import format_amount, read_date

FIGURES = ("row_precision", "row_recall", "row_f1", "cell_precision", "cell_recall", "cell_f1")
KINDS = {"items": "list", "items.price": "amount", "items.name": "string"}

# A receipt in the shape of CORD: nested objects, some cells absent, an object where others have a list.
CORD = {
    "menu": [
        {"nm": "Nasi Campur Bali", "cnt": "1 x", "price": "75,000"},
        {"nm": "Bbk Bengil Nasi", "cnt": "1 x", "price": "125,000"},
        {"nm": "MilkShake Strawberry", "cnt": "1 x", "price": "37,000"},
    ],
    "total": {"total_price": "1,591,600", "cashprice": "0"},
}


def rows(*prices: str) -> list[dict[str, str]]:
    return [{"name": f"item {price}", "price": price} for price in prices]


def figures(label: Any, predicted: Any, kinds: dict[str, str] = KINDS) -> dict[str, float]:
    scores = score([{"items": label}], [Prediction("1", "", {"items": predicted})], FIGURES, ["items"], kinds)
    return {name: round(scores[name].value, 3) for name in FIGURES}


# --- assignment


@given(st.integers(0, 4), st.integers(0, 4), st.randoms(use_true_random=False))
@settings(max_examples=60)
def test_the_assignment_is_the_best_of_all(height: int, width: int, random: Any) -> None:
    similarity = np.array([[random.choice([0, 0, 1, 2, 2.5]) for _ in range(width)] for _ in range(height)])
    similarity = similarity.reshape(height, width)
    pairs = best_assignment(similarity)
    small, large = min(height, width), max(height, width)
    table = similarity if height <= width else similarity.T
    best = max(sum(table[i, order[i]] for i in range(small)) for order in itertools.permutations(range(large), small))
    assert sum(similarity[pair] for pair in pairs) == pytest.approx(best)
    for side in zip(*pairs, strict=True):
        assert len(set(side)) == len(side)


@given(st.integers(1, 4), st.integers(1, 4), st.randoms(use_true_random=False))
@settings(max_examples=60)
def test_the_alignment_is_the_best_in_order(height: int, width: int, random: Any) -> None:
    similarity = np.array([[random.choice([0, 0, 1, 2, 2.5]) for _ in range(width)] for _ in range(height)])
    pairs = best_alignment(similarity)
    assert pairs == sorted(pairs) and [b for _, b in pairs] == sorted(b for _, b in pairs)
    best = max(
        sum(similarity[i, j] for i, j in zip(first, second, strict=True))
        for size in range(min(height, width) + 1)
        for first in itertools.combinations(range(height), size)
        for second in itertools.combinations(range(width), size)
    )
    assert sum(similarity[pair] for pair in pairs) == pytest.approx(best)


# --- figures by hand


def test_one_wrong_cell_costs_one_cell() -> None:
    label = [{"a": "1", "b": "2", "c": "3"}, {"a": "4", "b": "5", "c": "6"}, {"a": "7", "b": "8", "c": "9"}]
    wrong = [dict(row) for row in label]
    wrong[1]["b"] = "x"
    result = figures(label, wrong)
    assert result["cell_f1"] == pytest.approx(100 * 8 / 9, abs=0.01)
    assert result["row_f1"] == pytest.approx(100 * 2 / 3, abs=0.01)


def test_missing_and_invented_rows_cost_recall_and_precision() -> None:
    result = figures(rows("1.00", "2.00", "3.00", "4.00"), rows("2.00", "4.00", "9.00"))
    assert result["row_precision"] == pytest.approx(66.667) and result["row_recall"] == 50
    assert result["row_f1"] == pytest.approx(100 * 2 * 2 / 7, abs=0.01)
    assert figures(rows("1.00"), []) == {"row_precision": 0, "row_recall": 0, "row_f1": 0} | {
        "cell_precision": 0, "cell_recall": 0, "cell_f1": 0
    }  # fmt: skip
    assert figures([], rows("1.00"))["row_precision"] == 0
    assert (
        score([{"items": []}], [Prediction("1", "", {"items": []})], ["row_f1"], ["items"], KINDS)["row_f1"].count == 0
    )


def test_order_counts_only_where_it_is_declared() -> None:
    label, swapped = rows("1.00", "2.00", "3.00"), rows("3.00", "1.00", "2.00")
    assert figures(label, swapped)["row_f1"] == 100
    assert figures(label, swapped, KINDS | {"items": "ordered_list"})["row_f1"] == pytest.approx(66.667)


def test_cells_are_normalised_by_their_kind() -> None:
    assert figures([{"name": "Tea", "price": "2.00"}], [{"name": "TEA ", "price": "RM2"}])["row_f1"] == 100
    assert figures([{"name": "Tea", "price": "2.00"}], [{"name": "TEA ", "price": "RM3"}])["cell_f1"] == 50


def test_cells_that_are_empty_in_both_are_not_counted() -> None:
    assert figures([{"a": "1", "b": ""}], [{"a": "1", "b": None}])["cell_f1"] == 100
    assert figures([{"a": "1", "b": ""}], [{"a": "1", "b": "x"}])["cell_precision"] == 50


def test_columns_are_scored_and_compared() -> None:
    label = rows("1.00", "2.00")
    worse = [label[0], {"name": "item 2.00", "price": "7.00"}]
    scores = [
        score(
            [{"items": label}] * 3,
            [Prediction(str(i), "", {"items": said}) for i in range(3)],
            FIGURES,
            ["items"],
            KINDS,
        )
        for said in (worse, label)
    ]
    assert scores[0]["cell_f1"].by_field == {"items": 75, "items.name": 100, "items.price": 50}
    assert scores[0]["row_f1"].by_field == {"items": 50}
    gains = compare(*scores)["cell_f1"]
    assert gains.by_field["items.price"].difference.value == 50
    stream = io.StringIO()
    Console(file=stream, width=80).print(gain_table(gains.by_field, "cell f1 by field"))
    assert "items.price" in stream.getvalue()


def test_rows_shaped_as_in_cord() -> None:
    reply = {
        "menu": [
            CORD["menu"][2],
            {"nm": "Nasi Campur Bali", "price": "75,000"},
        ],  # another order, a cell and a row short
        "total": [{"total_price": "1.591.600", "cashprice": "0"}],  # a list where the label has a lone object
    }
    scores = score([CORD], [Prediction("1", "", reply)], FIGURES, ["menu", "total"], {"total.total_price": "amount"})
    assert scores["cell_recall"].by_field["menu"] == pytest.approx(100 * 5 / 9)
    assert scores["cell_precision"].by_field["menu"] == 100
    assert scores["row_recall"].by_field == {"menu": pytest.approx(100 / 3), "total": 100}
    assert scores["cell_f1"].by_field["menu.cnt"] == pytest.approx(100 * 2 / 4)


def test_replies_that_are_no_table_score_nothing_and_crash_nothing() -> None:
    for reply in ("text", 5, None, {"name": "x"}, ["a"], [[1]], [{"name": {"deep": [1]}}]):
        assert 0 <= figures(rows("1.00"), reply)["cell_f1"] < 100


@pytest.mark.slow
def test_a_thousand_rows_are_aligned() -> None:
    many = rows(*(f"{number}.00" for number in range(300)))
    assert figures(many, many[::-1])["row_f1"] == 100


# --- typed fields

TYPED = {
    "date": {"format": "iso"},
    "total": {"decimals": 2},
    "code": {"pattern": "[A-Z]{2}-[0-9]+"},
    "items": {"items": {"name": "string", "price": {"decimals": 2}}},
}


def test_typed_labels_and_replies_are_normalised_alike() -> None:
    task = Extract(TYPED)
    printed = {
        "date": "30 DEC 2017", "total": "RM1,234.5", "code": "AB-1", "items": [{"name": "Tea", "price": "$2"}]
    }  # fmt: skip
    labels = task.labels(Sample("a", fields=printed))
    assert labels == {
        "date": "2017-12-30", "total": "1234.50", "code": "AB-1", "items": [{"name": "Tea", "price": "2.00"}]
    }  # fmt: skip
    assert dict(task.parse(json.dumps(printed)).fields) == labels
    assert dict(task.parse(json.dumps(labels)).fields) == labels
    assert task.parse('{"total": 12, "date": "someday"}').fields == {"total": "12.00", "date": "someday"}


def test_the_plain_form_stays_as_printed() -> None:
    task = Extract({"date": "date", "total": "amount"})
    assert task.labels(Sample("a", fields={"date": "30 DEC 2017", "total": "RM9"})) == {
        "date": "30 DEC 2017", "total": "RM9"
    }  # fmt: skip


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"date": "12/01/2018"}, "f:1: field `date`: '12/01/2018' is an ambiguous date — set `order`"),
        ({"date": "soon"}, "cannot be read as a date"),
        ({"total": "nine"}, "is no amount"),
        ({"total": "9.1234"}, "has more than 2 decimals"),
        ({"code": "x"}, "does not match"),
        ({"items": [{"price": "x"}]}, "field `items`.price: 'x' is no amount"),
    ],
)
def test_labels_that_do_not_fit_name_their_row(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError) as caught:
        Extract(TYPED).labels(Sample("a", fields=fields, source="f:1"))
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "field",
    [{"type": "string", "decimals": 2}, {"type": "amount", "format": "iso"}, {"pattern": "("}, {"order": "dmy"},
     {"pattern": "(?=a)b"}, {"type": "string", "ordered": True}, {"type": "number", "pattern": "1"}],
)  # fmt: skip
def test_forms_that_make_no_sense_are_refused(field: dict[str, Any]) -> None:
    with pytest.raises(RecipeError):
        Extract({"x": field})


def test_the_grammar_allows_exactly_the_form() -> None:
    tokenizer = LLTokenizer("byte")
    grammar = LLMatcher.grammar_from_json_schema(json.dumps(Extract(TYPED).schema()))

    def allowed(**changes: Any) -> bool:
        reply = {"date": "2018-03-13", "total": "9.00", "code": "AB-12", "items": [{"name": "x", "price": "1.50"}]}
        matcher, tokens = LLMatcher(tokenizer, grammar), tokenizer.tokenize_str(json.dumps(reply | changes))
        return matcher.try_consume_tokens(tokens) == len(tokens) and matcher.is_accepting()

    assert allowed() and allowed(date="") and allowed(total="-0.50") and allowed(items=[])
    refused = [
        {"date": "13/03/2018"}, {"date": "2018-13-01"}, {"total": "9.0"}, {"total": "RM9.00"}, {"total": "007.00"},
        {"code": "AB"}, {"items": [{"name": "x", "price": "1.5"}]},
    ]  # fmt: skip
    assert not any(allowed(**changes) for changes in refused)


@given(st.dates(min_value=datetime.date(1970, 1, 1), max_value=datetime.date(2069, 12, 31)))
def test_dates_are_read_in_every_order(date: Any) -> None:
    for order, form in (("dmy", "%d/%m/%Y"), ("mdy", "%m-%d-%Y"), ("ymd", "%Y.%m.%d"), ("dmy", "%d.%m.%y")):
        assert read_date(date.strftime(form), order) == date
    for form in ("%d %b %Y", "%d-%B-%Y", "%B %d, %Y", "%Y-%m-%d"):
        assert read_date(date.strftime(form)) == date
    if date.day > 12:
        assert read_date(date.strftime("%d/%m/%Y")) == date


@given(st.decimals(min_value=-(10**9), max_value=10**9, places=2))
def test_amounts_in_their_form_stay(amount: Any) -> None:
    text = f"{amount:.2f}"
    text = "0.00" if text == "-0.00" else text
    assert format_amount(text, 2) == text
    assert format_amount(f"RM {abs(amount):,.2f}", 2) == f"{abs(amount):.2f}"


@pytest.mark.parametrize(
    ("text", "decimals", "written"),
    [
        ("9.005", 2, None), ("RM 9.005", 2, None), ("1.000", 2, "1.00"), ("9.005", 3, "9.005"), ("75.000", 0, "75000"),
        ("1,005", 2, "1005.00"), ("1.234.567", 2, "1234567.00"), ("1.234,50", 2, "1234.50"),
    ],
)  # fmt: skip
def test_a_lone_point_is_the_decimal_one_where_decimals_are_expected(
    text: str, decimals: int, written: str | None
) -> None:
    assert format_amount(text, decimals) == written
    task = Extract({"total": {"decimals": decimals}})
    assert task.parse(json.dumps({"total": text})).fields == {"total": written or text}
    if written is None:
        with pytest.raises(DataError, match=rf"row:1: field `total`: '{text}' has more than {decimals} decimals"):
            task.labels(Sample("1", fields={"total": text}, source="row:1"))


def test_a_table_over_several_pages_is_one_reply_with_every_row(tmp_path: Path) -> None:
    """All pages of a document are shown in one conversation, and the one reply holds the rows of all."""
    (tmp_path / "bill.pdf").write_bytes(pdf(pages=3))
    items = [{"name": f"item {number}", "price": f"{number}.00"} for number in range(60)]
    row = {"file_name": "bill.pdf", "items": items}
    (tmp_path / "metadata.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    sample = read_samples(tmp_path).samples[0]
    assert [media.page for media in sample.media] == [0, 1, 2]

    with pytest.raises(DataError, match=r"60 entries.*raise `max_items`"):  # 50 unless the recipe states more
        Extract({"items": {"type": "list", "items": {"name": "string", "price": "amount"}}}).labels(sample)
    (guess,) = guess_fields([sample])
    task = Extract({"items": guess.spec()})  # as `tailor init` proposes it
    conversation = task.phrase(sample)
    assert len(conversation.media) == 3 and task.labels(sample)["items"] == items
    assert conversation.answer is not None and task.parse(conversation.answer).fields["items"] == items
    matcher = LLMatcher(LLTokenizer("byte"), LLMatcher.grammar_from_json_schema(json.dumps(task.schema())))
    tokens = LLTokenizer("byte").tokenize_str(conversation.answer)
    assert matcher.try_consume_tokens(tokens) == len(tokens) and matcher.is_accepting()
    scores = score([task.labels(sample)], [Prediction("1", "", {"items": items[:40]})], FIGURES, ["items"], task.kinds)
    assert scores["row_recall"].value == pytest.approx(100 * 40 / 60)  # the rows of a page that is left out are missed


@pytest.mark.slow
def test_drawn_receipts_with_line_items(tmp_path: Path) -> None:
    draw_folder_with_items(tmp_path, 6, 2, seed=1)
    samples = read_samples(tmp_path).samples
    guesses = {guess.name: guess.spec() for guess in guess_fields(samples)}
    task = Extract(guesses)
    assert guesses["items"]["type"] == "list" and {"cell_f1", "cell_precision", "row_f1"} <= set(task.metrics)
    labels = [task.labels(sample) for sample in samples]
    for sample, label in zip(samples, labels, strict=True):
        printed = " ".join(line["text"] for line in sample.extra["ocr"])
        assert label["items"] and all(cell in printed for row in label["items"] for cell in row.values())
    swapped = [
        Prediction(s.id, "", {**label, "items": label["items"][::-1]}) for s, label in zip(samples, labels, strict=True)
    ]
    scores = score(labels, swapped, FIGURES, task.field_names, task.kinds)
    assert all(scores[name].value == 100 for name in FIGURES)
    dearer = [
        Prediction(s.id, "", {"items": [{**row, "amount": "0.01"} for row in label["items"]]})
        for s, label in zip(samples, labels, strict=True)
    ]
    scores = score(labels, dearer, FIGURES, task.field_names, task.kinds)
    assert scores["row_f1"].value == 0 and scores["cell_f1"].by_field["items.name"] == 100
    assert scores["cell_f1"].by_field["items.amount"] == 0


def test_objects_have_typed_columns_too() -> None:
    task = Extract({"total": {"fields": {"sum": {"decimals": 2}, "due": {"format": "iso", "order": "dmy"}}}})
    assert task.kinds == {"total": "object", "total.sum": "amount", "total.due": "date"}
    labels = task.labels(Sample("a", fields={"total": {"sum": "RM 5", "due": "01/02/2018"}}))
    assert labels == {"total": {"sum": "5.00", "due": "2018-02-01"}}
    assert task.parse('{"total": {"sum": 5, "due": "1.2.2018"}}').fields == labels
