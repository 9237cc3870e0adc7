"""What is worth labelling: doubtful samples, unlike the labelled ones and each other."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from mllm_tailor.scoring.acquisition import rank_by_worth

NONE = np.empty((0, 4))


def test_copies_of_one_hard_page_are_chosen_once() -> None:
    rng = np.random.default_rng(0)
    hard = np.tile(rng.normal(size=4), (10, 1)) + 0.01 * rng.normal(size=(10, 4))
    others = rng.normal(size=(10, 4))
    doubt = np.r_[np.full(10, 2.0), np.full(10, 1.0)]
    chosen = [choice.index for choice in rank_by_worth(doubt, np.r_[hard, others], NONE, 5)]
    assert chosen[0] < 10 and sum(index < 10 for index in chosen) == 1


def test_what_is_read_without_doubt_comes_last_however_odd_it_is() -> None:
    features = np.eye(4)
    ranked = rank_by_worth(np.array([0.0, 1.0, 2.0, 0.5]), features, NONE)
    assert [choice.index for choice in ranked] == [2, 1, 3, 0] and ranked[-1].worth == 0


def test_labelled_samples_push_their_like_back() -> None:
    features = np.array([[1.0, 0, 0, 0], [0, 1.0, 0, 0], [0, 0, 1.0, 0]])
    first = rank_by_worth(np.ones(3), features, features[:1])[0]
    last = rank_by_worth(np.ones(3), features, features[:1])[-1]
    assert first.index in (1, 2) and (last.index, round(last.distance, 9)) == (0, 0.0)


def test_every_sample_is_ranked_once_and_worth_never_rises() -> None:
    rng = np.random.default_rng(1)
    ranked = rank_by_worth(rng.random(50), rng.normal(size=(50, 8)), rng.normal(size=(5, 8)))
    assert sorted(choice.index for choice in ranked) == list(range(50))
    assert all(early.worth >= late.worth for early, late in pairwise(ranked))
    assert [choice.index for choice in rank_by_worth(np.ones(3), np.ones((3, 4)), NONE)] == [0, 1, 2]  # all alike
