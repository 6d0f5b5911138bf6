from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from influence_cases import NUMBERS, STORES, cases, make_case, pointers_of
from oracles import readout as oracle
from readout_cases import assert_like_oracle, read_out

from fastinfluence.kernels.cpu import readout
from fastinfluence.kernels.cpu.readout import find_pairs, tile_units


def backwards(part, n_units):
    for unit in reversed(range(n_units)):
        part((unit, unit + 1))


def in_threads(part, n_units):
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(part, [(unit, unit + 1) for unit in range(n_units)]))


some_k = st.sampled_from([1, 2, 5, 10, 16, 17, 30, 70])


@settings(deadline=None, max_examples=120)
@given(cases(kind="whole") | cases(kind="constant"), some_k, st.sampled_from([1, -1]))
def test_ties_go_by_training_index(case, k, sign):
    assert_like_oracle(readout, case, k, sign, exact=True)


@settings(deadline=None, max_examples=60)
@given(cases(kind="real"), some_k, st.sampled_from([1, -1]))
def test_real_numbers(case, k, sign):
    assert_like_oracle(readout, case, k, sign, exact=False)


@pytest.mark.parametrize("store", STORES)
@pytest.mark.parametrize("kind", sorted(NUMBERS))
@pytest.mark.parametrize("n_train", [300, 1200])
def test_one_user_of_many_examples(n_train, kind, store):
    case = make_case(
        n_users=1, n_items=9, n_train=n_train, n_queries=6, k=3, store=store, kind=kind
    )
    for k in (1, 10, 40):
        assert_like_oracle(readout, case, k, 1, exact=kind != "real")


def test_every_pair_in_one_call():
    """All items for every user: the vectors of a tile's queries are then neighbours."""
    pairs = [(u, i) for u in range(4) for i in range(30)]
    case = make_case(n_users=4, n_items=30, n_train=90, kind="whole", queries=pairs)
    assert_like_oracle(readout, case, 10, 1, exact=True)


def test_more_queries_than_a_tile_holds():
    case = make_case(n_users=1, n_items=3, n_train=20, n_queries=1500, k=2, kind="whole")
    units = tile_units(case.user_side.pointers, np.array([0, 1500]))
    assert len(units) > 1
    assert_like_oracle(readout, case, 4, 1, exact=True)


@pytest.mark.parametrize("cut", [backwards, in_threads])
@pytest.mark.parametrize("store", STORES)
def test_same_bits_however_the_work_is_cut(store, cut):
    case = make_case(n_users=6, n_items=9, n_train=200, n_queries=80, store=store)
    whole, parts = read_out(readout, case, 10), read_out(readout, case, 10, cut=cut)
    for a, b in zip(whole, parts, strict=True):
        np.testing.assert_array_equal(a, b)


def test_same_bits_alone_as_in_company():
    case = make_case(n_users=2, n_items=5, n_train=150, n_queries=33)
    together = read_out(readout, case, 10)
    for n in range(33):
        one = slice(n, n + 1)
        alone = read_out(
            readout,
            case._replace(
                query_users=case.query_users[one],
                query_items=case.query_items[one],
                own_bounds=case.own_bounds[one],
            ),
            10,
        )
        for a, b in zip(together, alone, strict=True):
            np.testing.assert_array_equal(a[one], b)


def test_totals_are_left_out_on_request():
    case = make_case(n_train=100)
    with_totals, without = read_out(readout, case, 5), read_out(readout, case, 5, totals=False)
    np.testing.assert_array_equal(with_totals.values, without.values)
    np.testing.assert_array_equal(with_totals.indices, without.indices)
    assert without.totals.size == 0


def test_no_training_examples():
    top = read_out(readout, make_case(n_train=0, n_queries=4), 3)
    assert (top.indices == -1).all()
    assert np.isneginf(top.values).all()
    assert not top.totals.any()


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(0, 5000) | st.just(0), min_size=1, max_size=6), st.data())
def test_units_cover_every_query_that_has_candidates(sizes, data):
    counts = [data.draw(st.sampled_from([0, 1, 16, 17, 300, 1100])) for _ in sizes]
    pointers, query_pointers = (np.concatenate([[0], np.cumsum(a)]) for a in (sizes, counts))
    units = tile_units(pointers, query_pointers)
    covered = [(group, s) for group, start, stop in units for s in range(start, stop)]
    expected = [
        (group, s)
        for group, size in enumerate(sizes)
        for s in range(query_pointers[group], query_pointers[group + 1])
        if size
    ]
    assert covered == expected
    assert (units[:, 1] < units[:, 2]).all()


@settings(deadline=None, max_examples=50)
@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 4)), max_size=30),
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 5)), max_size=10),
)
def test_finds_pairs(known, queries):
    known = sorted(known)
    users, items = np.array(known, np.int32).reshape(-1, 2).T.copy()
    query_users, query_items = np.array(queries, np.int32).reshape(-1, 2).T.copy()
    n = len(query_users)
    starts, stops = np.full(n, -1), np.full(n, -1)
    pointers = pointers_of(users, 4)
    for start, stop in ((0, n // 3), (n // 3, n)):  # as two threads would
        find_pairs(pointers, items, query_users, query_items, start, stop, starts, stops)
    expected = oracle.find_pairs(known, query_users.tolist(), query_items.tolist())
    assert list(zip(starts.tolist(), stops.tolist(), strict=True)) == expected
