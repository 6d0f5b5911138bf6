"""Pairs in torch: blocks of the Hessian on two rows, and read-out with a pair's own vectors."""

from __future__ import annotations

import numpy as np
import pytest
from backends import Kernels
from hypothesis import given, settings
from hypothesis import strategies as st
from influence_cases import STORES
from influence_cases import cases as readout_cases
from influence_cases import make_case as make_readout_case
from pair_cases import (
    assert_exact_lists,
    assert_own_pairs,
    assert_sparse_rows,
    read,
    vectors_and_influence,
)
from row_blocks_cases import (
    NOT_DEFINITE,
    assert_coupled,
    assert_gradients,
    assert_indefinite_told,
    assert_linked,
    assert_solved,
    assert_strong_link_told,
    make_case,
)

from fastinfluence.kernels.cpu.losses import BPR, LOGISTIC, SQUARED

pytest.importorskip("torch")
BLOCKS, READOUT = Kernels("torch", "row_blocks"), Kernels("torch", "pair_readout")
LOSS = st.sampled_from([SQUARED, LOGISTIC, BPR])
SEED = st.integers(0, 10**6)

few = settings(deadline=None, max_examples=10, derandomize=True)


# ---------------------------------------------------------------- blocks


@few
@given(LOSS, st.integers(0, 20), st.integers(1, 20), SEED)
def test_gradients_of_single_examples(loss, n, k, seed):
    assert_gradients(BLOCKS, make_case(loss, n=n, k=k, seed=seed), seed)


@few
@given(
    st.lists(st.sampled_from([0, 1, 3, 17, 40]), min_size=1, max_size=5), st.integers(1, 34),
    st.floats(0.1, 3), SEED,
)  # fmt: skip
def test_rows_are_solved_group_by_group(sizes, k, damping, seed):
    assert_solved(BLOCKS, sizes, k, damping, seed)


@pytest.mark.parametrize("block", NOT_DEFINITE)
def test_a_block_that_is_not_definite_is_told(block):
    assert_indefinite_told(BLOCKS, block)


@few
@given(LOSS, st.booleans(), st.integers(1, 20), st.integers(1, 12), SEED)
def test_the_block_between_two_rows(loss, full, n, k, seed):
    assert_coupled(BLOCKS, make_case(loss, n=n, k=k, seed=seed), loss, full)


@few
@given(LOSS, st.integers(1, 20), st.integers(1, 12), SEED)
def test_vectors_of_linked_rows(loss, n, k, seed):
    assert_linked(BLOCKS, make_case(loss, n=n, k=k, seed=seed), loss)


def test_a_link_stronger_than_the_blocks_is_told():
    assert_strong_link_told(BLOCKS)


# ---------------------------------------------------------------- read-out


@few
@given(readout_cases())
def test_whole_rows_of_pairs(case):
    assert_sparse_rows(READOUT, case)


@few
@given(readout_cases(kind="whole"), st.integers(1, 40), st.sampled_from([1, -1]), st.booleans())
def test_lists_of_whole_numbers(case, k, sign, totals):
    assert_exact_lists(READOUT, case, k, sign, totals)


@pytest.mark.parametrize("store", STORES)
def test_examples_on_their_own_pairs(store):
    assert_own_pairs(READOUT, store)


def test_memory_bounds_what_is_read_at_once(monkeypatch):
    from fastinfluence.kernels.torch import batches

    case = make_readout_case(n_train=200, n_queries=30, kind="whole")
    by_user, by_item, _ = vectors_and_influence(case, kind="whole")
    whole = read(READOUT, case, by_user, by_item, 7)
    monkeypatch.setattr(batches, "CHUNK", 1)
    for mine, its in zip(read(READOUT, case, by_user, by_item, 7), whole, strict=True):
        np.testing.assert_array_equal(mine, its)
