"""Masked training and its read-out against the naive loops."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import sgd as plain
from oracles import turn_over as oracle
from planted import same_bits
from sgd_cases import LOSSES, assert_near, joined, make_problem, problems

from fastinfluence.kernels import structures
from fastinfluence.kernels.cpu import turn_over


def train(problem, seed, number, n_epochs=2):
    tables = structures.Tables(*(a.copy() for a in problem.tables))
    squares = problem.squares and structures.Tables(*(a.copy() for a in problem.squares))
    for epoch in range(n_epochs):
        turn_over.turn_over_epoch(tables, squares, *problem[2:], epoch, seed, number)
    return tables, squares


@settings(deadline=None, max_examples=50)
@given(problems(), st.integers(0, 2**62), st.integers(0, 5))
def test_trains_like_the_naive_loop(problem, seed, number):
    tables, squares = train(problem, seed, number)
    theta = plain.rows_of(problem.tables)
    naive = problem.squares and plain.rows_of(problem.squares)
    for epoch in range(2):
        oracle.epoch(theta, naive, *problem[2:], epoch, seed, number)
    for got, rows in ((tables, theta), (squares, naive)):
        if got is None:
            continue
        for kind, factors, biases in (("user", got[0], got[2]), ("item", got[1], got[3])):
            expected = np.array([rows[kind, place] for place in range(len(biases))])
            assert_near(joined(factors, biases), expected, problem.tables[0].dtype.type)


@pytest.mark.parametrize("adagrad", [False, True])
@pytest.mark.parametrize("loss", LOSSES)
def test_a_step_leaves_the_turned_over_half_alone(loss, adagrad):
    """To the last bit, negatives' rows included, and their sums of squares."""
    problem = make_problem(n_examples=1, n_groups=1, k=33, loss=loss, adagrad=adagrad)
    examples = problem.examples
    examples.values[:], examples.weights[:] = 1, 1
    tables, squares = train(problem, 5, 2, n_epochs=1)
    kept = oracle.mask(5, 2, int(examples.ids[0]), 33) > 0
    assert 0 < kept.sum() < 33
    for before, after in ((problem.tables, tables), (problem.squares, squares)):
        if before is None:
            continue
        for old, new in zip(before[:2], after[:2], strict=True):
            assert same_bits(new[:, ~kept], old[:, ~kept])
    moved = tables.item_factors != problem.tables.item_factors
    assert moved[examples.items[0], kept].all()
    assert (tables.user_factors != problem.tables.user_factors)[examples.users[0], kept].all()
    assert moved.any(axis=1).sum() == (1 if loss == LOSSES[0] else 3)


@pytest.mark.parametrize("loss", LOSSES)
def test_the_gradient_is_that_of_the_masked_loss(loss):
    """Central differences of the loss of an example, L2 on the kept coordinates included."""
    rng = np.random.default_rng(0)
    names = [("user", 0), *(("item", c) for c in range(3))]
    theta = {name: rng.standard_normal(6) for name in names}
    candidates = [0] if loss == plain.SQUARED else [0, 1, 2]
    hyper = structures.Hyper(0.3, 0.1, 0.2, 1e-8)
    m = oracle.mask(1, 0, 7, 5)

    def cost(rows):
        f = [oracle.score(rows, 0, item, hyper.mean, m) for item in candidates]
        kept = np.append(m > 0, True)
        squares = sum(float(((rows[name] * kept) ** 2).sum()) for name in found)
        return plain.prediction_loss(f, 1.0, loss) + 0.1 * squares

    found = oracle.gradients(theta, 0, candidates, 1.0, hyper, loss, m)
    for name, gradient in found.items():
        for f in range(6):
            step = np.eye(6)[f] * 1e-6
            ends = [cost({**theta, name: theta[name] + sign * step}) for sign in (1, -1)]
            assert gradient[f] == pytest.approx((ends[0] - ends[1]) / 2e-6, abs=1e-8)
            assert f == 5 or m[f] > 0 or gradient[f] == 0


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("k", [1, 7, 40])
def test_differences(k, dtype):
    products = np.random.default_rng(k).standard_normal((9, k)).astype(dtype)
    got = np.empty((6, 9), dtype)
    turn_over.differences(3, 1, 20, 26, products, got)
    signs = np.array([2 * oracle.mask(3, 1, j, k) - 2 for j in range(20, 26)])
    assert set(np.unique(signs)) <= {-2, 2}
    expected = np.array([[sum(s * x) for x in products.astype(float)] for s in signs])
    assert_near(got.astype(float), expected, dtype)
    own = np.empty(6, dtype)
    examples = np.arange(20, 26)
    turn_over.own_differences(3, 1, examples, np.ascontiguousarray(products[:6]), own)
    assert same_bits(own, np.diagonal(got[:, :6]))


def test_masks_differ_by_every_part_of_their_key():
    masks = {
        key: oracle.mask(*key, 64).tobytes()
        for key in [(s, n, j) for s in range(3) for n in range(3) for j in range(20)]
    }
    assert len(set(masks.values())) == len(masks)


def test_half_of_the_factors_are_kept_each_by_itself():
    n = 20_000
    signs = np.empty((n, 16))
    turn_over.differences(0, 0, 0, n, np.eye(16), signs)
    bound = 4.5 / np.sqrt(n)  # deviations of a mean of n signs
    assert np.abs(signs.mean(axis=0) / 2).max() < bound
    assert np.abs(signs.T @ signs / (4 * n) - np.eye(16)).max() < bound
