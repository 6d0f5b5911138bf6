"""Read-out with vectors of each pair's own: lists, sparse rows, examples on their own pairs."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from influence_cases import STORES, cases, make_case
from oracles import pair_readout as oracle
from oracles import readout as readout_oracle
from oracles import rows as rows_oracle

from fastinfluence.kernels.cpu.pair_readout import own_of_pairs, sparse_pairs, top_of_pairs
from fastinfluence.kernels.cpu.panels import unpack_row
from fastinfluence.kernels.structures import Top


def vectors_and_influence(case, seed=0, kind="real"):
    """Vectors of the queries' own, and the truth."""
    rng = np.random.default_rng(seed)
    shape, dtype = (len(case.query_users), case.user_vectors.shape[1]), case.user_vectors.dtype
    draw = rng.standard_normal if kind == "real" else lambda shape: rng.integers(-1, 2, shape)
    by_user, by_item = (draw(shape).astype(dtype) for _ in range(2))
    changes, codes = zip(
        *(unpacked(case, side) for side in (case.user_side, case.item_side)), strict=True
    )
    queries = list(zip(case.query_users.tolist(), case.query_items.tolist(), strict=True))
    return by_user, by_item, oracle.influence(by_user, by_item, *changes, *codes, queries)


def unpacked(case, side):
    """Changes and group of every example."""
    codes = np.empty(len(side.order), np.int64)
    codes[side.order] = np.repeat(np.arange(len(side.pointers) - 1), np.diff(side.pointers))
    changes = np.empty((len(side.order), case.user_vectors.shape[1]), case.user_vectors.dtype)
    for place, j in enumerate(side.order):
        unpack_row(side.rows, side.pointers, codes[j], place, changes[j])
    return changes, codes


def both(case, by_user, by_item):
    return case.user_side, case.item_side, by_user, by_item, case.query_users, case.query_items


def seen(case, influence):
    """Whether each query has any example at all, as pairs that were trained on do."""
    return ~np.isnan(influence).all(axis=1) if influence.size else np.zeros(len(influence), bool)


@settings(deadline=None, max_examples=40)
@given(cases())
def test_whole_rows(case):
    by_user, by_item, influence = vectors_and_influence(case)
    pointers, expected_indices, expected_values = rows_oracle.sparse(influence)
    indices = np.full(pointers[-1], -1, np.int32)
    values = np.full(pointers[-1], np.nan, by_user.dtype)
    starts = np.array(pointers[:-1], np.int64)
    sparse_pairs(*both(case, by_user, by_item), starts, indices, values)
    assert indices.tolist() == expected_indices
    np.testing.assert_allclose(values, expected_values, rtol=0, atol=case.rounding * 4)


@settings(deadline=None, max_examples=60)
@given(cases(kind="whole"), st.integers(1, 40), st.sampled_from([1, -1]), st.booleans())
def test_lists_of_whole_numbers(case, k, sign, totals):
    """Sums of whole numbers are exact, so even ties come in the order of the training index."""
    by_user, by_item, influence = vectors_and_influence(case, kind="whole")
    some = seen(case, influence)
    top = read(case, by_user, by_item, k, sign, totals)
    values, indices, total = readout_oracle.explain(influence, k, sign)
    np.testing.assert_array_equal(top.values[some], values[some])
    np.testing.assert_array_equal(top.indices[some], indices[some])
    if totals:
        np.testing.assert_array_equal(top.totals, total)


def read(case, by_user, by_item, k, sign=1, totals=True):
    n, dtype = len(case.query_users), by_user.dtype
    top = Top(
        np.full((n, k), -np.inf, dtype), np.full((n, k), -1, np.int32), np.zeros(n if totals else 0)
    )
    for start, stop in ((0, n // 3), (n // 3, n)):
        top_of_pairs(dtype.type(sign), *both(case, by_user, by_item), start, stop, top)
    return top


@pytest.mark.parametrize("store", STORES)
@pytest.mark.parametrize("k", [1, 10, 16, 17, 60])
def test_lists_from_many_examples(k, store):
    case = make_case(n_users=4, n_items=5, n_train=3_000, k=9, store=store)
    by_user, by_item, influence = vectors_and_influence(case)
    top = read(case, by_user, by_item, k)
    values, indices, totals = readout_oracle.explain(influence, k, 1)
    np.testing.assert_allclose(top.values, values, rtol=0, atol=8 * case.rounding)
    found = np.take_along_axis(influence, top.indices, axis=1)
    np.testing.assert_allclose(found, values, rtol=0, atol=8 * case.rounding)
    np.testing.assert_allclose(top.totals, totals, rtol=1e-5)
    assert (np.sort(top.indices) == np.sort(indices)).mean() > 0.99


@pytest.mark.parametrize("store", STORES)
def test_examples_on_their_own_pairs(store):
    model = make_case(n_users=3, n_items=4, n_train=40, store=store, kind="whole")
    users, items = (unpacked(model, side)[1] for side in (model.user_side, model.item_side))
    pairs = sorted(set(zip(users.tolist(), items.tolist(), strict=True)))
    assert len(pairs) < 40
    case = make_case(
        n_users=3, n_items=4, n_train=40, store=store, kind="whole", queries=pairs
    )  # fmt: skip
    by_user, by_item, influence = vectors_and_influence(case, kind="whole")
    bounds = np.append(case.own_bounds[:, 0], 40)
    out = np.full(40, np.nan, by_user.dtype)
    places = case.own_places, case.own_item_places
    own_of_pairs(*both(case, by_user, by_item), bounds, places, out)
    numbers = [pairs.index(pair) for pair in zip(users.tolist(), items.tolist(), strict=True)]
    np.testing.assert_array_equal(out, influence[numbers, np.arange(40)])
