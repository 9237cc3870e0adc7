"""Baselines: answers given without reading the sample. A score means something only above them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mllm_tailor.scoring.text import as_text

CHUNK = 1024  # held-out samples compared at a time, to bound memory


def constant_baseline(
    train_labels: Sequence[Mapping[str, Any]], num_samples: int, field_names: Sequence[str]
) -> list[dict[str, Any]]:
    """The same answer for every sample: the most frequent training value of each field (ties: the first seen)."""
    answer = {name: _most_frequent([label.get(name, "") for label in train_labels]) for name in field_names}
    return [dict(answer) for _ in range(num_samples)]


def _most_frequent(values: Sequence[Any]) -> Any:
    if not values:
        return ""
    texts = [as_text(value) for value in values]
    return values[texts.index(Counter(texts).most_common(1)[0][0])]


def nearest_neighbour_baseline(
    train_features: NDArray[np.floating[Any]],
    test_features: NDArray[np.floating[Any]],
    train_labels: Sequence[Mapping[str, Any]],
) -> list[dict[str, Any]]:
    """The labels of the most similar training sample, by cosine similarity of the features.

    `train_features` is (num_train, d), `test_features` (num_test, d); the first of equally near samples is taken.

    Raises:
        ValueError: when there is not one training label for each training feature.
    """
    if len(train_features) != len(train_labels) or not len(train_labels):
        raise ValueError(f"{len(train_features)} training features for {len(train_labels)} labels")
    train, test = _unit(train_features), _unit(test_features)
    nearest = [
        int(index)
        for start in range(0, len(test), CHUNK)
        for index in np.argmax(test[start : start + CHUNK] @ train.T, axis=1)
    ]
    return [dict(train_labels[index]) for index in nearest]


def _unit(features: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    rows = np.asarray(features, dtype=np.float64)
    lengths: NDArray[np.float64] = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.maximum(lengths, np.finfo(np.float64).tiny)


def seen_groups(train_groups: Sequence[str | None], held_groups: Sequence[str | None]) -> dict[str, list[int]]:
    """Indices of the held-out samples whose group (a company, a speaker) occurs in training, and of the others.

    Samples without a group are in neither list; an empty list is left out.
    """
    known = {group for group in train_groups if group}
    indices: dict[str, list[int]] = {"seen": [], "unseen": []}
    for index, group in enumerate(held_groups):
        if group:
            indices["seen" if group in known else "unseen"].append(index)
    return {name: members for name, members in indices.items() if members}
