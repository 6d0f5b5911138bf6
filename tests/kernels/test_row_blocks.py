"""Blocks of the Hessian on the rows of a pair: gradients, solves, links between two rows."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import row_blocks as oracle

from fastinfluence.kernels.cpu.losses import BPR, LOGISTIC, SQUARED
from fastinfluence.kernels.cpu.row_blocks import couple, link_pairs, own_gradients, solve_rows
from fastinfluence.kernels.structures import Edges

LOSS = st.sampled_from([SQUARED, LOGISTIC, BPR])
EXACT = {"rtol": 1e-9, "atol": 1e-10}


class Case(NamedTuple):
    examples: list  # of the oracle, user by user
    user_rows: np.ndarray
    item_rows: np.ndarray
    rows: np.ndarray  # factors and a one, of users and items
    parameters: np.ndarray
    edges: Edges
    users: np.ndarray
    items: np.ndarray
    gradients: np.ndarray
    curvatures: np.ndarray
    l2: np.ndarray


def make_case(loss=SQUARED, *, n=12, k=3, n_users=3, n_items=5, seed=0, dtype=np.float64):
    """Random examples, some of the same pair; the numbers are not those of any loss."""
    rng = np.random.default_rng(seed)
    user_rows, item_rows = (
        rng.standard_normal((m, k + 1)).astype(dtype) for m in (n_users, n_items)
    )
    examples = []
    for user in np.sort(rng.integers(0, n_users, n)).tolist():
        own = int(rng.integers(n_items))
        others = [item for item in rng.permutation(n_items).tolist() if item != own]
        candidates = [own, *(others[: rng.integers(1, 4)] if loss != SQUARED else [])]
        gradients = rng.standard_normal(len(candidates)).tolist()
        curvatures, l2 = rng.random((2, len(candidates))).tolist()
        examples.append(oracle.Example(user, candidates, gradients, curvatures, l2))
    sizes = [len(example.candidates) for example in examples]
    parameters = np.concatenate([user_rows, item_rows])
    rows = parameters.copy()
    rows[:, -1] = 1
    first = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    nothing = np.zeros(0, np.int32)

    def flat(name):
        return np.concatenate([getattr(e, name) for e in examples]) if examples else np.zeros(0)

    return Case(
        examples,
        user_rows,
        item_rows,
        rows,
        parameters,
        Edges(first[:1], nothing, nothing, first, nothing, rng.permutation(n).astype(np.int64)),
        np.array([e.user for e in examples], np.int32),
        (flat("candidates") + n_users).astype(np.int32),
        flat("gradients").astype(dtype),
        flat("curvatures").astype(dtype),
        flat("l2").astype(dtype),
    )


@settings(max_examples=40, deadline=None)
@given(LOSS, st.integers(0, 20), st.integers(1, 20), st.integers(0, 10**6))
def test_gradients_of_single_examples(loss, n, k, seed):
    case = make_case(loss, n=n, k=k, seed=seed)
    rng = np.random.default_rng(seed)
    places = rng.permutation(n), rng.permutation(n)
    found = [np.full(shape, np.nan) for shape in ((n, k), (n,), (n, k), (n,))]
    for start, stop in ((0, n // 3), (n // 3, n)):
        own_gradients(
            case.rows, case.parameters, case.edges, case.users, case.items, case.gradients,
            case.l2, places, start, stop, *found,
        )  # fmt: skip
    for j, example in enumerate(case.examples):
        expected = oracle.own_gradients(example, case.user_rows, case.item_rows)
        for side in (0, 1):
            place = places[side][case.edges.examples[j]]
            got = np.append(found[2 * side][place], found[2 * side + 1][place])
            np.testing.assert_allclose(got, expected[side], **EXACT)


def definite_blocks(rng, n, d):
    factors = rng.standard_normal((n, d, d + 2))
    return factors @ factors.transpose(0, 2, 1)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.sampled_from([0, 1, 3, 15, 16, 17, 40]), min_size=1, max_size=5),
    st.integers(1, 34),
    st.floats(0.1, 3),
    st.integers(0, 10**6),
)
def test_rows_are_solved_group_by_group(sizes, k, damping, seed):
    rng = np.random.default_rng(seed)
    blocks = definite_blocks(rng, len(sizes), k + 1)
    pointers = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    gradients = rng.standard_normal((sum(sizes), k + 1))
    rows, biases = gradients[:, :-1].copy(), gradients[:, -1].copy()
    definite = np.zeros(len(sizes), bool)
    middle = len(sizes) // 2
    for start, stop in ((0, middle), (middle, len(sizes))):
        solve_rows(
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
    rows, biases = np.ones((5, 2)), np.ones(5)
    definite = np.zeros(4, bool)
    solve_rows(blocks, 0.0, 1e-15, pointers, rows, biases, 0, 4, definite)
    assert definite.tolist() == [True, False, True, True]
    assert biases.tolist() == [-1, -1, 1, 1, -1]


@settings(max_examples=40, deadline=None)
@given(LOSS, st.booleans(), st.integers(1, 20), st.integers(1, 12), st.integers(0, 10**6))
def test_the_block_between_two_rows(loss, full, n, k, seed):
    case = make_case(loss, n=n, k=k, seed=seed)
    _, pairs, couplings = coupled(case, loss, full)
    assert len(couplings) <= n
    for (user, item), found in zip(pairs, couplings, strict=True):
        expected = oracle.coupling(
            case.examples, user, item, case.user_rows, case.item_rows, loss, full=full
        )
        np.testing.assert_allclose(found, expected, **EXACT)


def coupled(case, loss, full):
    """Rows and names of all pairs trained on, and the blocks between their rows."""
    items = case.items[case.edges.first[:-1]]
    owns = np.lexsort((items, case.users))
    rows = np.column_stack([case.users, items])[owns]
    rows, starts, counts = np.unique(rows, axis=0, return_index=True, return_counts=True)
    d = case.rows.shape[1]
    out = np.full((len(rows), d, d), np.nan)
    couple(
        loss, full, case.rows, case.edges, case.users, case.items, case.gradients,
        case.curvatures, owns, starts, starts + counts, out,
    )  # fmt: skip
    pairs = [(u, i - len(case.user_rows)) for u, i in rows.tolist()]
    return rows, pairs, out


@settings(max_examples=40, deadline=None)
@given(LOSS, st.integers(1, 20), st.integers(1, 12), st.integers(0, 10**6))
def test_vectors_of_linked_rows(loss, n, k, seed):
    """Credited rows times the vectors are the whole solution of the two rows' system."""
    case, damping = make_case(loss, n=n, k=k, seed=seed), 0.7
    of_users, of_items = oracle.blocks(case.examples, case.user_rows, case.item_rows, loss)
    rows, pairs, couplings = coupled(case, loss, full=False)
    by_user, by_item, definite = linked(case, of_users, of_items, damping, couplings, rows)
    assert definite.all()
    more = damping * np.eye(k + 1)
    expected = oracle.influence(
        case.examples, pairs, case.user_rows, case.item_rows, loss, damping=damping, full=False
    )
    gradients = [oracle.own_gradients(e, case.user_rows, case.item_rows) for e in case.examples]
    for number, (user, item) in enumerate(pairs):
        for j, example in enumerate(case.examples):
            value = 0.0
            if example.user == user:
                value -= by_user[number] @ np.linalg.solve(of_users[user] + more, gradients[j][0])
            if example.candidates[0] == item:
                value -= by_item[number] @ np.linalg.solve(of_items[item] + more, gradients[j][1])
            right = np.nan_to_num(expected[number, j])
            assert value == pytest.approx(right, rel=1e-8, abs=1e-9)


def linked(case, of_users, of_items, damping, couplings, rows):
    shape = len(rows), case.rows.shape[1]
    by_user, by_item = (np.full(shape, np.nan, case.rows.dtype) for _ in range(2))
    definite = np.zeros(len(rows), bool)
    link_pairs(
        np.tril(np.concatenate([of_users, of_items])), damping, 1e-14, case.rows, couplings,
        rows[:, 0].copy(), rows[:, 1].copy(), by_user, by_item, definite,
    )  # fmt: skip
    return by_user, by_item, definite


def test_without_a_link_the_vectors_are_the_rows():
    case = make_case()
    blocks = oracle.blocks(case.examples, case.user_rows, case.item_rows, SQUARED)
    rows, _, couplings = coupled(case, SQUARED, full=False)
    by_user, by_item, _ = linked(case, *blocks, 0.1, 0 * couplings, rows)
    np.testing.assert_array_equal(by_user, case.rows[rows[:, 1]])
    np.testing.assert_array_equal(by_item, case.rows[rows[:, 0]])


def test_a_link_stronger_than_the_blocks_is_told():
    case = make_case()
    blocks = oracle.blocks(case.examples, case.user_rows, case.item_rows, SQUARED)
    rows, _, couplings = coupled(case, SQUARED, full=False)
    couplings[1] *= 100
    by_user, _, definite = linked(case, *blocks, 0.1, couplings, rows)
    assert definite.tolist() == [number != 1 for number in range(len(rows))]
    assert np.isnan(by_user).all(axis=1).tolist() == (~definite).tolist()


@pytest.mark.parametrize("k", [1, 16, 40])
def test_float32(k):
    """Parameters of float32, solved in float64: only what comes in and goes out is rounded."""
    case = make_case(LOGISTIC, n=30, k=k, dtype=np.float32)
    blocks = oracle.blocks(case.examples, case.user_rows, case.item_rows, LOGISTIC)
    blocks = [array.astype(np.float32) for array in blocks]
    rows, _, couplings = coupled(case, LOGISTIC, full=False)
    by_user, _, definite = linked(case, *blocks, 0.5, couplings, rows)
    assert by_user.dtype == np.float32
    assert definite.all()
    precise = make_case(LOGISTIC, n=30, k=k)
    blocks = oracle.blocks(precise.examples, precise.user_rows, precise.item_rows, LOGISTIC)
    expected, _, _ = linked(precise, *blocks, 0.5, coupled(precise, LOGISTIC, full=False)[2], rows)
    np.testing.assert_allclose(by_user, expected, rtol=0, atol=1e-4 * np.abs(expected).max())
