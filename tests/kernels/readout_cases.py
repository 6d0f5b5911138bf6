"""Read-out of a case by the kernels of a backend, and what to hold it against."""

from __future__ import annotations

import numpy as np
from influence_cases import pointers_of
from oracles import readout as oracle

from fastinfluence.kernels.structures import Exclusions, Queries, Top

__all__ = ["assert_like_oracle", "read_out"]


def serially(part, n_units):
    part((0, n_units))


def read_out(kernels, case, k, sign=1, totals=True, cut=serially):
    """Best k of every query; `cut` says how the tiles of a side are called for."""
    dtype, n_queries = case.user_vectors.dtype, len(case.query_users)
    top = Top(
        np.full((n_queries, k), -np.inf, dtype),
        np.full((n_queries, k), -1, np.int32),
        np.zeros(n_queries if totals else 0),
    )
    starts, stops = case.own_bounds.T.copy()
    sign = dtype.type(sign)
    for side, groups, columns, vectors, places in (
        (case.user_side, case.query_users, case.query_items, case.item_vectors, case.own_places),
        (
            case.item_side,
            case.query_items,
            case.query_users,
            case.user_vectors,
            case.own_item_places,
        ),
    ):
        ids = np.argsort(groups, kind="stable")
        queries = Queries(ids, columns[ids], vectors)
        exclusions = Exclusions(starts, stops, places)
        units = kernels.tile_units(side.pointers, pointers_of(groups, len(side.pointers) - 1))

        def part(bounds, side=side, queries=queries, exclusions=exclusions, units=units):
            kernels.read_side(sign, side, queries, exclusions, units, *bounds, top)

        cut(part, len(units))
    own = Exclusions(starts, stops, case.own_places)
    kernels.read_own(
        sign,
        case.user_side,
        case.item_side,
        own,
        case.own_item_places,
        (case.item_vectors, case.user_vectors),
        case.query_users,
        case.query_items,
        top,
    )
    return top


def assert_like_oracle(kernels, case, k, sign, exact):
    """Lists, and totals, are those of the whole matrix of influences."""
    top = read_out(kernels, case, k, sign)
    values, indices, totals = oracle.explain(case.influence, k, sign)
    np.testing.assert_array_equal(top.indices == -1, indices == -1)
    if exact:
        np.testing.assert_array_equal(top.values, values)
        np.testing.assert_array_equal(top.indices, indices)
        np.testing.assert_array_equal(top.totals, totals)
        return
    close = {"rtol": 0, "atol": case.rounding}
    np.testing.assert_allclose(top.values, values, **close)
    sums = case.rounding * len(case.user_side.order)
    np.testing.assert_allclose(top.totals, totals, rtol=1e-5, atol=sums)
    for row_values, row_indices, truth in zip(top.values, top.indices, case.influence, strict=True):
        listed = row_indices[row_indices >= 0]
        assert len(set(listed.tolist())) == len(listed)
        np.testing.assert_allclose(row_values[: len(listed)], sign * truth[listed], **close)
