"""Read-out with vectors of each pair's own: lists, sparse rows, examples on their own pairs."""

from __future__ import annotations

import pytest
from backends import Kernels
from hypothesis import given, settings
from hypothesis import strategies as st
from influence_cases import STORES, cases, make_case
from pair_cases import assert_exact_lists, assert_lists, assert_own_pairs, assert_sparse_rows

READOUT = Kernels("cpu", "pair_readout")


@settings(deadline=None, max_examples=40)
@given(cases())
def test_whole_rows(case):
    assert_sparse_rows(READOUT, case)


@settings(deadline=None, max_examples=60)
@given(cases(kind="whole"), st.integers(1, 40), st.sampled_from([1, -1]), st.booleans())
def test_lists_of_whole_numbers(case, k, sign, totals):
    assert_exact_lists(READOUT, case, k, sign, totals)


@pytest.mark.parametrize("store", STORES)
@pytest.mark.parametrize("k", [1, 10, 16, 17, 60])
def test_lists_from_many_examples(k, store):
    case = make_case(n_users=4, n_items=5, n_train=3_000, k=9, store=store)
    assert_lists(READOUT, case, k)


@pytest.mark.parametrize("store", STORES)
def test_examples_on_their_own_pairs(store):
    assert_own_pairs(READOUT, store)
