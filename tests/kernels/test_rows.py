from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from influence_cases import STORES, cases, make_case, pointers_of
from oracles import rows as oracle

from fastinfluence.kernels.cpu.rows import (
    add_rows,
    own_influence,
    self_influence,
    sparse_influence,
)
from fastinfluence.readout import pack_side


def assert_sparse_like_oracle(case):
    pointers, expected_indices, expected_values = oracle.sparse(case.influence)
    indices = np.full(pointers[-1], -1, np.int32)
    values = np.full(pointers[-1], np.nan, case.user_vectors.dtype)
    sparse_influence(
        case.user_side,
        case.item_side,
        case.item_vectors,
        case.user_vectors,
        case.query_users,
        case.query_items,
        np.array(pointers, np.int64),
        indices,
        values,
    )
    assert indices.tolist() == expected_indices
    np.testing.assert_allclose(values, expected_values, rtol=0, atol=case.rounding)


@settings(deadline=None, max_examples=60)
@given(cases())
def test_whole_rows_of_the_influence_matrix(case):
    assert_sparse_like_oracle(case)


@pytest.mark.parametrize("store", STORES)
@pytest.mark.parametrize("k", [1, 15, 16, 17, 64, 200])
def test_rows_of_every_width(k, store):
    assert_sparse_like_oracle(make_case(k=k, store=store, n_train=70))


@pytest.mark.parametrize("store", STORES)
def test_own_pair_takes_both_rows_back(store):
    case = make_case(n_users=2, n_items=2, n_train=30, n_queries=12, store=store, kind="whole")
    work = np.zeros((2, case.user_vectors.shape[1]), case.user_vectors.dtype)
    n_checked = 0
    for n, (start, stop) in enumerate(case.own_bounds):
        u, i = case.query_users[n], case.query_items[n]
        for e in range(start, stop):
            place = case.own_places[e]
            got = own_influence(
                case.user_side,
                case.item_side,
                u,
                i,
                place,
                case.own_item_places[e],
                case.item_vectors[i],
                case.user_vectors[u],
                work,
            )
            assert got == case.influence[n, case.user_side.order[place]]
            n_checked += 1
    assert n_checked > 10


@pytest.mark.parametrize("store", STORES)
def test_self_influence_of_a_stretch_of_examples(store):
    model = make_case(n_users=3, n_items=4, n_train=40, store=store, kind="whole")
    users, items = np.empty(40, np.int32), np.empty(40, np.int32)
    for side, codes in ((model.user_side, users), (model.item_side, items)):
        codes[side.order] = np.repeat(np.arange(len(side.pointers) - 1), np.diff(side.pointers))
    pairs = list(zip(users.tolist(), items.tolist(), strict=True))
    case = make_case(n_users=3, n_items=4, store=store, kind="whole", queries=pairs)
    by_pair = case.user_side.order[case.own_places]
    out = np.full(40, np.nan, case.user_vectors.dtype)
    for start, stop in ((0, 15), (15, 40)):
        self_influence(
            case.user_side,
            case.item_side,
            (case.own_places, case.own_item_places),
            case.item_vectors,
            case.user_vectors,
            users,
            items,
            by_pair[start:stop],
            start,
            out,
        )
    np.testing.assert_array_equal(out, np.diag(case.influence))


@pytest.mark.parametrize("store", STORES)
@pytest.mark.parametrize("k", [1, 15, 16, 17, 64])
def test_rows_of_some_examples_add_up(k, store):
    rng = np.random.default_rng(k)
    codes = np.sort(rng.integers(0, 9, 120))  # groups of fewer and more than 16 rows
    codes[:40] = 0
    codes[40:] += 2  # and an empty one
    rows = rng.integers(-8, 9, (120, k + 1)).astype(np.float32)  # exact in every dtype
    dtype = "bfloat16" if store == np.uint16 else np.dtype(store).name
    factors = rows[:, :-1].astype(np.float32 if store == np.uint16 else store)
    side = pack_side(
        np.ascontiguousarray(factors),
        rows[:, -1].astype(factors.dtype),
        np.arange(120),
        pointers_of(codes, 12),
        np.arange(120),
        dtype=dtype,
    )
    assert side.rows.dtype == store
    places = rng.integers(0, 120, 50)
    targets = rng.integers(0, 4, 50)
    sums = np.ones((5, k + 1))
    add_rows(side, codes[places].astype(np.int32), places, targets, sums)
    expected = np.ones((5, k + 1))
    for place, target in zip(places, targets, strict=True):
        expected[target] += rows[place]
    assert sums.tolist() == expected.tolist()
