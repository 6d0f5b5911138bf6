"""Naive read-out: the whole matrix of influences, every row of it sorted."""

from __future__ import annotations

import numpy as np

from .select import best


def explain(matrix, k, sign):
    """The k largest of ``sign * influence`` for every query, ties by training index.

    Returns values and indices (n_queries, k), -inf and -1 where there is nothing, and the sum
    of the absolute influences (n_queries,).
    """
    values, indices = [], []
    for row in matrix:
        candidates = [(sign * row[j], j) for j in np.flatnonzero(~np.isnan(row)).tolist()]
        row_values, row_indices = best(candidates, k)
        values.append(row_values)
        indices.append(row_indices)
    shape = len(matrix), k
    totals = np.nansum(np.abs(matrix), axis=1)
    return np.array(values).reshape(shape), np.array(indices, int).reshape(shape), totals


def find_pairs(known, users, items):
    """Bounds of each pair in the list of known pairs, sorted by user and item."""
    bounds = []
    for pair in zip(users, items, strict=True):
        first = sum(1 for other in known if other < pair)
        bounds.append((first, first + known.count(pair)))
    return bounds
