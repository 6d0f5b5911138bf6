"""Ranks as the kernels take them: packed rows, exclusions, poisoned counts."""

from __future__ import annotations

import numpy as np
from oracles import ranks as oracle

from fastinfluence import readout
from fastinfluence.kernels.structures import Exclusions


def packed(table):
    n = len(table)
    side = readout.pack_side(
        table[:, :-1], table[:, -1], np.arange(n), np.array([0, n]), np.arange(n)
    )
    return side.rows


def exclusions(lists):
    ends = np.cumsum([0, *map(len, lists)])
    places = np.array([c for one in lists for c in one], np.int64)
    return Exclusions(ends[:-1].copy(), ends[1:].copy(), places)


def count(kernels, table, vectors, targets, excluded, parts=None):
    greater = np.full(len(vectors), -7, np.int64)
    equal = np.full(len(vectors), -7, np.int64)
    for start, stop in parts or [(0, len(vectors))]:
        kernels.count_ranks(
            packed(table), len(table), vectors, targets, exclusions(excluded), start, stop,
            greater, equal,
        )  # fmt: skip
    return greater, equal


def whole_numbers(n, n_questions, dtype, d=5):
    """Rows and vectors of small whole numbers, whose sums are exact and often tie; the answers.

    Also any candidates left out of each question, and the oracle's counts.
    """
    rng = np.random.default_rng(n)
    table = rng.integers(-2, 3, (n, d)).astype(dtype)
    vectors = rng.integers(-2, 3, (n_questions, d)).astype(dtype)
    targets = rng.integers(0, n, n_questions).astype(np.int32)
    excluded = [sorted(rng.permutation(n)[: rng.integers(0, n + 1)]) for _ in range(n_questions)]
    scores = vectors @ table.T
    expected = [
        oracle.counts(scores[q].tolist(), targets[q], set(excluded[q])) for q in range(n_questions)
    ]
    return (table, vectors, targets, excluded), np.transpose(expected)
