from __future__ import annotations

import numpy as np
import pytest
from oracles import ranks as oracle

from fastinfluence import readout
from fastinfluence.kernels.cpu.ranks import count_ranks
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


def count(table, vectors, targets, excluded, parts=None):
    greater = np.full(len(vectors), -7, np.int64)
    equal = np.full(len(vectors), -7, np.int64)
    for start, stop in parts or [(0, len(vectors))]:
        count_ranks(
            packed(table), len(table), vectors, targets, exclusions(excluded), start, stop,
            greater, equal,
        )  # fmt: skip
    return greater, equal


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("n", [1, 2, 15, 16, 17, 33, 511, 512, 513, 1100])
def test_counts_are_those_of_the_oracle(n, dtype):
    rng = np.random.default_rng(n)
    table = rng.integers(-2, 3, (n, 5)).astype(dtype)  # small integers: sums are exact, ties many
    vectors = rng.integers(-2, 3, (150, 5)).astype(dtype)
    targets = rng.integers(0, n, 150).astype(np.int32)
    excluded = [sorted(rng.permutation(n)[: rng.integers(0, n + 1)]) for _ in range(150)]
    greater, equal = count(table, vectors, targets, excluded, [(0, 7), (7, 7), (7, 150)])
    scores = vectors @ table.T
    for q in range(150):
        expected = oracle.counts(scores[q].tolist(), targets[q], set(excluded[q]))
        assert (greater[q], equal[q]) == expected


def test_questions_outside_the_stretch_are_left_alone():
    table, vectors = np.eye(4, dtype=np.float32), np.eye(4, dtype=np.float32)
    greater, equal = count(table, vectors, np.zeros(4, np.int32), [[]] * 4, [(1, 3)])
    assert greater.tolist() == [-7, 1, 1, -7]
    assert equal.tolist() == [-7, 2, 2, -7]


@pytest.mark.parametrize("d", [1, 7, 64, 100])
def test_equal_rows_tie_wherever_they_stand(d):
    rng = np.random.default_rng(d)
    table = np.repeat(rng.standard_normal((1, d)), 1033, axis=0).astype(np.float32)
    vectors = rng.standard_normal((9, d)).astype(np.float32)
    targets = np.array([0, 5, 15, 16, 500, 511, 512, 1031, 1032], np.int32)
    greater, equal = count(table, vectors, targets, [[3, 700, 1032]] * 9)
    assert greater.tolist() == [0] * 9
    assert equal.tolist() == [1032 - 3] * 8 + [1032 - 2]  # the last target is among the excluded


def test_counts_do_not_depend_on_the_parts():
    rng = np.random.default_rng(0)
    table = rng.standard_normal((700, 33)).astype(np.float32)
    vectors = rng.standard_normal((300, 33)).astype(np.float32)
    targets = rng.integers(0, 700, 300).astype(np.int32)
    whole = count(table, vectors, targets, [[]] * 300)
    cut = count(table, vectors, targets, [[]] * 300, [(0, 1), (1, 130), (130, 131), (131, 300)])
    np.testing.assert_array_equal(whole, cut)


def test_what_is_no_number_never_ranks_well():
    table = np.array([[1.0], [np.nan], [3.0], [2.0]], np.float32)
    vectors = np.ones((3, 1), np.float32)
    greater, equal = count(table, vectors, np.array([0, 1, 2], np.int32), [[], [], [1]])
    assert greater.tolist() == [3, 3, 0]
    assert equal.tolist() == [0, 0, 0]
