from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import schedule as oracle

from fastinfluence.kernels.cpu.schedule import balance


def balanced(degrees, n_groups):
    degrees = np.array(degrees, np.int64)
    descending = np.argsort(-degrees, kind="stable")
    groups = balance(degrees, descending, n_groups)
    assert groups.dtype == np.int32
    assert groups.tolist() == oracle.balance(degrees, descending, n_groups)
    return groups


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(0, 30) | st.integers(0, 10**6), max_size=60), st.integers(1, 12))
def test_deals_like_a_heap(degrees, n_groups):
    groups = balanced(degrees, n_groups)
    sizes = [degree + 1 for degree in degrees]
    loads = oracle.loads(degrees, groups, n_groups)
    assert sum(loads) == sum(sizes)
    # The group loaded last was the lightest: it held at most the mean of the other rows.
    bound = sum(sizes) / n_groups + (1 - 1 / n_groups) * max(sizes, default=0)
    assert max(loads) <= bound * (1 + 1e-12)


@settings(deadline=None, max_examples=25)
@given(st.lists(st.integers(0, 40), min_size=1, max_size=7), st.integers(1, 3))
def test_loads_within_a_third_of_the_best(degrees, n_groups):
    groups = balanced(degrees, n_groups)
    best = oracle.smallest_maximum(degrees, n_groups)
    bound = (4 / 3 - 1 / (3 * n_groups)) * best  # Graham 1969
    assert max(oracle.loads(degrees, groups, n_groups)) <= bound + 1e-9


@pytest.mark.parametrize("n_groups", [1, 4, 7])
def test_rows_without_examples_are_spread(n_groups):
    groups = balanced([0] * 21, n_groups)
    np.testing.assert_allclose(np.bincount(groups, minlength=n_groups), 21 / n_groups, atol=1)


def test_takes_read_only_arrays():
    degrees, descending = np.array([3, 2, 1]), np.arange(3)
    degrees.flags.writeable = descending.flags.writeable = False
    assert balance(degrees, descending, 2).tolist() == [0, 1, 1]
