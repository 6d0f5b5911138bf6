"""Counts of candidates above and equal, against the naive ones."""

from __future__ import annotations

import numpy as np
import pytest
from backends import Kernels
from ranks_cases import count, whole_numbers

CPU = Kernels("cpu", "ranks")


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("n", [1, 2, 15, 16, 17, 33, 511, 512, 513, 1100])
def test_counts_are_those_of_the_oracle(n, dtype):
    case, expected = whole_numbers(n, 150, dtype)
    found = count(CPU, *case, [(0, 7), (7, 7), (7, 150)])
    np.testing.assert_array_equal(found, expected)


def test_questions_outside_the_stretch_are_left_alone():
    table, vectors = np.eye(4, dtype=np.float32), np.eye(4, dtype=np.float32)
    greater, equal = count(CPU, table, vectors, np.zeros(4, np.int32), [[]] * 4, [(1, 3)])
    assert greater.tolist() == [-7, 1, 1, -7]
    assert equal.tolist() == [-7, 2, 2, -7]


@pytest.mark.parametrize("d", [1, 7, 64, 100])
def test_equal_rows_tie_wherever_they_stand(d):
    rng = np.random.default_rng(d)
    table = np.repeat(rng.standard_normal((1, d)), 1033, axis=0).astype(np.float32)
    vectors = rng.standard_normal((9, d)).astype(np.float32)
    targets = np.array([0, 5, 15, 16, 500, 511, 512, 1031, 1032], np.int32)
    greater, equal = count(CPU, table, vectors, targets, [[3, 700, 1032]] * 9)
    assert greater.tolist() == [0] * 9
    assert equal.tolist() == [1032 - 3] * 8 + [1032 - 2]  # the last target is among the excluded


def test_counts_do_not_depend_on_the_parts():
    rng = np.random.default_rng(0)
    table = rng.standard_normal((700, 33)).astype(np.float32)
    vectors = rng.standard_normal((300, 33)).astype(np.float32)
    targets = rng.integers(0, 700, 300).astype(np.int32)
    whole = count(CPU, table, vectors, targets, [[]] * 300)
    cut = count(
        CPU, table, vectors, targets, [[]] * 300, [(0, 1), (1, 130), (130, 131), (131, 300)]
    )
    np.testing.assert_array_equal(whole, cut)


def test_what_is_no_number_never_ranks_well():
    table = np.array([[1.0], [np.nan], [3.0], [2.0]], np.float32)
    vectors = np.ones((3, 1), np.float32)
    greater, equal = count(CPU, table, vectors, np.array([0, 1, 2], np.int32), [[], [], [1]])
    assert greater.tolist() == [3, 3, 0]
    assert equal.tolist() == [0, 0, 0]
