"""Blocks of the Hessian on the rows of a pair: gradients, solves, links between two rows."""

from __future__ import annotations

import pytest
from backends import Kernels
from hypothesis import given, settings
from hypothesis import strategies as st
from row_blocks_cases import (
    NOT_DEFINITE,
    assert_coupled,
    assert_float32,
    assert_gradients,
    assert_indefinite_told,
    assert_linked,
    assert_solved,
    assert_strong_link_told,
    assert_unlinked,
    make_case,
)

from fastinfluence.kernels.cpu.losses import BPR, LOGISTIC, SQUARED

BLOCKS = Kernels("cpu", "row_blocks")
LOSS = st.sampled_from([SQUARED, LOGISTIC, BPR])
SEED = st.integers(0, 10**6)

often = settings(max_examples=40, deadline=None)


@often
@given(LOSS, st.integers(0, 20), st.integers(1, 20), SEED)
def test_gradients_of_single_examples(loss, n, k, seed):
    assert_gradients(BLOCKS, make_case(loss, n=n, k=k, seed=seed), seed)


@often
@given(
    st.lists(st.sampled_from([0, 1, 3, 15, 16, 17, 40]), min_size=1, max_size=5),
    st.integers(1, 34),
    st.floats(0.1, 3),
    SEED,
)
def test_rows_are_solved_group_by_group(sizes, k, damping, seed):
    assert_solved(BLOCKS, sizes, k, damping, seed)


@pytest.mark.parametrize("block", NOT_DEFINITE)
def test_a_block_that_is_not_definite_is_told(block):
    assert_indefinite_told(BLOCKS, block)


@often
@given(LOSS, st.booleans(), st.integers(1, 20), st.integers(1, 12), SEED)
def test_the_block_between_two_rows(loss, full, n, k, seed):
    assert_coupled(BLOCKS, make_case(loss, n=n, k=k, seed=seed), loss, full)


@often
@given(LOSS, st.integers(1, 20), st.integers(1, 12), SEED)
def test_vectors_of_linked_rows(loss, n, k, seed):
    assert_linked(BLOCKS, make_case(loss, n=n, k=k, seed=seed), loss)


def test_without_a_link_the_vectors_are_the_rows():
    assert_unlinked(BLOCKS)


def test_a_link_stronger_than_the_blocks_is_told():
    assert_strong_link_told(BLOCKS)


@pytest.mark.parametrize("k", [1, 16, 40])
def test_float32(k):
    assert_float32(BLOCKS, k)
