"""Curvature Rollback's kernels and method against the naive recursion, on every backend."""

from __future__ import annotations

import weakref

import numpy as np
import pytest
from backends import Kernels
from oracles import curvature as oracle
from oracles import steps as naive
from planted import data_for

from fastinfluence import CurvatureRollback, MatrixFactorization
from fastinfluence.attribution import curvature_rollback
from fastinfluence.errors import DeviceMemoryError
from fastinfluence.kernels.structures import Curvature, Touches
from fastinfluence.training.backward import backward

BACKENDS = [Kernels("cpu", "curvature"), Kernels("cuda", "curvature")]


def fit(loss="squared", *, weights=None, n_users=2, n_items=None, n=6, **keywords):
    keywords = {"n_factors": 3, "n_epochs": 1, "learning_rate": 0.1, "rng": 0} | keywords
    keywords = {"regularization": 0.2, "dtype": "float64", "loss": loss} | keywords
    n_items = n_items or (4 if loss == "squared" else 7)
    data = data_for(loss, n_users=n_users, n_items=n_items, n=n)
    return MatrixFactorization(**keywords).fit(data, sample_weight=weights)


def roll_back(kernels, trajectory):
    """Changes (rows, biases) of the users, of the items, by visit; as a walk calls the kernel."""
    program, examples = trajectory.program, trajectory.program.examples
    every = np.ones(len(examples.users), bool)
    end = program.enter(trajectory.end).tables
    found = []
    for of_users, own in ((True, examples.users), (False, examples.items)):
        n_rows = len(end.user_biases if of_users else end.item_biases)
        side = curvature_rollback._side(of_users, np.arange(n_rows), end, "cpu")
        credited = curvature_rollback._no_changes(program, own, every, "cpu")
        for stage in backward(trajectory, memory_budget=2**30):
            touches = curvature_rollback._touches(
                side, examples.users, stage, credited.places, "cpu"
            )
            kernels.roll_back_rows(
                side.state, touches, of_users, stage.log, program.hyper(stage.epoch),
                program.recipe.loss_code, credited.rows, credited.biases, 0, n_rows,
            )  # fmt: skip
        assert all(np.isfinite(array).all() for array in side.state)
        found.append(np.column_stack([credited.rows, credited.biases])[credited.places])
    return found


def naively(trajectory):
    program, k = trajectory.program, trajectory.recipe.n_factors
    run = naive.run(program, trajectory.checkpoints[0], trajectory.n_epochs)
    found = np.zeros((2, len(program.data), k + 1))
    for (t, side), change in oracle.rollback(run.steps).items():
        found[("user", "item").index(side), t] = change
    return found


def assert_near(got, expected, tolerance):
    for mine, right in zip(got, expected, strict=True):
        assert np.linalg.norm(right) > 0
        assert np.linalg.norm(mine - right) <= tolerance * np.linalg.norm(right)


CASES = {  # the loss, how many negatives, the optimizer, how many factors, in which dtype
    "short rows": ("squared", 0, "sgd", 3, "float64"),
    "a whole matrix": ("squared", 0, "sgd", 16, "float32"),
    "two vectors a touch": ("logistic", 1, "sgd", 5, "float64"),
    "two groups a touch": ("logistic", 5, "sgd", 17, "float32"),
    "differences": ("bpr", 2, "sgd", 3, "float64"),
    "Adagrad": ("squared", 0, "adagrad", 3, "float32"),
    "Adagrad, two groups": ("bpr", 4, "adagrad", 5, "float64"),
    "two warps": ("squared", 0, "sgd", 40, "float32"),
    "float64 in memory": ("squared", 0, "sgd", 33, "float64"),
    "in memory": ("squared", 0, "sgd", 130, "float32"),
    "in memory, Adagrad": ("logistic", 1, "adagrad", 66, "float64"),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("kernels", BACKENDS, ids=str)
def test_the_naive_recursion(kernels, case):
    loss, n_negatives, optimizer, k, dtype = CASES[case]
    model = fit(
        loss, n_factors=k, optimizer=optimizer, dtype=dtype,
        weights=[1, 0.5, 0, 2, 1, 1], **({"n_negatives": n_negatives} if n_negatives else {}),
    )  # fmt: skip
    trajectory = model.trajectory_
    tolerance = 1e-10 if dtype == "float64" else 1e-4
    assert_near(roll_back(kernels, trajectory), naively(trajectory), tolerance)


@pytest.mark.parametrize("kernels", BACKENDS, ids=str)
def test_what_shrinks_to_nothing_amid_a_stage(kernels):
    """Shrunk tenfold at each of 15 touches of the user: past 1e-10 it goes into the matrix."""
    trajectory = fit(
        n_users=1, n_items=15, n=15, learning_rate=0.45, regularization=2.0, init_scale=0.01
    ).trajectory_
    got, expected = roll_back(kernels, trajectory)[0], naively(trajectory)[0]
    sizes = np.linalg.norm(expected, axis=1)
    assert sizes.min() > 0
    errors = np.linalg.norm(got - expected, axis=1)
    assert np.all(errors <= 1e-8 * sizes)


@pytest.mark.parametrize("kernels", BACKENDS, ids=str)
@pytest.mark.parametrize("n_epochs", [1, 2])
def test_steps_that_shrink_past_nothing(kernels, n_epochs):
    """A step of learning_rate * regularization = 1.5 halves what it is given, and turns it around.

    Of two epochs the matrices of the later one are what the earlier one begins with.
    """
    trajectory = fit(
        n_epochs=n_epochs, learning_rate=0.5, regularization=3.0, init_scale=0.01
    ).trajectory_
    assert_near(roll_back(kernels, trajectory), naively(trajectory), 1e-10)


def test_no_rows_of_large_matrices():
    trajectory = fit(n_factors=33).trajectory_
    program = trajectory.program
    end = program.enter(trajectory.end).tables
    side = curvature_rollback._side(True, np.arange(2), end, "cpu")
    every = np.ones(len(program.examples.users), bool)
    credited = curvature_rollback._no_changes(program, program.examples.users, every, "cpu")
    stage = next(backward(trajectory, memory_budget=2**30))
    touches = curvature_rollback._touches(
        side, program.examples.users, stage, credited.places, "cpu"
    )
    BACKENDS[1].roll_back_rows(
        side.state, touches, True, stage.log, program.hyper(0), 0, credited.rows, credited.biases,
        2, 2,
    )  # fmt: skip
    assert not credited.rows.any()


def test_rows_without_touches_and_of_other_parts_stay_as_they_are():
    kernels = BACKENDS[1]
    trajectory = fit().trajectory_
    stage = next(backward(trajectory, memory_budget=2**30))
    rng = np.random.default_rng(0)
    state = Curvature(
        rng.random((3, 4, 16)), rng.random((3, 32)), rng.random((3, 16)), rng.random(3)
    )
    before = [array.copy() for array in state]
    touches = Touches(np.array([0, 1, 1, 2]), np.array([0, 1]), np.array([0, 1]))
    credits, bias_credits = np.zeros((2, 3)), np.zeros(2)
    kernels.roll_back_rows(
        state, touches, True, stage.log, trajectory.program.hyper(0), 0, credits, bias_credits, 1, 3
    )
    for array, old in zip(state, before, strict=True):
        np.testing.assert_array_equal(array[:2], old[:2])
    assert not np.array_equal(state.matrices[2], before[0][2])
    assert not credits[0].any()
    assert credits[1].any()


# ---------------------------------------------------------------- the method


@pytest.mark.parametrize("loss", ["squared", "bpr"])
def test_the_method_on_a_gpu_is_that_on_the_cpu(loss):
    model = fit(loss, n_epochs=2, dtype="float32")  # the simulator rounds float64's fma twice
    queries = [(0, 1), (1, 2)]
    expected = CurvatureRollback(model, device="cpu").influence(queries, dense=True)
    whole = CurvatureRollback(model, device="cuda").influence(queries, dense=True)
    np.testing.assert_allclose(whole, expected, rtol=1e-4, atol=1e-7)


def test_rows_that_do_not_fit_the_device_at_once(monkeypatch):
    """Half as many are tried; when a single one does not fit, an error says the sizes."""
    trajectory = fit(dtype="float32").trajectory_
    expected = curvature_rollback._roll_back(trajectory, None, 1, False, "cpu")
    room, tried = 2, []
    chunks = curvature_rollback._chunks

    def scarce(trajectory, rows, most, device):
        tried.append(most)
        if most > room:
            raise DeviceMemoryError("out of device memory: 1,000 bytes")
        return chunks(trajectory, rows, most, device)

    monkeypatch.setattr(curvature_rollback, "_chunks", scarce)
    got = curvature_rollback._roll_back(trajectory, None, 1, False, "cuda")
    assert tried == [6, 3, 1]
    for mine, right in zip(got, expected, strict=True):
        np.testing.assert_allclose(
            mine.rows[mine.places], right.rows[right.places], rtol=1e-4, atol=1e-7
        )
    room = 0
    with pytest.raises(DeviceMemoryError, match=r"even one row at a time: the log .* MiB"):
        curvature_rollback._roll_back(trajectory, None, 1, False, "cuda")


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_matrices_are_gone_before_the_next_are_made(monkeypatch, device):
    trajectory = fit(dtype="float32").trajectory_
    expected = curvature_rollback._roll_back(trajectory, None, 1, False, "cpu")
    monkeypatch.setattr(curvature_rollback, "memory_budget", lambda: 2 * 16 * (3 + 3) * 4)
    made, of_side = [], curvature_rollback._side

    def watched(*arguments):
        assert all(state() is None for state in made)
        side = of_side(*arguments)
        made.append(weakref.ref(side.state.matrices))
        return side

    monkeypatch.setattr(curvature_rollback, "_side", watched)
    got = curvature_rollback._roll_back(trajectory, None, 1, False, device)
    assert len(made) == 3
    for mine, right in zip(got, expected, strict=True):
        np.testing.assert_allclose(
            mine.rows[mine.places], right.rows[right.places], rtol=1e-4, atol=1e-7
        )
