"""Curvature Rollback against the naive recursion, its special cases, and retraining."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import curvature as oracle
from oracles import steps as naive
from planted import LOSSES, OPTIMIZERS, data_for, ratings, same_bits, same_tables

import fastinfluence as fi
from fastinfluence import CurvatureRollback, GradientRollback, MatrixFactorization
from fastinfluence.attribution import curvature_rollback
from fastinfluence.errors import NotFittedError, ParameterError, ReplayMismatch, RunDirectoryError
from fastinfluence.kernels.structures import CURVATURE
from fastinfluence.training import backward
from fastinfluence.training import program as programs


def fit(data, *, sample_weight=None, **keywords):
    keywords = {"n_factors": 5, "n_epochs": 3, "learning_rate": 0.05, "rng": 0} | keywords
    keywords = {"dtype": "float64"} | keywords
    return MatrixFactorization(**keywords).fit(data, sample_weight=sample_weight)


def rolled_back(trajectory, held=None, n_threads=1):
    """Changes of the users' rows, of the items', and of both biases, in training order."""
    sides = curvature_rollback._roll_back(trajectory, held, n_threads, False, "cpu")
    biases = np.stack([side.biases[side.places] for side in sides])
    return [*(side.rows[side.places] for side in sides), biases]


def naively(trajectory, **parts):
    """The same from the oracle: user rows, item rows, biases."""
    program, k = trajectory.program, trajectory.recipe.n_factors
    run = naive.run(program, trajectory.checkpoints[0], trajectory.n_epochs)
    credits = oracle.rollback(run.steps, **parts)
    n = len(program.data)
    found = np.zeros((2, n, k + 1))
    for (t, side), change in credits.items():
        found[("user", "item").index(side), program.schedule.order[t]] = change
    return [found[0, :, :k], found[1, :, :k], found[:, :, k]]


def assert_close(got, expected, **tolerance):
    for mine, right in zip(got, expected, strict=True):
        np.testing.assert_allclose(mine, right, **tolerance)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("loss", LOSSES)
def test_the_naive_recursion(loss, optimizer):
    data = data_for(loss)
    weights = np.random.default_rng(1).choice([0, 0.4, 1, 2.5], len(data))
    trajectory = fit(data, loss=loss, optimizer=optimizer, sample_weight=weights).trajectory_
    assert_close(rolled_back(trajectory), naively(trajectory), rtol=1e-9, atol=1e-11)


@settings(max_examples=15, deadline=None)
@given(
    st.sampled_from(LOSSES),
    st.sampled_from(OPTIMIZERS),
    st.integers(1, 40),
    st.integers(1, 7),
    st.floats(0, 0.5),
    st.integers(0, 2**31),
)
def test_the_naive_recursion_at_random(loss, optimizer, n_factors, n_negatives, l2, seed):
    data = data_for(loss, n=35, seed=seed % 1000)
    trajectory = fit(
        data, loss=loss, optimizer=optimizer, n_factors=n_factors, regularization=l2,
        n_epochs=2, rng=seed, n_negatives=0 if loss == "squared" else n_negatives,
        learning_rate_decay=0.7,
    ).trajectory_  # fmt: skip
    assert_close(rolled_back(trajectory), naively(trajectory), rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("loss", LOSSES)
def test_many_blocks_and_threads(loss, monkeypatch):
    monkeypatch.setattr(programs, "_LEAST_WORK", 0)
    data = data_for(loss, n_users=130, n_items=90, n=4_100)
    trajectory = fit(data, loss=loss, n_threads=1, n_epochs=2).trajectory_
    assert trajectory.program.schedule.n_groups > 1
    once = rolled_back(trajectory)
    assert same_tables(once, rolled_back(trajectory, n_threads=2))
    if loss == "squared":
        assert_close(once, naively(trajectory), rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("loss", LOSSES)
def test_float32(loss):
    """Within 1e-4 of the float64 recursion along the same steps (relative to each side)."""
    data = data_for(loss, n_users=40, n_items=30, n=600)
    model = fit(data, loss=loss, n_factors=20, n_epochs=20, dtype="float32")
    got, expected = rolled_back(model.trajectory_), naively(model.trajectory_)
    for mine, right in zip(got[:2], expected[:2], strict=True):
        assert np.linalg.norm(mine - right) <= 1e-4 * np.linalg.norm(right)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_thinned_checkpoints_and_pieces_of_epochs(optimizer, monkeypatch):
    data = ratings(n_users=130, n_items=90, n=4_100)
    trajectory = fit(data, optimizer=optimizer, n_epochs=4).trajectory_
    expected = rolled_back(trajectory)
    for epoch in (1, 3):
        del trajectory.checkpoints[epoch]
    assert same_tables(rolled_back(trajectory), expected)
    monkeypatch.setattr(curvature_rollback, "LOG_BUDGET", 1)  # a stratum at a time
    stages = list(backward.backward(trajectory, memory_budget=1))
    assert len(stages) == 4 * trajectory.program.schedule.n_groups
    assert_close(rolled_back(trajectory), expected, rtol=1e-10, atol=1e-12)


def test_rows_in_chunks(monkeypatch):
    trajectory = fit(ratings()).trajectory_
    expected = rolled_back(trajectory)
    size = 16 * (5 + 3) * 8
    monkeypatch.setattr(curvature_rollback, "memory_budget", lambda: 5 * size)
    assert same_tables(rolled_back(trajectory), expected)


# ---------------------------------------------------------------- special cases


@pytest.mark.parametrize("loss", LOSSES)
def test_without_curvature_it_is_gradient_rollback(loss, monkeypatch):
    """Matrices that stay at the identity: no curvature in the log, no regularization."""
    trajectory = fit(data_for(loss), loss=loss, regularization=0.0).trajectory_
    flatten(monkeypatch)
    record, visits = trajectory.replay(), trajectory.visits()
    expected = [record.user_rows[visits], record.item_rows[visits], record.biases[visits].T]
    assert_close(rolled_back(trajectory), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("loss", LOSSES)
def test_with_decay_alone_it_is_hydra(loss, monkeypatch):
    """Products of ``1 - lr * l2`` only: HYDRA with weight decay."""
    trajectory = fit(data_for(loss), loss=loss, regularization=0.3).trajectory_
    flatten(monkeypatch)
    expected = naively(trajectory, curvature=False)
    assert_close(rolled_back(trajectory), expected, rtol=1e-9, atol=1e-12)


def flatten(monkeypatch):
    """Take the curvature out of every log."""

    def flat(*arguments, **keywords):
        for stage in backward.backward(*arguments, **keywords):
            stage.log.numbers[:, CURVATURE] = 0
            yield stage

    monkeypatch.setattr(curvature_rollback, "backward", flat)


def test_an_example_seen_only_in_the_last_step():
    """Nothing comes after it, so taking it back is retraining without it."""
    data = ratings(n_users=1, n_items=1, n=1)
    model = fit(data, n_epochs=1)
    query = [(0, 0)]
    truth = model.predict([0], [0]) - 0
    tables = model.trajectory_.checkpoints[0].tables
    without = model.global_mean_ + tables.user_factors[0] @ tables.item_factors[0]
    got = CurvatureRollback(model).influence(query, dense=True)[0, 0]
    np.testing.assert_allclose(got, truth[0] - without, rtol=1e-12)


def test_strong_regularization_does_not_underflow():
    data = ratings(n_users=2, n_items=60, n=110)
    model = fit(data, n_epochs=30, learning_rate=0.4, regularization=1.2)
    got = rolled_back(model.trajectory_)
    assert all(np.isfinite(array).all() for array in got)
    assert_close(got, naively(model.trajectory_), rtol=1e-6, atol=1e-9)


# ---------------------------------------------------------------- the class


def test_close_to_retraining():
    """On a pair nobody rated: ranks right and of the right size, as Gradient Rollback is not."""
    data = ratings(n_users=40, n_items=30, n=500)
    model = fit(data, n_epochs=20, learning_rate=0.02)
    user, item = 3, next(i for i in range(30) if not ((data.users == 3) & (data.items == i)).any())
    near = np.flatnonzero((data.users == user) | (data.items == item))
    truth = np.empty(len(near))
    score = model.predict([user], [item])[0]
    for number, j in enumerate(near):
        tables = model.trajectory_.retrain(without=[j])
        dot = tables.user_factors[user] @ tables.item_factors[item]
        without = model.global_mean_ + tables.user_biases[user] + tables.item_biases[item] + dot
        truth[number] = score - without
    curved = CurvatureRollback(model).influence([(user, item)], dense=True)[0, near]
    plain = GradientRollback(model).influence([(user, item)], dense=True)[0, near]
    assert np.corrcoef(curved, truth)[0, 1] > 0.97
    assert 0.5 < (curved @ truth) / (curved @ curved) < 2
    assert np.abs(plain - truth).mean() > 3 * np.abs(curved - truth).mean()


def test_explain_and_units():
    model = fit(ratings(), dtype="float32")
    why = CurvatureRollback(model)
    explanations = why.explain([(0, 0), (1, 2)], k=3)
    assert (why.name, why.units) == ("curvature-rollback", "effect")
    assert explanations.units == "effect"
    dense = why.influence([(0, 0), (1, 2)], dense=True)
    np.testing.assert_allclose(explanations.influence[:, 0], dense.max(1), rtol=1e-5)
    assert why.self_influence().shape == (60,)
    assert fi.CurvatureRollback is CurvatureRollback


@pytest.mark.parametrize("loss", LOSSES)
def test_only_the_rows_of_some_queries(loss):
    data = data_for(loss)
    model = fit(data, loss=loss, dtype="float32")
    queries = [(1, 2), (3, 2), (1, 5)]
    everything, some = CurvatureRollback(model), CurvatureRollback(model, rows=queries)
    assert some.rows.nbytes < everything.rows.nbytes / 2
    assert same_bits(some.influence(queries, dense=True), everything.influence(queries, dense=True))
    few, all_ = some.explain(queries, k=8), everything.explain(queries, k=8)
    np.testing.assert_array_equal(few.train_index, all_.train_index)
    np.testing.assert_allclose(few.influence, all_.influence, rtol=1e-5, atol=1e-7)
    crossed = [(3, 5)]  # both rows are there
    assert same_bits(some.influence(crossed, dense=True), everything.influence(crossed, dense=True))


def test_queries_of_other_rows():
    model = fit(ratings())
    some = CurvatureRollback(model, rows=[(1, 2)])
    for ask in (some.explain, some.influence):
        with pytest.raises(ParameterError, match=r"rows of item 3 were not computed"):
            ask([(1, 3)])
        with pytest.raises(ParameterError, match=r"rows of user 4 were not computed"):
            ask([(4, 2)])
    with pytest.raises(ParameterError, match="self_influence needs the rows of all"):
        some.self_influence()


def test_own_pair_among_restricted_rows():
    data = ratings()
    model = fit(data, dtype="float32")
    own = [(int(data.users[7]), int(data.items[7]))]
    some = CurvatureRollback(model, rows=own)
    expected = CurvatureRollback(model).influence(own, dense=True)
    np.testing.assert_allclose(some.influence(own, dense=True), expected, rtol=1e-6)
    best = some.explain(own, k=60)
    found = best.train_index[0] >= 0
    np.testing.assert_allclose(
        best.influence[0, found], expected[0, best.train_index[0, found]], rtol=1e-5, atol=1e-7
    )


def test_rows_on_disk(tmp_path):
    model = fit(ratings(), dtype="float32")
    query = [(1, 2)]
    first = CurvatureRollback(model, path=tmp_path / "rows")
    again = CurvatureRollback(model, path=tmp_path / "rows")
    assert same_bits(first.influence(query, dense=True), again.influence(query, dense=True))
    for other in (
        lambda: GradientRollback(model, path=tmp_path / "rows"),
        lambda: CurvatureRollback(model, path=tmp_path / "rows", rows=query),
    ):
        with pytest.raises(RunDirectoryError, match="belong to another model"):
            other()


def test_after_loading(tmp_path):
    model = fit(ratings(), dtype="float32")
    model.save(tmp_path / "run")
    loaded = fi.load(tmp_path / "run")
    query = [(1, 2)]
    assert same_bits(
        CurvatureRollback(model).influence(query, dense=True),
        CurvatureRollback(loaded).influence(query, dense=True),
    )


def test_a_changed_trajectory():
    model = fit(ratings())
    model.trajectory_.program.examples.values[3] += 1
    with pytest.raises(ReplayMismatch):
        CurvatureRollback(model)


def test_not_fitted():
    with pytest.raises(NotFittedError):
        CurvatureRollback(MatrixFactorization())


def test_what_has_all_but_vanished_is_zero():
    """Long after the last trace of its start is gone a row costs what it cost before."""
    data = ratings(n_users=1, n_items=40, n=40)
    model = fit(data, n_epochs=400, learning_rate=0.3, regularization=0.5, dtype="float32")
    program = model.trajectory_.program
    rows = [np.array([0]), np.array([], np.int64)]
    (side,) = next(curvature_rollback._chunks(model.trajectory_, rows, 1, "cpu"))
    users = program.examples.users
    changes = curvature_rollback._no_changes(program, users, np.ones(40, bool), "cpu")
    for stage in backward.backward(model.trajectory_, memory_budget=2**20):
        touches = curvature_rollback._touches(side, users, stage, changes.places, "cpu")
        curvature_rollback._walk(side, touches, program, stage, changes, 1, "cpu")
    matrix = side.state.matrices[0, :5, :5]
    assert ((matrix == 0) | (np.abs(matrix) > np.finfo(np.float32).tiny)).all()
    assert (matrix == 0).any()
    assert np.isfinite(changes.rows).all()
