"""The adjoints of logged steps on a GPU, against the naive derivative, and Replay on one."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from backends import Kernels
from planted import LOSSES, data_for
from replay_cases import (
    assert_like_oracle,
    derive,
    everywhere,
    gradients,
    program_of,
    trajectory_of,
)

from fastinfluence import Interactions, MatrixFactorization, Replay
from fastinfluence.attribution import replay as layer
from fastinfluence.errors import DeviceError, DeviceMemoryError
from fastinfluence.kernels.structures import LANES

CUDA = Kernels("cuda", "replay")
SMALL = {"n_users": 4, "n_items": 8, "n": 12}


@pytest.mark.parametrize(
    ("loss", "optimizer", "dtype", "k", "n_groups"),
    [
        ("squared", "sgd", "float64", 3, 2),
        ("squared", "sgd", "float32", 19, 1),
        ("squared", "adagrad", "float64", 8, 1),
        ("logistic", "sgd", "float64", 9, 1),
        ("logistic", "adagrad", "float32", 4, 2),
        ("bpr", "adagrad", "float64", 5, 1),
    ],
)
def test_like_the_naive_derivative(loss, optimizer, dtype, k, n_groups):
    """Few rows, so that most steps wait for one before them."""
    program = program_of(
        data_for(loss, **SMALL), loss=loss, optimizer=optimizer, dtype=dtype, n_factors=k,
        n_groups=n_groups,
    )  # fmt: skip
    tolerance = {"float64": 1e-9 if optimizer == "adagrad" else 1e-11, "float32": 5e-5}[dtype]
    assert_like_oracle(
        trajectory_of(program), gradients(program), tolerance=tolerance, kernels=CUDA
    )


def test_more_candidates_than_are_summed_at_once():
    data = data_for("bpr", n_users=3, n_items=14, n=8)
    program = program_of(data, loss="bpr", n_negatives=10, n_groups=1, n_epochs=1)
    trajectory = trajectory_of(program, kept=(0, 1))
    assert_like_oracle(trajectory, gradients(program), tolerance=1e-11, kernels=CUDA)


@pytest.mark.parametrize("loss", LOSSES)
def test_lanes_kept_to_some_rows(loss):
    """Behind a forbidden row the adjoint stays exactly zero, and steps of no lane are passed."""
    program = program_of(data_for(loss, **SMALL), loss=loss, n_groups=1, n_epochs=1)
    rng = np.random.default_rng(5)
    shares = np.linspace(0, 1, LANES)  # of the rows
    allowed = []
    gradient = gradients(program)
    for rows in gradient:
        inside = rng.random((len(rows), LANES)) < shares
        inside[0] = False
        rows *= inside[:, None, :]
        allowed.append((inside << np.arange(LANES)).sum(axis=1).astype(np.uint16))
    trajectory = trajectory_of(program, kept=(0, 1))
    assert_like_oracle(trajectory, gradient, allowed=allowed, kernels=CUDA)
    got = derive(trajectory, gradient, allowed=allowed, kernels=CUDA)
    for rows, bits in zip(got.adjoint, allowed, strict=True):
        inside = bits[:, None] >> np.arange(LANES) & 1
        assert not (rows * (1 - inside)[:, None, :]).any()


def test_steps_of_one_user():
    """Every step waits for the one before it."""
    data = Interactions.from_arrays(np.zeros(5, int), np.arange(5), np.arange(1.0, 6.0))
    program = program_of(data, n_groups=1, weights=[1, 2, 1, 0, 1])
    assert_like_oracle(trajectory_of(program), gradients(program), kernels=CUDA)


@pytest.mark.parametrize("n_groups", [1, 2])
def test_the_order_of_the_walk(n_groups):
    """All visits, tile by tile, those of any row in their order, and no bit depends on it."""
    data = data_for("squared", n_users=7, n_items=6, n=24)
    program = program_of(data, n_groups=n_groups, n_epochs=1, dtype="float32")
    pointers, examples = program.schedule.pointers, program.examples
    order = CUDA.walk_order(examples, pointers, data.n_users, data.n_items)
    assert order.dtype == np.int32
    for start, stop in itertools.pairwise(pointers):
        np.testing.assert_array_equal(np.sort(order[start:stop]), np.arange(start, stop))
    place = np.argsort(order)
    for rows in (examples.users, examples.items):
        for row in set(rows.tolist()):
            assert (np.diff(place[rows == row]) > 0).all()
    trajectory, gradient = trajectory_of(program, kept=(0, 1)), gradients(program)
    once = derive(trajectory, gradient, kernels=CUDA)
    moved = derive(trajectory, gradient, kernels=CUDA, order=order)
    np.testing.assert_array_equal(moved.weights, once.weights)
    for mine, right in zip(moved.adjoint, once.adjoint, strict=True):
        np.testing.assert_array_equal(mine, right)


def test_the_order_puts_steps_without_a_row_in_common_side_by_side():
    users, items = np.divmod(np.arange(20), 5)  # each user's steps, then the next one's
    data = Interactions.from_arrays(users, items, np.ones(20))
    program = program_of(data, n_groups=1)
    order = CUDA.walk_order(program.examples, program.schedule.pointers, 4, 5)
    users, items = program.examples.users[order], program.examples.items[order]
    sharing = (users[1:] == users[:-1]) | (items[1:] == items[:-1])
    before = program.examples.users, program.examples.items
    without = (before[0][1:] == before[0][:-1]) | (before[1][1:] == before[1][:-1])
    assert sharing.sum() < without.sum()


def test_candidates_beyond_the_shared_memory():
    data = data_for("bpr", n_users=3, n_items=14, n=8)
    program = program_of(
        data, loss="bpr", optimizer="adagrad", n_negatives=10, n_groups=1, n_epochs=1
    )
    log = program.new_log(1)
    wide = log._replace(
        items=np.zeros((1, 300), np.int32), user_rows=np.zeros((1, 200), program.dtype)
    )
    adjoint = gradients(program)
    with pytest.raises(DeviceError, match="300 candidates with 200 factors in float64"):
        CUDA.replay_steps(
            adjoint, adjoint, program.examples, wide, program.hyper(0), 2, *everywhere(program),
            np.arange(8, dtype=np.int32), np.array([0, 8]), 0, 1, np.zeros((8, LANES)),
        )  # fmt: skip


# ---------------------------------------------------------------- the method


def fit(*, loss="squared", **keywords):
    """In float32, whose training the simulator repeats to the last bit."""
    keywords = {"n_factors": 3, "n_epochs": 1, "loss": loss, "dtype": "float32"} | keywords
    data = data_for(loss, **SMALL)
    return MatrixFactorization(rng=0, init_scale=0.4, **keywords).fit(data)


QUERIES = [(n % 4, n % 8) for n in range(LANES + 1)]


@pytest.mark.parametrize(
    ("loss", "optimizer", "hops"), [("squared", "sgd", 1), ("logistic", "adagrad", None)]
)
def test_replay_as_on_the_cpu(loss, optimizer, hops):
    model = fit(loss=loss, optimizer=optimizer, n_negatives=1)
    expected = Replay(model, hops=hops, device="cpu").influence(QUERIES)
    got = Replay(model, hops=hops, device="cuda").influence(QUERIES)
    scale = np.abs(expected).max()
    assert scale > 0
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-4 * scale)


def test_fewer_queries_at_a_time_where_memory_runs_out(monkeypatch):
    """Two blocks of queries do not fit: one after the other, with the same bits."""
    model = fit()
    method = Replay(model, device="cuda")
    once = method.influence(QUERIES)
    sizes = []

    def step_back(stage, blocks):
        sizes.append(len(blocks))
        if len(blocks) > 1:
            raise DeviceMemoryError("out of device memory: 80 bytes for an array")
        type(method)._step_back(method, stage, blocks)

    monkeypatch.setattr(method, "_step_back", step_back)
    np.testing.assert_array_equal(method.influence(QUERIES), once)
    assert sizes == [2, 1, 1]


def test_memory_for_not_even_one_block(monkeypatch):
    def start(*_):
        raise DeviceMemoryError("out of device memory: 80 bytes for an array")

    monkeypatch.setattr(layer, "_start", start)
    with pytest.raises(DeviceMemoryError, match="80 bytes"):
        Replay(fit(), device="cuda").influence(QUERIES)
