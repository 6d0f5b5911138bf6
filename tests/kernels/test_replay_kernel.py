"""The adjoints of logged steps against the naive derivative of a whole training run."""

from __future__ import annotations

import itertools
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import adjoint as oracle
from oracles import steps as walk
from planted import LOSSES, OPTIMIZERS, data_for

from fastinfluence.kernels.cpu import replay
from fastinfluence.kernels.cpu.lanes import LANES
from fastinfluence.kernels.structures import Adjoint
from fastinfluence.training import Program, Recipe, Trajectory
from fastinfluence.training.backward import backward

ALL_LANES = 2**LANES - 1
TOLERANCE = {"float64": 1e-11, "float32": 3e-5}  # relative to the largest entry


def program_of(data, *, n_groups=2, weights=None, **keywords):
    if weights is None:
        weights = np.random.default_rng(1).choice([0, 0.5, 1, 2], len(data))
    recipe = {
        "n_factors": 3,
        "loss": "squared",
        "optimizer": "sgd",
        "n_epochs": 2,
        "learning_rate": 0.1,
        "learning_rate_decay": 0.8,
        "regularization": 0.05,
        "n_negatives": 2,
        "init_scale": 0.5,
        "dtype": "float64",
        "seed": 3,
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fastinfluence.training.schedule.group_count", lambda *_: n_groups)
        return Program(data, np.asarray(weights, float), Recipe(**recipe | keywords))


def trajectory_of(program, kept=(0, 1, 2)):
    """A run that kept some of its checkpoints."""
    state = program.enter(program.start())
    states = [program.leave(state)]
    for epoch in range(program.recipe.n_epochs):
        program.run_epoch(state, epoch)
        states.append(program.leave(state))
    checkpoints = {n: state for n, state in enumerate(states) if n in kept}
    return Trajectory(program, checkpoints, [0.0] * program.recipe.n_epochs, [])


class Derivatives(NamedTuple):
    """Of a block of quantities, by the weights (times the weights), and by the start."""

    weights: np.ndarray
    adjoint: Adjoint
    squares: Adjoint | None


def gradients(program, seed=0):
    """One random gradient a lane; the last lane has none."""
    rng = np.random.default_rng(seed)
    k = program.recipe.n_factors
    shapes = [(n, k + 1, LANES) for n in (program.data.n_users, program.data.n_items)]
    adjoint = Adjoint(*(rng.standard_normal(shape).astype(program.dtype) for shape in shapes))
    for rows in adjoint:
        rows[:, :, -1] = 0
    return adjoint


def everywhere(program):
    return tuple(
        np.full(n, ALL_LANES, np.uint16) for n in (program.data.n_users, program.data.n_items)
    )


def derive(trajectory, gradient, *, allowed=None, memory_budget=2**30, order=None):
    program = trajectory.program
    adjoint = Adjoint(*(rows.copy() for rows in gradient))
    adagrad = program.recipe.optimizer == "adagrad"
    squares = Adjoint(*map(np.zeros_like, gradient)) if adagrad else None
    out = np.zeros((len(program.data), LANES), program.dtype)
    for stage in backward(trajectory, memory_budget=memory_budget, show_progress=False):
        replay.replay_steps(
            adjoint,
            squares,
            program.examples,
            stage.log,
            program.hyper(stage.epoch),
            program.recipe.loss_code,
            *(allowed or everywhere(program)),
            np.arange(len(out), dtype=np.int32) if order is None else order,
            stage.start,
            stage.stop,
            out,
        )
    return Derivatives(out, adjoint, squares)


def named(program, rows):
    """Rows of a pair of tables by name, as the oracles have them; zeros are absent."""
    return {
        (kind, number): np.array(row, float)
        for kind, table in zip(("user", "item"), rows, strict=True)
        for number, row in enumerate(table)
        if np.any(row)
    }


def derive_naively(trajectory, gradient, *, allowed=None):
    program = trajectory.program
    steps = walk.run(program, trajectory.checkpoints[0], trajectory.n_epochs).steps
    shapes = [rows.shape for rows in gradient]
    found = Derivatives(
        np.zeros((len(program.data), LANES)),
        Adjoint(*map(np.zeros, shapes)),
        Adjoint(*map(np.zeros, shapes)),
    )
    for lane in range(LANES):
        hops = None
        if allowed is not None:
            hops = {
                (kind, number)
                for kind, bits in zip(("user", "item"), allowed, strict=True)
                for number in np.flatnonzero(bits >> lane & 1).tolist()
            }
        ours = named(program, [rows[:, :, lane] for rows in gradient])
        exact = oracle.reverse(steps, ours, hops)
        for t, derivative in exact.weights.items():
            found.weights[t, lane] = program.examples.weights[t] * derivative
        for rows, part in ((exact.rows, found.adjoint), (exact.squares, found.squares)):
            for (kind, number), row in rows.items():
                (part.users if kind == "user" else part.items)[number, :, lane] = row
    return found


def assert_near(got, expected, tolerance):
    scale = np.abs(expected).max()
    assert scale > 0.1  # there is something to compare
    np.testing.assert_allclose(got, expected, rtol=0, atol=tolerance * scale)


def assert_like_oracle(trajectory, gradient, *, allowed=None, tolerance=None):
    tolerance = tolerance or TOLERANCE[trajectory.recipe.dtype]
    got = derive(trajectory, gradient, allowed=allowed)
    expected = derive_naively(trajectory, gradient, allowed=allowed)
    assert_near(got.weights, expected.weights, tolerance)
    for mine, right in zip(got.adjoint, expected.adjoint, strict=True):
        assert_near(mine, right, tolerance)
    if got.squares is not None:
        for mine, right in zip(got.squares, expected.squares, strict=True):
            scale = max(1, np.abs(right).max())
            np.testing.assert_allclose(mine, right, rtol=0, atol=tolerance * scale)


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
