"""Align two lists of rows so that the total similarity is greatest, with or without regard to their order."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Pairs = list[tuple[int, int]]


def best_assignment(similarity: Array) -> Pairs:
    """Pairs (row, column) of an optimal assignment, each index at most once; pairs of no similarity are left out.

    `similarity` is (rows, columns), not negative. The Hungarian method with shortest augmenting paths (Jonker and
    Volgenant 1987), O(rows^2 * columns).
    """
    if similarity.shape[0] > similarity.shape[1]:
        return sorted((row, column) for column, row in best_assignment(similarity.T))
    rows, columns = similarity.shape
    cost = -similarity
    row_price, column_price = np.zeros(rows + 1), np.zeros(columns + 1)
    owner = np.zeros(columns + 1, int)  # row of each column, from 1; column 0 stands for the row being placed
    for row in range(1, rows + 1):
        owner[0], column = row, 0
        nearest, previous = np.full(columns + 1, np.inf), np.zeros(columns + 1, int)
        used = np.zeros(columns + 1, bool)
        while owner[column]:
            used[column] = True
            free = ~used[1:]
            reduced = cost[owner[column] - 1] - row_price[owner[column]] - column_price[1:]
            closer = free & (reduced < nearest[1:])
            nearest[1:][closer], previous[1:][closer] = reduced[closer], column
            following = int(np.argmin(np.where(free, nearest[1:], np.inf))) + 1
            step = nearest[following]
            row_price[owner[used]] += step
            column_price[used] -= step
            nearest[1:][free] -= step
            column = following
        while column:
            owner[column] = owner[previous[column]]
            column = int(previous[column])
    pairs = ((int(owner[column]) - 1, column - 1) for column in range(1, columns + 1) if owner[column])
    return sorted((row, column) for row, column in pairs if similarity[row, column] > 0)


def best_alignment(similarity: Array) -> Pairs:
    """As `best_assignment`, but pairs keep the order of both lists (Needleman and Wunsch 1970, gaps free)."""
    rows, columns = similarity.shape
    best = np.zeros((rows + 1, columns + 1))
    for row in range(rows):
        paired = best[row, :-1] + similarity[row]
        best[row + 1, 1:] = np.maximum.accumulate(np.maximum(paired, best[row, 1:]))
    pairs: Pairs = []
    row, column = rows, columns
    while row and column:
        if best[row, column] == best[row - 1, column]:
            row -= 1
        elif best[row, column] == best[row, column - 1]:
            column -= 1
        else:
            row, column = row - 1, column - 1
            pairs.append((row, column))
    return pairs[::-1]
