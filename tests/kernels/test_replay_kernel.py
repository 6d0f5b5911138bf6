"""The adjoints of logged steps against the naive derivative of a whole training run."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from planted import LOSSES, OPTIMIZERS, data_for
from replay_cases import (
    assert_like_oracle,
    assert_near,
    derive,
    derive_naively,
    gradients,
    program_of,
    trajectory_of,
)

from fastinfluence.kernels.cpu import replay
from fastinfluence.kernels.cpu.lanes import LANES
from fastinfluence.kernels.structures import Adjoint
from fastinfluence.training.backward import backward


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_like_the_naive_derivative(loss, optimizer, dtype):
    data = data_for(loss, n_users=6, n_items=9, n=28)
    program = program_of(data, loss=loss, optimizer=optimizer, dtype=dtype)
    assert_like_oracle(trajectory_of(program), gradients(program))


@settings(deadline=None, max_examples=15)
@given(
    st.sampled_from(LOSSES),
    st.sampled_from(OPTIMIZERS),
    st.sampled_from([1, 2, 5, 8, 19]),
    st.integers(1, 6),
    st.integers(1, 3),
    st.sampled_from([0.0, 0.05]),
    st.integers(0, 10**6),
)
def test_at_random(loss, optimizer, k, n_negatives, n_groups, l2, seed):
    data = data_for(loss, n_users=5, n_items=8, n=20, seed=seed)
    program = program_of(
        data, loss=loss, optimizer=optimizer, n_factors=k, n_negatives=n_negatives,
        n_groups=n_groups, regularization=l2, seed=seed,
    )  # fmt: skip
    # A first gradient near 0: what Adagrad's rate makes of it cancels, in the oracle to 1e-10.
    tolerance = 1e-8 if optimizer == "adagrad" else None
    assert_like_oracle(trajectory_of(program), gradients(program, seed), tolerance=tolerance)


@pytest.mark.parametrize(("loss", "seed"), [("logistic", 5), ("bpr", 319681)])
def test_adagrad_starting_with_small_gradients(loss, seed):
    """In its first step a coordinate moves by the rate, whatever the gradient: all must cancel."""
    data = data_for(loss, n_users=5, n_items=8, n=20, seed=seed)
    program = program_of(
        data, loss=loss, optimizer="adagrad", n_factors=19, n_negatives=5, n_groups=1,
        seed=seed, dtype="float32",
    )  # fmt: skip
    trajectory, gradient = trajectory_of(program), gradients(program, seed)
    got, expected = derive(trajectory, gradient), derive_naively(trajectory, gradient)
    assert_near(got.weights, expected.weights, 5e-5)
    for mine, right in zip(got.adjoint, expected.adjoint, strict=True):
        assert_near(mine, right, 5e-5)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("loss", LOSSES)
def test_lanes_kept_to_some_rows(loss, optimizer):
    """Every lane to rows of its own; behind a forbidden row the adjoint stays exactly zero."""
    data = data_for(loss, n_users=6, n_items=9, n=28)
    program = program_of(data, loss=loss, optimizer=optimizer)
    rng = np.random.default_rng(5)
    shares = np.linspace(0.1, 1, LANES)  # of the rows
    allowed = []
    gradient = gradients(program)
    for rows in gradient:
        inside = rng.random((len(rows), LANES)) < shares
        rows *= inside[:, None, :]
        allowed.append((inside << np.arange(LANES)).sum(axis=1).astype(np.uint16))
    assert_like_oracle(trajectory_of(program), gradient, allowed=allowed)
    got = derive(trajectory_of(program), gradient, allowed=allowed)
    for rows, bits in zip(got.adjoint, allowed, strict=True):
        inside = bits[:, None] >> np.arange(LANES) & 1
        assert not (rows * (1 - inside)[:, None, :]).any()


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_pieces_of_the_log_change_no_bit(optimizer):
    """Checkpoints thinned out, and the log of less than an epoch."""
    data = data_for("logistic", n_users=40, n_items=30, n=300)
    program = program_of(data, loss="logistic", optimizer=optimizer, n_groups=4, n_epochs=3)
    gradient = gradients(program)
    once = derive(trajectory_of(program, kept=range(4)), gradient)
    thinned = trajectory_of(program, kept=(0, 3))
    budget = 90 * program.log_bytes
    assert len(list(backward(thinned, memory_budget=budget, show_progress=False))) > 2 * 3
    pieces = derive(thinned, gradient, memory_budget=budget)
    for mine, right in zip(
        (pieces.weights, *pieces.adjoint), (once.weights, *once.adjoint), strict=True
    ):
        np.testing.assert_array_equal(mine, right)


def backwards_by_row(rows, visits):
    """The visits of every row, in the order in which they come up."""
    return {row: visits[rows[visits] == row].tolist() for row in set(rows.tolist())}


@settings(deadline=None, max_examples=20)
@given(st.integers(1, 3), st.integers(1, 12), st.integers(1, 12), st.integers(0, 10**6))
def test_order_of_the_walk(n_groups, n_users, n_items, seed):
    """All visits, block by block, those of any row in their order."""
    rng = np.random.default_rng(seed)
    n = int(rng.integers(1, n_users * n_items + 1))
    data = data_for("squared", n_users=n_users, n_items=n_items, n=n, seed=seed)
    program = program_of(data, n_groups=min(n_groups, n_users, n_items))
    pointers, examples = program.schedule.pointers, program.examples
    order = replay.walk_order(examples, pointers, n_users, n_items)
    for start, stop in itertools.pairwise(pointers):
        np.testing.assert_array_equal(np.sort(order[start:stop]), np.arange(start, stop))
    for rows in (examples.users, examples.items):
        assert backwards_by_row(rows, order) == backwards_by_row(rows, np.arange(n))


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_the_order_of_the_walk_changes_no_bit(optimizer):
    data = data_for("squared", n_users=40, n_items=30, n=700)
    program = program_of(data, optimizer=optimizer, dtype="float32")
    trajectory, gradient = trajectory_of(program), gradients(program)
    order = replay.walk_order(program.examples, program.schedule.pointers, 40, 30)
    assert np.abs(np.diff(order)).mean() > 5  # another order indeed
    once, moved = derive(trajectory, gradient), derive(trajectory, gradient, order=order)
    np.testing.assert_array_equal(moved.weights, once.weights)
    for mine, right in zip(moved.adjoint, once.adjoint, strict=True):
        np.testing.assert_array_equal(mine, right)


def test_lanes_are_independent():
    """The same gradient has the same bits in any lane and beside any other."""
    data = data_for("bpr", n_users=6, n_items=9, n=28)
    program = program_of(data, loss="bpr", optimizer="adagrad", dtype="float32")
    trajectory, gradient = trajectory_of(program), gradients(program)
    once = derive(trajectory, gradient)
    order = np.random.default_rng(0).permutation(LANES)
    order[3] = order[4]
    moved = derive(trajectory, Adjoint(*(rows[:, :, order].copy() for rows in gradient)))
    np.testing.assert_array_equal(moved.weights, once.weights[:, order])


def test_weight_zero_and_no_gradient_give_nothing():
    data = data_for("squared", n_users=6, n_items=9, n=28)
    program = program_of(data)
    got = derive(trajectory_of(program), gradients(program))
    left_out = program.examples.weights == 0
    assert left_out.any()
    assert not got.weights[left_out].any()
    assert got.weights[~left_out, :-1].all()
    assert not got.weights[:, -1].any()
