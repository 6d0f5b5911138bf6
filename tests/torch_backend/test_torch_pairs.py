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
from oracles import readout as readout_oracle
from oracles import row_blocks as oracle
from oracles import rows as rows_oracle
from test_pair_readout import both, seen, unpacked, vectors_and_influence
from test_row_blocks import definite_blocks, make_case

from fastinfluence.kernels.cpu.losses import BPR, LOGISTIC, SQUARED
from fastinfluence.kernels.structures import Top

pytest.importorskip("torch")
BLOCKS, READOUT = Kernels("torch", "row_blocks"), Kernels("torch", "pair_readout")
LOSS = st.sampled_from([SQUARED, LOGISTIC, BPR])
EXACT = {"rtol": 1e-9, "atol": 1e-10}

few = settings(deadline=None, max_examples=10, derandomize=True)


# ---------------------------------------------------------------- blocks


@few
@given(LOSS, st.integers(0, 20), st.integers(1, 20), st.integers(0, 10**6))
def test_gradients_of_single_examples(loss, n, k, seed):
    case, rng = make_case(loss, n=n, k=k, seed=seed), np.random.default_rng(seed)
    places = rng.permutation(n), rng.permutation(n)
    found = [np.full(shape, np.nan) for shape in ((n, k), (n,), (n, k), (n,))]
    for start, stop in ((0, n // 3), (n // 3, n)):
        BLOCKS.own_gradients(
            case.rows, case.parameters, case.edges, case.users, case.items, case.gradients,
            case.l2, places, start, stop, *found,
        )  # fmt: skip
    for j, example in enumerate(case.examples):
        expected = oracle.own_gradients(example, case.user_rows, case.item_rows)
        for side in (0, 1):
            place = places[side][case.edges.examples[j]]
            got = np.append(found[2 * side][place], found[2 * side + 1][place])
            np.testing.assert_allclose(got, expected[side], **EXACT)


@few
@given(
    st.lists(st.sampled_from([0, 1, 3, 17, 40]), min_size=1, max_size=5), st.integers(1, 34),
    st.floats(0.1, 3), st.integers(0, 10**6),
)  # fmt: skip
def test_rows_are_solved_group_by_group(sizes, k, damping, seed):
    rng = np.random.default_rng(seed)
    blocks = definite_blocks(rng, len(sizes), k + 1)
    pointers = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    gradients = rng.standard_normal((sum(sizes), k + 1))
    rows, biases = gradients[:, :-1].copy(), gradients[:, -1].copy()
    definite, middle = np.zeros(len(sizes), bool), len(sizes) // 2
    for start, stop in ((0, middle), (middle, len(sizes))):
        BLOCKS.solve_rows(
            np.tril(blocks), damping, 1e-14, pointers, rows, biases, start, stop, definite
        )  # fmt: skip
    assert definite.all()
    for group, block in enumerate(blocks):
        some = slice(pointers[group], pointers[group + 1])
        expected = -np.linalg.solve(block + damping * np.eye(k + 1), gradients[some].T).T
        np.testing.assert_allclose(np.column_stack([rows[some], biases[some]]), expected, **EXACT)


@pytest.mark.parametrize(
    "block", [np.zeros((3, 3)), np.outer([1, 2, 3], [1, 2, 3.0]), np.diag([1, -1, 1.0])]
)
def test_a_block_that_is_not_definite_is_told(block):
    blocks = np.stack([np.eye(3), block, block, np.eye(3)])
    pointers = np.array([0, 2, 4, 4, 5])  # the second of the two has no examples
    rows, biases, definite = np.ones((5, 2)), np.ones(5), np.zeros(4, bool)
    BLOCKS.solve_rows(blocks, 0.0, 1e-15, pointers, rows, biases, 0, 4, definite)
    assert definite.tolist() == [True, False, True, True]
    assert biases.tolist() == [-1, -1, 1, 1, -1]


def coupled(case, loss, full):
    """Rows and names of all pairs trained on, and the blocks between their rows."""
    items = case.items[case.edges.first[:-1]]
    owns = np.lexsort((items, case.users))
    rows = np.column_stack([case.users, items])[owns].astype(np.int64)
    rows, starts, counts = np.unique(rows, axis=0, return_index=True, return_counts=True)
    d = case.rows.shape[1]
    out = np.full((len(rows), d, d), np.nan)
    BLOCKS.couple(
        loss, full, case.rows, case.edges, case.users, case.items, case.gradients,
        case.curvatures, owns, starts, starts + counts, out,
    )  # fmt: skip
    return rows, out


def linked(case, blocks, damping, couplings, rows):
    by_user, by_item = (np.full((len(rows), case.rows.shape[1]), np.nan) for _ in range(2))
    definite = np.zeros(len(rows), bool)
    BLOCKS.link_pairs(
        np.tril(blocks), damping, 1e-14, case.rows, couplings, rows[:, 0].copy(),
        rows[:, 1].copy(), by_user, by_item, definite,
    )  # fmt: skip
    return by_user, by_item, definite


@few
@given(LOSS, st.booleans(), st.integers(1, 20), st.integers(1, 12), st.integers(0, 10**6))
def test_the_block_between_two_rows(loss, full, n, k, seed):
    case = make_case(loss, n=n, k=k, seed=seed)
    rows, couplings = coupled(case, loss, full)
    for (user, item), found in zip(rows.tolist(), couplings, strict=True):
        expected = oracle.coupling(
            case.examples, user, item - len(case.user_rows), case.user_rows, case.item_rows, loss,
            full=full,
        )  # fmt: skip
        np.testing.assert_allclose(found, expected, **EXACT)


@few
@given(LOSS, st.integers(1, 20), st.integers(1, 12), st.integers(0, 10**6))
def test_vectors_of_linked_rows(loss, n, k, seed):
    """``(x_u, x_i)``: the whole system's solution times the blocks of its diagonal."""
    case, damping = make_case(loss, n=n, k=k, seed=seed), 0.7
    blocks = np.concatenate(oracle.blocks(case.examples, case.user_rows, case.item_rows, loss))
    rows, couplings = coupled(case, loss, full=False)
    by_user, by_item, definite = linked(case, blocks, damping, couplings, rows)
    assert definite.all()
    d, damped = k + 1, blocks + damping * np.eye(k + 1)
    for number, (u, i) in enumerate(rows):
        between = couplings[number]
        hessian = np.block([[damped[u], between], [between.T, damped[i]]])
        v = np.linalg.solve(hessian, np.concatenate([case.rows[i], case.rows[u]]))
        np.testing.assert_allclose(by_user[number], damped[u] @ v[:d], rtol=1e-8, atol=1e-9)
        np.testing.assert_allclose(by_item[number], damped[i] @ v[d:], rtol=1e-8, atol=1e-9)


def test_a_link_stronger_than_the_blocks_is_told():
    case = make_case()
    blocks = np.concatenate(oracle.blocks(case.examples, case.user_rows, case.item_rows, SQUARED))
    rows, couplings = coupled(case, SQUARED, full=False)
    couplings[1] *= 100
    by_user, _, definite = linked(case, blocks, 0.1, couplings, rows)
    assert definite.tolist() == [number != 1 for number in range(len(rows))]
    assert np.isnan(by_user).all(axis=1).tolist() == (~definite).tolist()


# ---------------------------------------------------------------- read-out


def read(case, by_user, by_item, k, sign=1, totals=True):
    n, dtype = len(case.query_users), by_user.dtype
    top = Top(
        np.full((n, k), -np.inf, dtype), np.full((n, k), -1, np.int32), np.zeros(n if totals else 0)
    )
    for start, stop in ((0, n // 3), (n // 3, n)):
        READOUT.top_of_pairs(dtype.type(sign), *both(case, by_user, by_item), start, stop, top)
    return top


@few
@given(readout_cases())
def test_whole_rows_of_pairs(case):
    by_user, by_item, influence = vectors_and_influence(case)
    pointers, expected_indices, expected_values = rows_oracle.sparse(influence)
    indices = np.full(pointers[-1], -1, np.int32)
    values = np.full(pointers[-1], np.nan, by_user.dtype)
    starts = np.array(pointers[:-1], np.int64)
    READOUT.sparse_pairs(*both(case, by_user, by_item), starts, indices, values)
    assert indices.tolist() == expected_indices
    np.testing.assert_allclose(values, expected_values, rtol=0, atol=case.rounding * 4)


@few
@given(readout_cases(kind="whole"), st.integers(1, 40), st.sampled_from([1, -1]), st.booleans())
def test_lists_of_whole_numbers(case, k, sign, totals):
    by_user, by_item, influence = vectors_and_influence(case, kind="whole")
    some = seen(case, influence)
    top = read(case, by_user, by_item, k, sign, totals)
    values, indices, total = readout_oracle.explain(influence, k, sign)
    np.testing.assert_array_equal(top.values[some], values[some])
    np.testing.assert_array_equal(top.indices[some], indices[some])
    if totals:
        np.testing.assert_array_equal(top.totals, total)


@pytest.mark.parametrize("store", STORES)
def test_examples_on_their_own_pairs(store):
    fixed = {"n_users": 3, "n_items": 4, "n_train": 40, "store": store, "kind": "whole"}
    model = make_readout_case(**fixed)
    users, items = (unpacked(model, side)[1] for side in (model.user_side, model.item_side))
    pairs = sorted(set(zip(users.tolist(), items.tolist(), strict=True)))
    case = make_readout_case(**fixed, queries=pairs)
    by_user, by_item, influence = vectors_and_influence(case, kind="whole")
    bounds = np.append(case.own_bounds[:, 0], 40)
    out = np.full(40, np.nan, by_user.dtype)
    places = case.own_places, case.own_item_places
    READOUT.own_of_pairs(*both(case, by_user, by_item), bounds, places, out)
    numbers = [pairs.index(pair) for pair in zip(users.tolist(), items.tolist(), strict=True)]
    np.testing.assert_array_equal(out, influence[numbers, np.arange(40)])


def test_memory_bounds_what_is_read_at_once(monkeypatch):
    from fastinfluence.kernels.torch import batches

    case = make_readout_case(n_train=200, n_queries=30, kind="whole")
    by_user, by_item, _ = vectors_and_influence(case, kind="whole")
    whole = read(case, by_user, by_item, 7)
    monkeypatch.setattr(batches, "CHUNK", 1)
    for mine, its in zip(read(case, by_user, by_item, 7), whole, strict=True):
        np.testing.assert_array_equal(mine, its)
