"""Metrics: published values, hand-computed distances, and the properties that hold for any input."""

from __future__ import annotations

import json
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rapidfuzz import fuzz
from rapidfuzz.distance import Levenshtein

from mllm_tailor.core.errors import RecipeError, RunError
from mllm_tailor.core.sample import Prediction
from mllm_tailor.scoring import METRICS, Scores, compare, score
from mllm_tailor.scoring.metrics.anls import similarity
from mllm_tailor.scoring.metrics.answers import words
from mllm_tailor.scoring.metrics.strings import published_similarity
from mllm_tailor.scoring.metrics.tree_edit import accuracy, tree, tree_distance, weight
from mllm_tailor.scoring.text import as_text, normalise
from mllm_tailor.tasks.values import read_amount

FIELDS = ("company", "date", "address", "total")
RECEIPT = {"company": "ABC SDN BHD", "date": "13/03/2018", "address": "12, JALAN TAMPOI", "total": "72.00"}

values = st.one_of(st.text(max_size=12), st.none(), st.integers(-999, 999), st.booleans())
answers = st.dictionaries(st.sampled_from(FIELDS), values, max_size=4)
text_answers = st.dictionaries(st.sampled_from(FIELDS), st.text(max_size=12), max_size=4)
text_labels = st.fixed_dictionaries(dict.fromkeys(FIELDS, st.text(max_size=12)))
labels_of = st.fixed_dictionaries(dict.fromkeys(FIELDS, values))


def one(metric: str, label: dict, fields: dict, problem: str | None = None, kinds: dict | None = None) -> float:
    return score([label], [Prediction("1", "", fields, problem=problem)], [metric], FIELDS, kinds)[metric].value


# --- the published similarity


@pytest.mark.parametrize(
    ("label", "predicted", "value"),
    [("13/03/2018", "13/03/2016", 90), ("72.00", "67.92", 40), ("", "", 100), ("abc", "", 0), ("ABC", "abc", 0)],
)
def test_published_similarity_equals_the_measured_values(label: str, predicted: str, value: int) -> None:
    assert published_similarity(label, predicted) == value


@pytest.mark.slow
@given(st.lists(st.tuples(text_labels, text_answers), min_size=1, max_size=6))
def test_fuzzy_is_the_published_formula(pairs: list[tuple[dict, dict]]) -> None:
    def published(label: dict, fields: dict) -> float:
        return sum(round(fuzz.ratio(label[key], fields.get(key, ""))) for key in label) / len(label)

    predictions = [Prediction(str(place), "", fields) for place, (_, fields) in enumerate(pairs)]
    measured = score([label for label, _ in pairs], predictions, ["fuzzy"], FIELDS)["fuzzy"].value
    assert measured == pytest.approx(sum(published(*pair) for pair in pairs) / len(pairs), abs=1e-9)


def test_numbers_are_compared_by_value() -> None:
    for metric in ("fuzzy", "exact", "normalised_exact", "f1", "anls"):
        for kind in ("number", "integer"):
            for predicted in (12, 12.0, "12", "12.0", " 12.00"):
                assert one(metric, {"total": 12.0}, {"total": predicted}, kinds={"total": kind}) == 100, (
                    metric,
                    predicted,
                )
            assert one(metric, {"total": 12.0}, {"total": 12.5}, kinds={"total": kind}) < 100
        assert one(metric, {"total": "12"}, {"total": "12.0"}) < 100  # text is compared as written


def test_fuzzy_counts_only_labelled_keys() -> None:
    assert one("fuzzy", {"total": "9.00"}, {"total": "9.00", "company": "invented"}) == 100


# --- F1, ANLS, tree edit, answers, errors: by hand


def test_f1_by_hand() -> None:
    labels = [RECEIPT, RECEIPT | {"address": ""}]
    predictions = [
        Prediction("1", "", RECEIPT | {"total": "72.0"}),  # 3 of 4 submitted, 4 true
        Prediction("2", "", {"company": "ABC SDN BHD", "date": ""}),  # 1 of 1 submitted, 3 true
    ]
    precision, recall = 4 / 5, 4 / 7
    measured = score(labels, predictions, ["f1"], FIELDS)["f1"]
    assert measured.value == pytest.approx(100 * 2 * precision * recall / (precision + recall))
    assert measured.by_field == {"company": 100, "date": pytest.approx(100 * 2 / 3), "address": 100, "total": 0}


def test_f1_is_exact_about_case_and_spaces() -> None:
    assert one("f1", {"total": "9.00"}, {"total": "9.00 "}) == 0
    assert one("f1", {"total": ""}, {}) == 0  # nothing true, nothing said: no count to be right about


@pytest.mark.parametrize(
    ("answer", "predicted", "value"),
    [("Paris", " paris ", 1.0), ("abcd", "abxx", 0.5), ("abcd", "axxx", 0.0), ("", "", 1.0), ("a", "", 0.0)],
)
def test_anls_by_hand(answer: str, predicted: str, value: float) -> None:
    assert similarity(answer, predicted) == pytest.approx(value)


def test_anls_takes_the_best_of_several_accepted_answers() -> None:
    assert score([{"answer": ["x-ray", "xray"]}], [Prediction("1", "", {"answer": "xray"})], ["anls"], ["answer"])[
        "anls"
    ].value == pytest.approx(100)


@pytest.mark.parametrize(
    ("label", "predicted", "value"),
    [
        ({"a": "12345", "b": "1234"}, {"b": "1234", "a": "12345"}, 1.0),  # key order is nothing
        ({"a": "12345", "b": "1234"}, {}, 0.0),
        ({"a": "12345", "b": "1234"}, {"a": "12x45", "b": "1234"}, 1 - 1 / 11),  # 11: two keys, nine characters
        ({"a": "12345", "b": "1234"}, {"a": "12345"}, 1 - 5 / 11),
        ({"a": "12345", "b": "1234"}, {"a": "12345", "b": "1234", "c": "xy"}, 1 - 3 / 11),
        ({"a": "1"}, {"a": "987654321"}, 0.0),  # never below zero
        ({"a": ""}, {}, 1.0),
        ({"a": ""}, {"a": "x"}, 0.0),
        ({"items": [{"n": "ab"}, {"n": "cd"}]}, {"items": [{"n": "ab"}]}, 1 - 4 / 9),  # an entry, a key, two letters
    ],
)
def test_tree_edit_by_hand(label: dict, predicted: dict, value: float) -> None:
    assert accuracy(label, predicted) == pytest.approx(value)


# Donut's definition, written anew from Kim et al. 2022, section 3.2.2, and its evaluation of CORD: values are
# lists of strings, objects lists of objects, empty ones vanish; the plain recursion over forests gives the distance.

Forest = tuple[tuple[str, tuple], ...]
scalars = st.one_of(st.text("ab1", max_size=2), st.integers(1, 30), st.none())
objects = st.recursive(
    st.dictionaries(st.sampled_from(["a", "b", "cc"]), scalars, max_size=2),
    lambda inner: st.dictionaries(
        st.sampled_from(["a", "b", "cc"]), st.one_of(inner, st.lists(inner, max_size=2), st.lists(scalars, max_size=2)),
        max_size=2,
    ),
    max_leaves=4,
)  # fmt: skip


def donut_forest(value: object) -> Forest:
    """The children of a node: subtrees for objects, leaves for values."""
    if isinstance(value, dict):
        keys = sorted(value, key=lambda key: (len(key), key))
        nodes = ((key, donut_forest(value[key] if isinstance(value[key], list) else [value[key]])) for key in keys)
        return tuple(node for node in nodes if node[1])
    entries = []
    for item in value:  # type: ignore[attr-defined]
        if isinstance(item, dict):
            inner = donut_forest(item)
            entries += [("<subtree>", inner)] if inner else []
        elif item is not None and str(item).strip():
            entries.append(("<leaf>" + str(item).strip(), ()))
    return tuple(entries)


@cache
def forest_distance(first: Forest, second: Forest) -> int:
    def cost(label: str) -> int:
        return len(label) - 6 if label.startswith("<leaf>") else 1

    def change(left: str, right: str) -> int:
        leaves = [label.startswith("<leaf>") for label in (left, right)]
        if all(leaves):
            return Levenshtein.distance(left[6:], right[6:])
        return 1 + cost(left if leaves[0] else right) if any(leaves) else int(left != right)

    if not first and not second:
        return 0
    options = []
    if first:
        *rest, (label, children) = first
        options.append(forest_distance((*rest, *children), second) + cost(label))
    if second:
        *others, (other, grandchildren) = second
        options.append(forest_distance(first, (*others, *grandchildren)) + cost(other))
    if first and second:
        pair = forest_distance(children, grandchildren) + change(label, other)
        options.append(forest_distance(tuple(rest), tuple(others)) + pair)
    return min(options)


@pytest.mark.slow
@given(objects, objects)
@settings(max_examples=150)
def test_tree_edit_equals_donuts_definition(label: dict, predicted: dict) -> None:
    truth, answer = donut_forest(label), donut_forest(predicted)
    if truth:
        published = max(0.0, 1 - forest_distance(answer, truth) / forest_distance((), truth))
        assert accuracy(label, predicted) == pytest.approx(published)
    else:
        assert accuracy(label, predicted) == float(not answer)


def test_a_lone_object_is_a_list_of_one() -> None:
    label = {"menu": {"nm": "TEA", "price": "2.00"}, "total": {"price": "2.00"}}
    wrapped = {"menu": [label["menu"]], "total": [label["total"]]}
    assert accuracy(label, wrapped) == accuracy(wrapped, label) == 1.0
    assert weight(tree(label)) == weight(tree(wrapped)) == 2 + 2 + 3 + 3 + 4 + 4  # keys, objects, inner keys, values


def test_tree_distance_moves_children_up_when_a_key_goes() -> None:
    assert tree_distance(tree({"a": {"b": "xy"}}), tree({"b": "xy"})) == 2  # the key and its object


def test_a_reply_nested_without_end_is_scored_and_does_not_crash() -> None:
    deep: object = "x"
    for _ in range(600):
        deep = [deep]
    for metric in METRICS:
        assert one(metric, RECEIPT, {"total": deep}) >= 0


def test_rates_by_hand() -> None:
    label = RECEIPT | {"address": ""}
    fields = {"company": "ABC", "date": "", "address": "SOMEWHERE"}
    assert one("absent_rate", label, fields) == pytest.approx(200 / 3)  # date and total, of three labelled
    assert one("invented_rate", label, fields) == 100
    assert one("parse_rate", label, {}, problem="no JSON object in the reply") == 0
    assert one("parse_rate", label, {}) == 100


def test_word_and_character_errors_by_hand() -> None:
    labels, said = [{"answer": "one two three"}, {"answer": "four"}], ["one too three four", "four"]
    predictions = [Prediction(str(place), "", {"answer": text}) for place, text in enumerate(said)]
    scores = score(labels, predictions, ["word_errors", "character_errors"], ["answer"])
    assert scores["word_errors"].value == pytest.approx(100 * 2 / 4)
    assert scores["character_errors"].value == pytest.approx(100 * 6 / 17)
    assert scores["word_errors"].better == "lower"


def test_accuracy_and_token_recall_by_hand() -> None:
    def value(metric: str, label: str, said: str) -> float:
        return score([{"answer": label}], [Prediction("1", "", {"answer": said})], [metric], ["answer"])[metric].value

    assert value("accuracy", "Yes", "yes.") == 100
    assert value("accuracy", "two", "2") == 100
    assert value("accuracy", "no", "yes") == 0
    assert value("token_recall", "the right lower lobe", "It is in the lower left lobe") == pytest.approx(200 / 3)
    assert words("don't, 1,000 X-rays") == ["dont", "1,000", "xrays"]


def test_insertions_count_where_the_label_is_empty() -> None:
    """As in the corpus rate of jiwer 3: all edits over all reference words, an empty reference included."""
    labels = [{"answer": ""}, {"answer": "a b c"}]
    predictions = [Prediction("0", "", {"answer": "two words"}), Prediction("1", "", {"answer": "a b"})]
    result = score(labels, predictions, ["word_errors"], ["answer"])["word_errors"]
    assert result.value == pytest.approx(100 * (2 + 1) / 3)
    assert result.by_field == {"answer": pytest.approx(result.value)}
    assert compare(*[Scores(("0", "1"), {"word_errors": result})] * 2)["word_errors"].difference.value == 0


# --- normalisation


@pytest.mark.parametrize(
    ("text", "amount"),
    [
        ("RM 9.00", "9.00"), ("$9", "9"), ("1.234,50 €", "1234.50"), ("1,234", "1234"), ("-5.00", "-5.00"),
        ("0.500", "0.500"), ("S$9.00", "9.00"), ("-$5.00", "-5.00"), ("$-5.00", "-5.00"), ("(9.00)", "-9.00"),
        (".50", "0.50"), ("R$ 9,00", "9.00"), ("US$1,000.00", "1000.00"), ("12 000,50 kr", "12000.50"),
        ("9.00 USD", "9.00"),
        ("Rs. 500", "500"), ("1'234.50 CHF", "1234.50"), ("9.00-", "-9.00"), ("\u22123.20", "-3.20"),
        ("1,234,567", "1234567"),
        ("¥1,200", "1200"), ("($1,234.50)", "-1234.50"), ("+4.00", "4.00"), ("EUR 12", "12"),
        ("Rp 12.000", "12000"), ("Rp. 75,000", "75000"),
    ],
)  # fmt: skip
def test_amounts(text: str, amount: str) -> None:
    assert str(read_amount(text)) == amount


@pytest.mark.parametrize(
    "text",
    [
        "12/01/2018",
        "",
        "nine",
        "1 of 2",
        "12 JAN 2018",
        "9.00 (incl. GST)",
        "5%",
        "INV1000",
        "ABC1000",
        "A 9",
        "-(9)",
        "--9",
        ".",
        "9 kg",
        "#12",
    ],
)
def test_what_is_no_amount(text: str) -> None:
    assert read_amount(text) is None


def test_normalised_exact_uses_the_kind_of_field() -> None:
    assert one("normalised_exact", {"total": "9.00"}, {"total": "RM9.00"}) == 0
    assert one("normalised_exact", {"total": "9.00"}, {"total": "RM9.00"}, kinds={"total": "amount"}) == 100
    assert one("normalised_exact", {"company": "Acme  Ltd"}, {"company": "ACME LTD"}) == 100
    assert one("normalised_exact", {"date": "12/01/2018"}, {"date": "12 JAN 2018"}, kinds={"date": "date"}) == 0


@given(st.text(st.characters(max_codepoint=0x24F)))
def test_normalising_twice_changes_nothing(text: str) -> None:
    assert normalise(normalise(text)) == normalise(text)
    assert normalise(normalise(text, "amount"), "amount") == normalise(text, "amount")


# --- properties of every metric

BEST = {"higher": 100.0, "lower": 0.0}
SYMMETRIC = ["fuzzy", "exact", "normalised_exact", "f1", "anls", "accuracy"]
UNBOUNDED = {"word_errors", "character_errors"}


@pytest.mark.slow
@pytest.mark.parametrize("metric", list(METRICS))
@given(label=labels_of)
@settings(max_examples=40)
def test_the_right_answer_gets_the_best_score(metric: str, label: dict) -> None:
    result = score([label], [Prediction("1", json.dumps(label), label)], [metric], FIELDS)[metric]
    assert result.count == 0 or result.value == pytest.approx(BEST[result.better])
    assert all(value == pytest.approx(BEST[result.better]) for value in result.by_field.values())


@pytest.mark.slow
@pytest.mark.parametrize("metric", list(METRICS))
@given(label=labels_of, fields=answers)
@settings(max_examples=40)
def test_scores_stay_within_bounds(metric: str, label: dict, fields: dict) -> None:
    value = one(metric, label, fields)
    assert value >= 0 and (metric in UNBOUNDED or value <= 100 + 1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("metric", SYMMETRIC)
@given(label=labels_of, fields=labels_of)
@settings(max_examples=40)
def test_symmetric_metrics_are_symmetric(metric: str, label: dict, fields: dict) -> None:
    assert one(metric, label, fields) == pytest.approx(one(metric, fields, label))


@pytest.mark.slow
@given(one=answers, other=answers)
def test_tree_distance_is_a_distance(one: dict, other: dict) -> None:
    first, second = tree(one), tree(other)
    assert tree_distance(first, second) == tree_distance(second, first)
    assert tree_distance(first, first) == 0
    assert tree_distance(tree({}), first) == weight(first)
    assert tree_distance(first, second) <= weight(first) + weight(second)


# --- scores


def test_scores_survive_json() -> None:
    labels = [RECEIPT, RECEIPT | {"total": ""}]
    predictions = [Prediction("a", "", RECEIPT), Prediction("b", "", {"total": "1/3"}, problem="broken")]
    scores = score(labels, predictions, list(METRICS), FIELDS)
    assert Scores.from_row(json.loads(json.dumps(scores.row()))) == scores


def test_per_sample_scores_line_up_with_ids_and_parts_add_up() -> None:
    predictions = [Prediction("a", "", RECEIPT), Prediction("b", "", {}), Prediction("c", "", {"total": "72.00"})]
    scores = score([RECEIPT] * 3, predictions, ["exact"], FIELDS)
    assert scores.ids == ("a", "b", "c")
    assert scores["exact"].per_sample == [100, 0, 25]
    assert scores.subset([1, 2])["exact"].value == pytest.approx(12.5)
    assert scores["exact"].by_field["total"] == pytest.approx(200 / 3)


def test_what_cannot_be_scored_is_an_error_that_says_so() -> None:
    with pytest.raises(RunError, match="1 labels but 0 predictions"):
        score([RECEIPT], [], ["fuzzy"], FIELDS)
    with pytest.raises(RecipeError, match="unknown metric `fuzy` — did you mean `fuzzy`"):
        score([RECEIPT], [Prediction("1", "")], ["fuzy"], FIELDS)


def test_numbers_and_nothing_as_text() -> None:
    assert [as_text(value) for value in (9.0, 9, 9.5, None, False, "9")] == ["9", "9", "9.5", "", "false", "9"]
