"""The k best of rows of influences, against sorting each row."""

from __future__ import annotations

from unittest import mock

import numpy as np
import pytest
import scipy.sparse
from hypothesis import given
from hypothesis import strategies as st
from oracles import readout as oracle

from fastinfluence.attribution import ranking
from fastinfluence.attribution.ranking import top_of_rows


def assert_best(found, matrix, k, proponents):
    """Compare with the oracle on a dense matrix; zeros are no candidates."""
    sign = 1 if proponents else -1
    candidates = np.where(matrix == 0, np.nan, matrix)
    values, indices, totals = oracle.explain(candidates, k, sign)
    train_index, influence, total = found
    np.testing.assert_array_equal(train_index, indices)
    np.testing.assert_array_equal(influence, np.where(indices < 0, np.nan, sign * values))
    poisoned = np.isnan(matrix).any(axis=1)
    np.testing.assert_allclose(total, np.where(poisoned, np.nan, totals), rtol=1e-5)
    assert (train_index.dtype, influence.dtype, total.dtype) == (np.int32, matrix.dtype, float)


def with_ties(n, width, n_values, nan, seed, dtype):
    """Few different values, zero and both signs among them, so that nearly all are tied."""
    rng = np.random.default_rng(seed)
    matrix = rng.integers(-n_values, n_values + 1, (n, width)).astype(dtype)
    if nan:
        matrix[rng.random((n, width)) < 0.1] = np.nan
    return matrix


def sparse(matrix, seed, shuffled):
    """The same as a csr_array: some zeros explicit, the columns perhaps in no order."""
    rng = np.random.default_rng(seed)
    there = (matrix != 0) | (rng.random(matrix.shape) < 0.2)
    rows, columns = np.nonzero(there)
    if shuffled:
        order = np.lexsort((rng.random(len(rows)), rows))
        rows, columns = rows[order], columns[order]
    pointers = np.concatenate([[0], np.cumsum(there.sum(axis=1))])
    return scipy.sparse.csr_array((matrix[rows, columns], columns, pointers), shape=matrix.shape)


@given(
    n=st.integers(0, 6),
    width=st.sampled_from([1, 2, 5, 17, 80, 200]),
    n_values=st.sampled_from([0, 1, 3, 50]),
    nan=st.booleans(),
    k=st.sampled_from([1, 2, 7, 30]),
    proponents=st.booleans(),
    at_once=st.sampled_from([1, 100, 2**20]),
    dtype=st.sampled_from([np.float32, np.float64]),
    seed=st.integers(0, 2**32 - 1),
    shuffled=st.booleans(),
)
def test_against_sorting(
    n, width, n_values, nan, k, proponents, at_once, dtype, seed, shuffled
):  # fmt: skip
    matrix = with_ties(n, width, n_values, nan, seed, dtype)
    with mock.patch.object(ranking, "_CELLS_AT_ONCE", at_once):
        assert_best(top_of_rows(matrix, k, proponents), matrix, k, proponents)
        as_csr = sparse(matrix, seed, shuffled)
        before = as_csr.indices.copy()
        assert_best(top_of_rows(as_csr, k, proponents), matrix, k, proponents)
        np.testing.assert_array_equal(as_csr.indices, before)


@pytest.mark.parametrize("order", ["rising", "falling", "random", "constant", "few"])
@pytest.mark.parametrize("proponents", [True, False])
def test_long_rows(order, proponents):
    """Rows long enough for the bound, in the orders that suit it least."""
    rng = np.random.default_rng(0)
    rows = np.sort(rng.standard_normal((3, 5_000)).astype(np.float32), axis=1)
    if order == "falling":
        rows = rows[:, ::-1]
    elif order == "random":
        rows = rng.permuted(rows, axis=1)
    elif order == "constant":
        rows = np.ones_like(rows)
    elif order == "few":  # less than k candidates
        rows = np.where(rng.random(rows.shape) < 0.001, rows, 0)
    for k in (1, 10, 100):
        assert_best(top_of_rows(rows, k, proponents), rows, k, proponents)


def test_the_matrix_is_left_alone():
    matrix = with_ties(4, 50, 3, False, 0, np.float64)
    matrix.flags.writeable = False
    assert_best(top_of_rows(matrix, 5, False), matrix, 5, False)
