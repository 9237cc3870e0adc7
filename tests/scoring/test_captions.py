"""ROUGE-L, BLEU and CIDEr-D: values worked out by hand, and what holds for any texts."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mllm_tailor.core.sample import Prediction
from mllm_tailor.scoring import score
from mllm_tailor.scoring.metrics.captions import Rarity, bleu, cider, rouge_l, words
from mllm_tailor.scoring.metrics.meteor import common_runs, meteor, stem

sentences = st.lists(st.sampled_from(["a", "pan", "is", "hot", "stir", "rice"]), max_size=9)
CAT = words("The cat is on the mat.")
METRICS = ["rouge_l", "bleu", "cider", "meteor"]


def scored(labels: list[object], said: list[str]) -> dict[str, float]:
    predictions = [Prediction(str(place), text, {"caption": text}) for place, text in enumerate(said)]
    return score([{"caption": label} for label in labels], predictions, METRICS, ["caption"]).values()


def test_rouge_l_by_hand() -> None:
    precision, recall = 4 / 5, 4 / 6  # the cat on mat
    expected = (1 + 1.44) * precision * recall / (recall + 1.44 * precision)
    assert rouge_l(CAT, words("the cat on a mat")) == pytest.approx(expected)
    assert rouge_l(["a"], ["b"]) == rouge_l(["a"], []) == 0


def test_bleu_by_hand() -> None:
    reference, said = CAT, words("the cat the cat")
    hits = (3 / 4) * (2 / 4) * (1 / 3) * (1 / 2)  # `cat` counts once, as in the reference; one added from pairs on
    assert bleu([reference], said) == pytest.approx(hits**0.25 * math.exp(1 - 6 / 4))
    assert bleu([reference, said], said) == pytest.approx(1)
    assert bleu([reference], []) == bleu([reference], ["dog"]) == 0


def test_cider_by_hand() -> None:
    corpus = [[words("a b c d e")], [words("a x y z w")]]  # `a` stands in all texts and tells nothing
    rarity = Rarity.of(corpus)
    assert cider(corpus[0], corpus[0][0], rarity) == pytest.approx(1)
    alone, pairs = 2 / (math.sqrt(4) * math.sqrt(3)), 1 / (math.sqrt(4) * math.sqrt(2))
    assert cider(corpus[0], words("b c q"), rarity) == pytest.approx((alone + pairs) / 4 * math.exp(-4 / 72))
    assert cider(corpus[0], ["a"], rarity) == 0


def test_meteor_by_hand() -> None:
    said = words("on the mats sat the cat")  # reference: the cat is on the mat
    assert sorted(common_runs(list(map(stem, CAT)), list(map(stem, said)))) == [2, 3]
    precision, recall, runs = 5 / 6, 5 / 6, 2
    expected = 10 * precision * recall / (recall + 9 * precision) * (1 - 0.5 * (runs / 5) ** 3)
    assert meteor(CAT, said) == pytest.approx(expected)
    assert meteor(["a"], ["b"]) == meteor(["a"], []) == 0 and meteor(["a"], ["a"]) == 1


@pytest.mark.parametrize(
    ("word", "expected"),
    [  # the examples of Porter's paper, a few of each step
        *[("caresses", "caress"), ("ponies", "poni"), ("cats", "cat"), ("feed", "feed"), ("agreed", "agre")],
        *[
            ("plastered", "plaster"),
            ("bled", "bled"),
            ("motoring", "motor"),
            ("sing", "sing"),
            ("conflated", "conflat"),
        ],
        *[("hopping", "hop"), ("falling", "fall"), ("hissing", "hiss"), ("filing", "file"), ("failing", "fail")],
        *[("happy", "happi"), ("sky", "sky"), ("relational", "relat"), ("rational", "ration"), ("digitizer", "digit")],
        *[("vietnamization", "vietnam"), ("predication", "predic"), ("operator", "oper"), ("hopefulness", "hope")],
        *[("triplicate", "triplic"), ("formative", "form"), ("electrical", "electr"), ("goodness", "good")],
        *[("revival", "reviv"), ("allowance", "allow"), ("airliner", "airlin"), ("adjustable", "adjust")],
        *[("replacement", "replac"), ("adoption", "adopt"), ("effective", "effect"), ("bowdlerize", "bowdler")],
        *[("probate", "probat"), ("rate", "rate"), ("cease", "ceas"), ("controll", "control"), ("roll", "roll")],
    ],
)
def test_stems_are_those_of_the_paper(word: str, expected: str) -> None:
    assert stem(word) == expected


def test_a_label_may_accept_several_texts() -> None:
    found = scored([["stir the rice well", "mix it in a pan"], "heat the big pan now"], ["Mix it in a pan!", "burn"])
    assert found["rouge_l"] == found["bleu"] == pytest.approx(50)
    assert found["cider"] == pytest.approx(25)  # half of the first sample's two texts, nothing of the second


def test_labels_without_words_or_all_alike_take_no_part() -> None:
    predictions = [Prediction("0", "", {"caption": "a pan"}), Prediction("1", "", {"caption": "a pan"})]
    group_by_length = score([{"caption": "a pan"}] * 2, predictions, METRICS, ["caption"])
    assert group_by_length["cider"].count == 0 and group_by_length["rouge_l"].value == 100
    assert score([{"caption": "?!"}] * 2, predictions, METRICS, ["caption"])["bleu"].count == 0


@given(reference=sentences.filter(bool), said=sentences)
def test_every_measure_lies_between_nothing_and_the_reference_itself(reference: list[str], said: list[str]) -> None:
    rarity = Rarity.of([[reference], [["other", "words"]]])
    for measure in (rouge_l, meteor, lambda one, two: bleu([one], two), lambda one, two: cider([one], two, rarity)):
        assert -1e-9 <= measure(reference, said) <= measure(reference, reference) + 1e-9 <= 1 + 1e-8


@given(st.text())
def test_words_of_any_text_have_no_spaces_and_no_capitals(text: str) -> None:
    assert all(word == word.casefold() and not word.isspace() for word in words(text))
