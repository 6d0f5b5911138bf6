"""Random examples near single pairs: as the kernels of any backend take them, and naive."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from oracles import row_blocks as oracle

from fastinfluence.kernels.cpu.losses import LOGISTIC, SQUARED
from fastinfluence.kernels.structures import Edges

__all__ = [
    "NOT_DEFINITE",
    "assert_coupled",
    "assert_float32",
    "assert_gradients",
    "assert_indefinite_told",
    "assert_linked",
    "assert_solved",
    "assert_strong_link_told",
    "assert_unlinked",
    "make_case",
]

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


def assert_gradients(kernels, case, seed=0):
    """Gradients of all examples, found in two parts, are the naive ones."""
    rng, n, k = np.random.default_rng(seed), len(case.examples), case.rows.shape[1] - 1
    places = rng.permutation(n), rng.permutation(n)
    found = [np.full(shape, np.nan) for shape in ((n, k), (n,), (n, k), (n,))]
    for start, stop in ((0, n // 3), (n // 3, n)):
        kernels.own_gradients(
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


def assert_solved(kernels, sizes, k, damping, seed=0):
    """Groups of gradients, solved in two parts, are numpy's solutions."""
    rng = np.random.default_rng(seed)
    blocks = definite_blocks(rng, len(sizes), k + 1)
    pointers = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    gradients = rng.standard_normal((sum(sizes), k + 1))
    rows, biases = gradients[:, :-1].copy(), gradients[:, -1].copy()
    definite, middle = np.zeros(len(sizes), bool), len(sizes) // 2
    for start, stop in ((0, middle), (middle, len(sizes))):
        kernels.solve_rows(
            np.tril(blocks), damping, 1e-14, pointers, rows, biases, start, stop, definite
        )  # fmt: skip
    assert definite.all()
    for group, block in enumerate(blocks):
        some = slice(pointers[group], pointers[group + 1])
        expected = -np.linalg.solve(block + damping * np.eye(k + 1), gradients[some].T).T
        np.testing.assert_allclose(np.column_stack([rows[some], biases[some]]), expected, **EXACT)


def coupled(kernels, case, loss, full):
    """Rows (user's, item's) of all pairs trained on, and the blocks between them."""
    items = case.items[case.edges.first[:-1]]
    owns = np.lexsort((items, case.users))
    rows = np.column_stack([case.users, items])[owns].astype(np.int64)
    rows, starts, counts = np.unique(rows, axis=0, return_index=True, return_counts=True)
    d = case.rows.shape[1]
    out = np.full((len(rows), d, d), np.nan)
    kernels.couple(
        loss, full, case.rows, case.edges, case.users, case.items, case.gradients,
        case.curvatures, owns, starts, starts + counts, out,
    )  # fmt: skip
    return rows, out


def linked(kernels, case, blocks, damping, couplings, rows):
    """Vectors of pairs, NaN where there are none, and whether there are."""
    shape = len(rows), case.rows.shape[1]
    by_user, by_item = (np.full(shape, np.nan, case.rows.dtype) for _ in range(2))
    definite = np.zeros(len(rows), bool)
    kernels.link_pairs(
        np.tril(np.concatenate(blocks)), damping, 1e-14, case.rows, couplings,
        rows[:, 0].copy(), rows[:, 1].copy(), by_user, by_item, definite,
    )  # fmt: skip
    return by_user, by_item, definite


def assert_coupled(kernels, case, loss, full):
    """Blocks between the rows of all pairs that were trained on are the naive ones."""
    rows, couplings = coupled(kernels, case, loss, full)
    assert 0 < len(rows) <= len(case.examples)
    for (user, item), found in zip(rows.tolist(), couplings, strict=True):
        expected = oracle.coupling(
            case.examples, user, item - len(case.user_rows), case.user_rows, case.item_rows, loss,
            full=full,
        )  # fmt: skip
        np.testing.assert_allclose(found, expected, **EXACT)


def assert_linked(kernels, case, loss, damping=0.7):
    """Credited rows times the vectors are the whole solution of the two rows' system."""
    blocks = oracle.blocks(case.examples, case.user_rows, case.item_rows, loss)
    rows, couplings = coupled(kernels, case, loss, full=False)
    by_user, by_item, definite = linked(kernels, case, blocks, damping, couplings, rows)
    assert definite.all()
    of_users, of_items = (array + damping * np.eye(case.rows.shape[1]) for array in blocks)
    pairs = [(user, item - len(case.user_rows)) for user, item in rows.tolist()]
    expected = oracle.influence(
        case.examples, pairs, case.user_rows, case.item_rows, loss, damping=damping, full=False
    )
    gradients = [oracle.own_gradients(e, case.user_rows, case.item_rows) for e in case.examples]
    for number, (user, item) in enumerate(pairs):
        found = np.zeros(len(case.examples))
        for j, example in enumerate(case.examples):
            if example.user == user:
                found[j] -= by_user[number] @ np.linalg.solve(of_users[user], gradients[j][0])
            if example.candidates[0] == item:
                found[j] -= by_item[number] @ np.linalg.solve(of_items[item], gradients[j][1])
        np.testing.assert_allclose(found, np.nan_to_num(expected[number]), rtol=1e-8, atol=1e-9)


NOT_DEFINITE = [np.zeros((3, 3)), np.outer([1, 2, 3], [1, 2, 3.0]), np.diag([1, -1, 1.0])]


def assert_indefinite_told(kernels, block):
    """Examples of a block that has no inverse are left alone; without any it does not matter."""
    blocks = np.stack([np.eye(3), block, block, np.eye(3)])
    pointers = np.array([0, 2, 4, 4, 5])
    rows, biases, definite = np.ones((5, 2)), np.ones(5), np.zeros(4, bool)
    kernels.solve_rows(blocks, 0.0, 1e-15, pointers, rows, biases, 0, 4, definite)
    assert definite.tolist() == [True, False, True, True]
    assert biases.tolist() == [-1, -1, 1, 1, -1]
    assert rows.tolist() == [[-1, -1], [-1, -1], [1, 1], [1, 1], [-1, -1]]


def assert_strong_link_told(kernels):
    """A coupling stronger than the blocks leaves no inverse: no vectors are written."""
    case = make_case()
    blocks = oracle.blocks(case.examples, case.user_rows, case.item_rows, SQUARED)
    rows, couplings = coupled(kernels, case, SQUARED, full=False)
    couplings[1] *= 100
    by_user, by_item, definite = linked(kernels, case, blocks, 0.1, couplings, rows)
    assert definite.tolist() == [number != 1 for number in range(len(rows))]
    for vectors in (by_user, by_item):
        assert np.isnan(vectors).all(axis=1).tolist() == (~definite).tolist()


def assert_unlinked(kernels):
    """Without a coupling the vectors are the rows."""
    case = make_case()
    blocks = oracle.blocks(case.examples, case.user_rows, case.item_rows, SQUARED)
    rows, couplings = coupled(kernels, case, SQUARED, full=False)
    by_user, by_item, _ = linked(kernels, case, blocks, 0.1, 0 * couplings, rows)
    np.testing.assert_array_equal(by_user, case.rows[rows[:, 1]])
    np.testing.assert_array_equal(by_item, case.rows[rows[:, 0]])


def assert_float32(kernels, k, n=30):
    """Parameters of float32, solved in float64: only what comes in and goes out is rounded."""
    results = []
    for dtype in (np.float32, np.float64):
        case = make_case(LOGISTIC, n=n, k=k, dtype=dtype)
        blocks = oracle.blocks(case.examples, case.user_rows, case.item_rows, LOGISTIC)
        rows, couplings = coupled(kernels, case, LOGISTIC, full=False)
        blocks = [array.astype(dtype) for array in blocks]
        results.append(linked(kernels, case, blocks, 0.5, couplings, rows))
    (found, _, definite), (expected, _, _) = results
    assert found.dtype == np.float32
    assert definite.all()
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * np.abs(expected).max())
