"""The read-out in torch: packed rows, lists of the best k, ties, whole rows, own pairs."""

from __future__ import annotations

import numpy as np
import pytest
import readout_cases
from backends import Kernels, memory_of
from hypothesis import given, settings
from hypothesis import strategies as st
from influence_cases import STORES, cases, make_case, pointers_of
from oracles import panels as panels_oracle
from oracles import readout as oracle
from oracles import rows as rows_oracle

from fastinfluence.kernels.structures import Exclusions, Queries, Side, Top

torch = pytest.importorskip("torch")
READOUT, ROWS, PANELS = (Kernels("torch", name) for name in ("readout", "rows", "panels"))

few = settings(deadline=None, max_examples=15, derandomize=True)
some_k = st.sampled_from([1, 2, 5, 10, 17, 70])


def one_by_one(part, n_units):
    """Call for the tiles of a side one by one."""
    for unit in range(n_units):
        part((unit, unit + 1))


def assert_like_oracle(case, k, sign=1, *, exact):
    readout_cases.assert_like_oracle(READOUT, case, k, sign, exact)


# ---------------------------------------------------------------- lists


@few
@given(cases(kind="whole") | cases(kind="constant"), some_k, st.sampled_from([1, -1]))
def test_ties_go_by_training_index(case, k, sign):
    assert_like_oracle(case, k, sign, exact=True)


@few
@given(cases(kind="real"), some_k, st.sampled_from([1, -1]))
def test_real_numbers(case, k, sign):
    assert_like_oracle(case, k, sign, exact=False)


@pytest.mark.parametrize("store", STORES)
@pytest.mark.parametrize("kind", ["real", "whole", "constant"])
def test_one_user_of_many_examples(kind, store):
    case = make_case(n_users=1, n_items=9, n_train=500, n_queries=6, k=3, store=store, kind=kind)
    for k in (1, 10, 40):
        assert_like_oracle(case, k, exact=kind != "real")


def test_more_queries_than_a_tile_holds():
    case = make_case(n_users=1, n_items=3, n_train=20, n_queries=1500, k=2, kind="whole")
    units = READOUT.tile_units(case.user_side.pointers, np.array([0, 1500]))
    assert len(units) > 1
    assert_like_oracle(case, 4, exact=True)


def test_however_the_work_is_cut():
    case = make_case(n_users=6, n_items=9, n_train=200, n_queries=80, kind="whole")
    for whole, parts in zip(
        readout_cases.read_out(READOUT, case, 10),
        readout_cases.read_out(READOUT, case, 10, cut=one_by_one),
        strict=True,
    ):
        np.testing.assert_array_equal(whole, parts)


def test_memory_bounds_the_batches(monkeypatch):
    """One group at a time where no more fits: the lists do not change."""
    from fastinfluence.kernels.torch import batches

    case = make_case(n_users=6, n_items=9, n_train=200, n_queries=80, kind="whole")
    whole = readout_cases.read_out(READOUT, case, 10)
    monkeypatch.setattr(batches, "CHUNK", 1)
    for mine, its in zip(readout_cases.read_out(READOUT, case, 10), whole, strict=True):
        np.testing.assert_array_equal(mine, its)


def test_totals_are_left_out_on_request():
    case = make_case(n_train=100)
    with_totals, without = (
        readout_cases.read_out(READOUT, case, 5),
        readout_cases.read_out(READOUT, case, 5, totals=False),
    )
    np.testing.assert_array_equal(with_totals.values, without.values)
    np.testing.assert_array_equal(with_totals.indices, without.indices)


def test_no_training_examples():
    top = readout_cases.read_out(READOUT, make_case(n_train=0, n_queries=4), 3)
    assert (top.indices == -1).all()
    assert np.isneginf(top.values).all()
    assert not top.totals.any()


def test_vectors_of_bfloat16_are_multiplied_in_it():
    """Small whole numbers are exact in bfloat16, products and all."""
    from fastinfluence.kernels.torch import panels, readout

    case = make_case(n_users=1, n_train=60, k=2, n_queries=0, store=np.uint16, kind="whole")
    side = memory_of("torch").put(case.user_side)
    assert side.rows.dtype == torch.bfloat16
    vectors = torch.tensor([[1, -1, 1], [2, 0, 1]], dtype=torch.bfloat16)
    ids, none, n = torch.arange(2), torch.zeros(2, dtype=torch.int64), 60
    top = Top(torch.full((2, n), -torch.inf), torch.full((2, n), -1), torch.zeros(2).double())
    readout.read_side(
        1.0, side, Queries(ids, ids, vectors), Exclusions(none, none, none[:0]),
        torch.tensor([[0, 0, 2]]), 0, 1, top,
    )  # fmt: skip
    places = torch.arange(n)
    rows = panels.unpack_rows(side, 0 * places, places, 3, torch.float32)
    expected = (rows @ vectors.float().T).sort(dim=0, descending=True)[0].T
    np.testing.assert_array_equal(top.values, expected)


@few
@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(-1, 4)), max_size=30),
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 9)), max_size=10),
)
def test_finds_pairs(known, queries):
    known = sorted(known)
    users, items = np.array(known, np.int32).reshape(-1, 2).T.copy()
    query_users, query_items = np.array(queries, np.int32).reshape(-1, 2).T.copy()
    n = len(query_users)
    starts, stops = np.full(n, -1), np.full(n, -1)
    for start, stop in ((0, n // 3), (n // 3, n)):
        READOUT.find_pairs(
            pointers_of(users, 4), items, query_users, query_items, start, stop, starts, stops
        )
    expected = oracle.find_pairs(known, query_users.tolist(), query_items.tolist())
    assert list(zip(starts.tolist(), stops.tolist(), strict=True)) == expected


# ---------------------------------------------------------------- packed rows


@few
@given(
    st.integers(0, 99), st.lists(st.integers(0, 40), min_size=1, max_size=5),
    st.integers(1, 20), st.sampled_from(STORES),
)  # fmt: skip
def test_packs_and_unpacks(seed, sizes, k, store):
    rng, n = np.random.default_rng(seed), sum(sizes)
    dtype = np.float64 if store == np.float64 else np.float32
    factors, biases = (rng.standard_normal(shape).astype(dtype) for shape in ((n, k), (n,)))
    pointers, sources = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64), rng.permutation(n)
    out, half = np.zeros(n * (k + 1), store), len(sizes) // 2
    for bounds in ((0, half), (half, len(sizes))):
        PANELS.pack_rows(factors, biases, sources, pointers, *bounds, out)
    expected = panels_oracle.pack_rows(factors, biases, sources, pointers, store)
    np.testing.assert_array_equal(out, expected)
    groups = np.repeat(np.arange(len(sizes)), sizes)
    side = Side(out, pointers, np.arange(n))
    rows = PANELS.unpack_rows(side, groups, np.arange(n), k + 1, _torch_dtype(dtype))
    whole = np.column_stack([factors, biases])[sources]
    np.testing.assert_allclose(rows, whole, rtol=2.0**-8 if store == np.uint16 else 0)


def _torch_dtype(dtype):
    return torch.float64 if dtype == np.float64 else torch.float32


# ---------------------------------------------------------------- single examples


@few
@given(cases())
def test_whole_rows_of_the_influence_matrix(case):
    pointers, expected_indices, expected_values = rows_oracle.sparse(case.influence)
    indices = np.full(pointers[-1], -1, np.int32)
    values = np.full(pointers[-1], np.nan, case.user_vectors.dtype)
    ROWS.sparse_influence(
        case.user_side, case.item_side, case.item_vectors, case.user_vectors, case.query_users,
        case.query_items, np.array(pointers, np.int64), indices, values,
    )  # fmt: skip
    assert indices.tolist() == expected_indices
    np.testing.assert_allclose(values, expected_values, rtol=0, atol=case.rounding)


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
        ROWS.self_influence(
            case.user_side, case.item_side, (case.own_places, case.own_item_places),
            case.item_vectors, case.user_vectors, users, items, by_pair[start:stop], start, out,
        )  # fmt: skip
    np.testing.assert_array_equal(out, np.diag(case.influence))


def test_rows_of_some_examples_add_up():
    rng = np.random.default_rng(0)
    sizes = [40, 0, 0, *rng.integers(0, 20, 7)]
    n, k = int(sum(sizes)), 5
    pointers = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    rows = rng.integers(-8, 9, (n, k + 1)).astype(np.float32)
    packed = panels_oracle.pack_rows(rows[:, :-1], rows[:, -1], np.arange(n), pointers, np.float32)
    places, targets = rng.integers(0, n, 50), rng.integers(0, 4, 50)
    groups = np.repeat(np.arange(len(sizes)), sizes)[places].astype(np.int32)
    sums = np.ones((5, k + 1))
    ROWS.add_rows(Side(packed, pointers, np.arange(n)), groups, places, targets, sums)
    expected = np.ones((5, k + 1))
    np.add.at(expected, targets, rows[places])
    assert sums.tolist() == expected.tolist()
