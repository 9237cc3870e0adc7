"""What a score must beat to mean anything: answers given without reading the sample."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mllm_tailor.scoring.text import as_text

CHUNK = 1024  # held-out samples compared at a time, to bound memory


def constant_baseline(
    train_labels: Sequence[Mapping[str, Any]], held_count: int, field_names: Sequence[str]
) -> list[dict[str, Any]]:
    """The same answer for every sample: the most frequent training value of each field (first seen wins a tie)."""
    answer = {name: _most_frequent([label.get(name, "") for label in train_labels]) for name in field_names}
    return [dict(answer) for _ in range(held_count)]


def _most_frequent(values: Sequence[Any]) -> Any:
    if not values:
        return ""
    texts = [as_text(value) for value in values]
    return values[texts.index(Counter(texts).most_common(1)[0][0])]


def nearest_neighbour_baseline(
    train_features: NDArray[np.floating[Any]],
    held_features: NDArray[np.floating[Any]],
    train_labels: Sequence[Mapping[str, Any]],
) -> list[dict[str, Any]]:
    """The labels of the training sample that looks most alike: largest cosine of the features.

    `train_features` is (train, d), `held_features` (held, d); the first of equally near samples is taken.

    Raises:
        ValueError: when features and labels do not pair up.
    """
    if len(train_features) != len(train_labels) or not len(train_labels):
        raise ValueError(f"{len(train_features)} training features for {len(train_labels)} labels")
    train, held = _unit(train_features), _unit(held_features)
    nearest = [
        int(place)
        for start in range(0, len(held), CHUNK)
        for place in np.argmax(held[start : start + CHUNK] @ train.T, axis=1)
    ]
    return [dict(train_labels[place]) for place in nearest]


def _unit(features: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    rows = np.asarray(features, dtype=np.float64)
    lengths: NDArray[np.float64] = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.maximum(lengths, np.finfo(np.float64).tiny)


def seen_groups(train_groups: Sequence[str | None], held_groups: Sequence[str | None]) -> dict[str, list[int]]:
    """Places of held-out samples whose group (a company, a speaker) was in training, and of those whose was not.

    Samples without a group are in neither; a part without samples is left out.
    """
    known = {group for group in train_groups if group}
    parts: dict[str, list[int]] = {"seen": [], "unseen": []}
    for place, group in enumerate(held_groups):
        if group:
            parts["seen" if group in known else "unseen"].append(place)
    return {name: places for name, places in parts.items() if places}
