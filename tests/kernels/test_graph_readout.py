"""The read-out of row changes on triples against copies of the tables, and its exponentials."""

from __future__ import annotations

import numpy as np
import pytest
from graph_readout_cases import KINDS, case, compared, stranger
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fastinfluence.attribution.triples.rows import LinkReadout
from fastinfluence.kernels.cpu.exponential import LIMIT, exponential_sums
from fastinfluence.kernels.cpu.jit import kernel
from fastinfluence.kernels.structures import GraphTables, Links


@kernel
def sums(row, start, stop, weights, first):
    return exponential_sums(row, start, stop, weights, first)


@kernel
def one_by_one(row, less_one, whole):
    """Each exponential by itself: all other weights are 0."""
    weights = np.zeros(16, row.dtype)
    for i in range(row.shape[0]):
        start = i // 16 * 16
        weights[i - start] = 1
        less_one[i], whole[i], _ = exponential_sums(row, start, start + 16, weights, 0)
        weights[i - start] = 0


def arguments(dtype):
    rng = np.random.default_rng(0)
    small = 10.0 ** rng.uniform(-30, 0, 4096)
    edges = np.log(2) * (np.arange(-40, 40).repeat(2) + 0.5) + np.tile([-1e-6, 1e-6], 80)
    wide = rng.uniform(-LIMIT, LIMIT, 4096)
    some = [wide, small, -small, edges, np.zeros(16), np.full(16, LIMIT), np.full(16, -LIMIT)]
    return np.concatenate(some).astype(dtype)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_exponentials_are_accurate_to_two_units_in_the_last_place(dtype):
    row = arguments(dtype)
    less_one, whole = np.empty_like(row), np.empty_like(row)
    one_by_one(row, less_one, whole)
    exact = row.astype(np.longdouble)
    tolerance = 2 * np.finfo(dtype).eps
    np.testing.assert_allclose(less_one, np.expm1(exact).astype(np.float64), rtol=tolerance)
    np.testing.assert_allclose(whole, np.exp(exact).astype(np.float64), rtol=tolerance)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_exponentials_are_weighted_and_added_up(dtype):
    rng = np.random.default_rng(1)
    row, weights = rng.normal(size=128).astype(dtype), rng.random(96).astype(dtype)
    less_one, whole, beyond = sums(row, 32, 96, weights, 16)
    x, w = row[32:96].astype(np.float64), weights[16:80].astype(np.float64)
    tolerance = 20 * float(np.finfo(dtype).eps)
    assert less_one == pytest.approx((w * np.expm1(x)).sum(), rel=tolerance)
    assert whole == pytest.approx((w * np.exp(x)).sum(), rel=tolerance)
    assert not beyond


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("place", [0, 17, 31])
def test_arguments_beyond_the_limit_are_told(dtype, place):
    row, weights = np.zeros(32, dtype), np.ones(32, dtype)
    row[place] = -1000
    less_one, whole, beyond = sums(row, 0, 32, weights, 0)
    assert (less_one, whole, beyond) == (-1, 31, False)
    row[place] = LIMIT
    assert not sums(row, 0, 32, weights, 0)[2]
    row[place] = 1000
    _, whole, beyond = sums(row, 0, 32, weights, 0)
    assert beyond
    assert whole == pytest.approx(np.exp(LIMIT), rel=1e-6)


@settings(max_examples=60, deadline=None)
@given(
    kind=st.sampled_from(KINDS),
    seed=st.integers(0, 2**32 - 1),
    n_entities=st.integers(2, 40),
    n_relations=st.integers(1, 4),
    n=st.integers(1, 30),
    half=st.integers(1, 9),
    is_complex=st.booleans(),
    reciprocal=st.booleans(),
    size=st.sampled_from([1e-3, 0.3, 3.0]),
)
@example(  # two entities, and both lose nearly all of their score
    kind="log-probability", seed=392, n_entities=2, n_relations=3, n=27, half=3, is_complex=True,
    reciprocal=True, size=3.0,
)  # fmt: skip
def test_influence_is_that_of_tables_without_the_changes(kind, seed, half, **options):
    dense, expected = compared(kind, case(seed, d=2 * half, n_links=4, **options))
    np.testing.assert_allclose(dense, expected, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("is_complex", [False, True])
def test_small_influences_are_accurate_in_float32(kind, is_complex):
    """Changes are computed as changes: an influence of 1e-6 has as many digits as one of 1."""
    for size in (1e-6, 1e-2):
        some = case(3, size=size, is_complex=is_complex, d=20, scale=0.5, dtype="float32")
        dense, _ = compared(kind, some)
        data, graph, rows, changes, links = some
        wide = data, graph, rows.astype(np.float64), changes.astype(np.float64), links
        expected, _ = compared(kind, wide)
        largest = np.nanmax(np.abs(expected), axis=1, keepdims=True)
        assert dense.dtype == np.float32
        assert np.nanmax(np.abs(dense - expected) / largest) < 5e-6


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("size", [5.0, 30.0])
def test_huge_changes_overflow_nowhere(dtype, size):
    some = case(4, size=size, d=8, dtype=dtype, n_entities=20)
    for kind in KINDS:
        dense, expected = compared(kind, some)
        tolerance = 2e-4 if dtype == "float32" else 1e-10
        np.testing.assert_allclose(dense, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("kind", KINDS)
def test_threads_and_company_change_no_bit(kind):
    data, graph, rows, changes, links = case(5, n=700, n_links=40, n_relations=2)
    readout = LinkReadout(data, graph, GraphTables(rows), changes, 1)
    together = readout.influence(kind, links, 1)
    assert (np.diff(together.indptr) > 256).any()  # several units
    threaded = readout.influence(kind, links, 3)
    np.testing.assert_array_equal(threaded.data, together.data)
    for q in range(len(links.targets)):
        alone = readout.influence(kind, Links(*(c[q : q + 1] for c in links)), 1)
        row = slice(together.indptr[q], together.indptr[q + 1])
        np.testing.assert_array_equal(alone.indices, together.indices[row])
        np.testing.assert_array_equal(alone.data, together.data[row])


@pytest.mark.parametrize("kind", KINDS)
def test_more_entities_than_a_tile(kind):
    dense, expected = compared(kind, case(6, n_entities=531, n=40, n_links=3))
    np.testing.assert_allclose(dense, expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("kind", KINDS)
def test_a_link_nobody_shares_anything_with(kind):
    """And one of which only the target is known."""
    dense, expected = compared(kind, stranger())
    np.testing.assert_allclose(dense, expected, rtol=1e-12)
    assert np.isnan(dense).tolist() == [[True, True], [True, False]]


@pytest.mark.parametrize("is_complex", [False, True])
@pytest.mark.parametrize("reciprocal", [False, True])
def test_self_influence_is_the_influence_on_the_own_score(is_complex, reciprocal):
    data, graph, rows, changes, _ = case(8, is_complex=is_complex, reciprocal=reciprocal)
    own = Links(data.heads, data.relations + np.int32(7), np.zeros(25, bool), data.tails)
    readout = LinkReadout(data, graph, GraphTables(rows), changes, 1)
    found = readout.self_influence(own, 2)
    whole = readout.influence("score", own, 1).toarray()
    np.testing.assert_allclose(found, np.diag(whole), rtol=1e-12)
    assert (data.heads == data.tails).any()
