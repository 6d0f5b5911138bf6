"""Pairs with vectors of their own, read out by the kernels of any backend, and the truth."""

from __future__ import annotations

import numpy as np
from influence_cases import make_case
from oracles import pair_readout as oracle
from oracles import readout as readout_oracle
from oracles import rows as rows_oracle

from fastinfluence.kernels.cpu.panels import unpack_row
from fastinfluence.kernels.structures import Top

__all__ = [
    "assert_exact_lists",
    "assert_lists",
    "assert_own_pairs",
    "assert_sparse_rows",
    "read",
    "vectors_and_influence",
]


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


def read(kernels, case, by_user, by_item, k, sign=1, totals=True):
    """Lists of all pairs, found in two parts."""
    n, dtype = len(case.query_users), by_user.dtype
    top = Top(
        np.full((n, k), -np.inf, dtype), np.full((n, k), -1, np.int32), np.zeros(n if totals else 0)
    )
    for start, stop in ((0, n // 3), (n // 3, n)):
        kernels.top_of_pairs(
            dtype.type(sign), *_sides(case), by_user, by_item, *_pairs(case), start, stop, top
        )
    return top


def _sides(case):
    return case.user_side, case.item_side


def _pairs(case):
    return case.query_users, case.query_items


def assert_sparse_rows(kernels, case):
    """Every example that shares a row, ascending, in a part of the arrays that is all theirs."""
    by_user, by_item, influence = vectors_and_influence(case)
    pointers, expected_indices, expected_values = rows_oracle.sparse(influence)
    indices = np.full(pointers[-1], -1, np.int32)
    values = np.full(pointers[-1], np.nan, by_user.dtype)
    starts = np.array(pointers[:-1], np.int64)
    kernels.sparse_pairs(
        *_sides(case), by_user, by_item, *_pairs(case), starts, indices, values
    )  # fmt: skip
    assert indices.tolist() == expected_indices
    np.testing.assert_allclose(values, expected_values, rtol=0, atol=case.rounding * 4)


def assert_exact_lists(kernels, case, k, sign, totals):
    """Sums of whole numbers are exact, so even ties come in the order of the training index.

    Pairs that have an example, as all do that were trained on.
    """
    by_user, by_item, influence = vectors_and_influence(case, kind="whole")
    some = np.array([not np.isnan(row).all() for row in influence], bool)
    top = read(kernels, case, by_user, by_item, k, sign, totals)
    values, indices, total = readout_oracle.explain(influence, k, sign)
    np.testing.assert_array_equal(top.values[some], values[some])
    np.testing.assert_array_equal(top.indices[some], indices[some])
    if totals:
        np.testing.assert_array_equal(top.totals, total)


def assert_lists(kernels, case, k):
    """Lists of real numbers, whose order rounding may change where they are nearly equal."""
    by_user, by_item, influence = vectors_and_influence(case)
    top = read(kernels, case, by_user, by_item, k)
    values, indices, totals = readout_oracle.explain(influence, k, 1)
    close = {"rtol": 0, "atol": 8 * case.rounding}
    np.testing.assert_allclose(top.values, values, **close)
    there = indices >= 0
    np.testing.assert_array_equal(top.indices >= 0, there)
    found = np.take_along_axis(influence, np.maximum(top.indices, 0), axis=1)
    np.testing.assert_allclose(found[there], values[there], **close)
    np.testing.assert_allclose(top.totals, totals, rtol=1e-5)
    assert (np.sort(top.indices) == np.sort(indices)).mean() > 0.99


def assert_own_pairs(kernels, store, n=40, k=5):
    """Examples on the scores of their own pairs, some of which have several."""
    fixed = {"n_users": 3, "n_items": 4, "n_train": n, "k": k, "store": store, "kind": "whole"}
    model = make_case(**fixed)
    users, items = (unpacked(model, side)[1] for side in _sides(model))
    pairs = sorted(set(zip(users.tolist(), items.tolist(), strict=True)))
    assert len(pairs) < n
    case = make_case(**fixed, queries=pairs)
    by_user, by_item, influence = vectors_and_influence(case, kind="whole")
    bounds, out = np.append(case.own_bounds[:, 0], n), np.full(n, np.nan, by_user.dtype)
    places, middle = (case.own_places, case.own_item_places), len(pairs) // 3
    for start, stop in ((0, middle), (middle, len(pairs))):
        kernels.own_of_pairs(
            *_sides(case), by_user[start:stop], by_item[start:stop],
            *(codes[start:stop] for codes in _pairs(case)), bounds[start : stop + 1], places, out,
        )  # fmt: skip
    numbers = [pairs.index(pair) for pair in zip(users.tolist(), items.tolist(), strict=True)]
    np.testing.assert_array_equal(out, influence[numbers, np.arange(n)])
