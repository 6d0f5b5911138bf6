"""Ranks counted on CUDA: the oracle's, and the CPU's."""

from __future__ import annotations

import numpy as np
import pytest
from backends import Kernels
from ranks_cases import count, whole_numbers

CPU, CUDA = Kernels("cpu", "ranks"), Kernels("cuda", "ranks")


@pytest.mark.parametrize(
    ("n", "dtype", "d"), [(1, "float32", 5), (17, "float64", 3), (150, "float32", 19)]
)
def test_counts_are_those_of_the_oracle(n, dtype, d):
    """Several tiles of questions and of candidates, several stages; the last ones not whole."""
    case, expected = whole_numbers(n, 18, dtype, d)
    np.testing.assert_array_equal(count(CUDA, *case, [(0, 1), (1, 1), (1, 18)]), expected)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_equal_rows_tie_wherever_they_stand_and_scores_are_the_cpus(dtype):
    rng = np.random.default_rng(0)
    table = np.repeat(rng.standard_normal((27, 9)), 5, axis=0).astype(dtype)
    vectors = rng.standard_normal((4, 9)).astype(dtype)
    arguments = table, vectors, np.array([0, 7, 131, 134], np.int32), [[3, 50, 134]] * 4
    greater, equal = count(CUDA, *arguments)
    np.testing.assert_array_equal((greater, equal), count(CPU, *arguments))
    assert equal.tolist() == [3, 4, 3, 4]


def test_what_is_no_number_never_ranks_well():
    table = np.array([[1.0], [np.nan], [3.0], [2.0]], np.float32)
    vectors = np.ones((3, 1), np.float32)
    greater, equal = count(CUDA, table, vectors, np.array([0, 1, 2], np.int32), [[], [], [1]])
    assert greater.tolist() == [3, 3, 0]
    assert equal.tolist() == [0, 0, 0]


def test_questions_outside_the_stretch_are_left_alone():
    table, vectors = np.eye(4, dtype=np.float32), np.eye(4, dtype=np.float32)
    greater, equal = count(CUDA, table, vectors, np.zeros(4, np.int32), [[]] * 4, [(1, 3)])
    assert greater.tolist() == [-7, 1, 1, -7]
    assert equal.tolist() == [-7, 2, 2, -7]
