"""Accuracy of a structured answer by tree edit distance, as donut scores CORD.

Source: Kim et al. 2022, "OCR-free Document Understanding Transformer", section 3.2.2; distance by Zhang and Shasha
1989, "Simple fast algorithms for the editing distance between trees and related problems". An edit costs its
characters in a value and 1 in a key.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rapidfuzz.distance import Levenshtein

from mllm_tailor.core.sample import Prediction
from mllm_tailor.scoring.metrics.base import NOTHING, Ratio, Whole
from mllm_tailor.scoring.text import as_text, is_empty

DEEPEST = 40  # levels; a reply may nest without end, so deeper values count as text


@dataclass(frozen=True)
class Node:
    """A key or a value of the answer."""

    text: str
    leaf: bool = False
    children: tuple[Node, ...] = ()


def tree(value: Mapping[str, Any]) -> Node:
    """The answer as donut's tree: keys sorted by length and name, values as stripped strings, empty ones left out.

    A value is a list of values and an object a list of one object, so that a lone object and a list of it are equal.
    Unlike donut's code, which drops them, a number 0, `false`, and an object or list among plain values are kept.
    """
    return _node("<root>", value, 0)


def _node(name: str, value: Mapping[str, Any], depth: int) -> Node:
    keys = sorted((key for key in value if not _is_hollow(value[key])), key=lambda key: (len(str(key)), str(key)))
    return Node(name, children=tuple(_key(str(key), value[key], depth + 1) for key in keys))


def _key(name: str, value: Any, depth: int) -> Node:
    entries = value if isinstance(value, list) else [value]
    return Node(name, children=tuple(_entry(entry, depth + 1) for entry in entries if not _is_hollow(entry)))


def _entry(entry: Any, depth: int) -> Node:
    if isinstance(entry, Mapping) and depth < DEEPEST:
        return _node("<entry>", entry, depth)
    if isinstance(entry, list) and depth < DEEPEST:
        return _key("<entry>", entry, depth)
    return Node(as_text(entry).strip(), leaf=True)


def _is_hollow(value: Any, depth: int = 0) -> bool:
    """Whether it contains no value at any depth."""
    if isinstance(value, (Mapping, list)) and depth < DEEPEST:
        return all(_is_hollow(inner, depth + 1) for inner in (value.values() if isinstance(value, Mapping) else value))
    return is_empty(value)


def _cost(node: Node) -> int:
    """Of inserting or deleting one node."""
    return len(node.text) if node.leaf else 1


def _change(first: Node, second: Node) -> int:
    """Of replacing one node by another."""
    if first.leaf and second.leaf:
        return Levenshtein.distance(first.text, second.text)
    if first.leaf != second.leaf:
        return 1 + len(first.text if first.leaf else second.text)
    return int(first.text != second.text)


def weight(root: Node) -> int:
    """The distance to an empty answer: every node below the root is inserted."""
    return sum(_cost(child) + weight(child) for child in root.children)


class _Ordered:
    """A tree in postorder with its leftmost leaves and key roots, all indexed from 0."""

    def __init__(self, root: Node) -> None:
        self.nodes: list[Node] = []
        self.leftmost: list[int] = []
        self._visit(root)
        self.key_roots = sorted({left: index for index, left in enumerate(self.leftmost)}.values())

    def _visit(self, node: Node) -> int:
        lefts = [self._visit(child) for child in node.children]
        self.nodes.append(node)
        self.leftmost.append(lefts[0] if lefts else len(self.nodes) - 1)
        return self.leftmost[-1]


def tree_distance(first: Node, second: Node) -> int:
    """Minimal total cost of insertions, deletions and changes that turn one ordered tree into the other."""
    left, right = _Ordered(first), _Ordered(second)
    distances = [[0] * len(right.nodes) for _ in left.nodes]
    for i in left.key_roots:
        for j in right.key_roots:
            _forest_distances(left, right, i, j, distances)
    return distances[-1][-1]


def _forest_distances(left: _Ordered, right: _Ordered, i: int, j: int, distances: list[list[int]]) -> None:
    """Fill the distances of all subtree pairs whose leftmost leaves are those of the key roots `i` and `j`."""
    first, second = left.leftmost[i], right.leftmost[j]
    forest = [[0] * (j - second + 2) for _ in range(i - first + 2)]
    for x in range(first, i + 1):
        forest[x - first + 1][0] = forest[x - first][0] + _cost(left.nodes[x])
    for y in range(second, j + 1):
        forest[0][y - second + 1] = forest[0][y - second] + _cost(right.nodes[y])
    for x in range(first, i + 1):
        for y in range(second, j + 1):
            row, column = x - first + 1, y - second + 1
            edit = min(forest[row - 1][column] + _cost(left.nodes[x]), forest[row][column - 1] + _cost(right.nodes[y]))
            if left.leftmost[x] == first and right.leftmost[y] == second:
                forest[row][column] = min(edit, forest[row - 1][column - 1] + _change(left.nodes[x], right.nodes[y]))
                distances[x][y] = forest[row][column]
            else:
                before = forest[left.leftmost[x] - first][right.leftmost[y] - second]
                forest[row][column] = min(edit, before + distances[x][y])


def accuracy(label: Mapping[str, Any], predicted: Mapping[str, Any]) -> float:
    """max(0, 1 - distance(predicted, label) / distance({}, label)): 1 equal, 0 no better than no answer."""
    truth, answer = tree(label), tree(predicted)
    whole = weight(truth)
    if whole == 0:
        return float(not answer.children)
    return max(0.0, 1.0 - tree_distance(answer, truth) / whole)


def _whole(labels: Mapping[str, Any], prediction: Prediction) -> Ratio:
    return Ratio(accuracy(labels, dict(prediction.fields)), 1.0)


def _field(label: Any, predicted: Any) -> Ratio:
    if _is_hollow(label) and _is_hollow(predicted):
        return NOTHING
    return Ratio(accuracy({"value": label}, {"value": predicted}), 1.0)


TREE_EDIT = Whole(_whole, _field)
