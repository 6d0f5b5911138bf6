"""What the loss loses when some rows move, against the naive loss at both ends."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import fixed_point as oracle
from planted import LOSSES, data_for

import fastinfluence as fi
from fastinfluence.kernels.structures import Tables


def fit(loss, seed=0, **keywords):
    data = data_for(loss, seed=seed)
    weights = np.random.default_rng(seed).choice([0.0, 0.4, 1, 2.5], len(data))
    keywords = {"dtype": "float64", "n_factors": 5, "n_epochs": 3, "rng": seed} | keywords
    model = fi.MatrixFactorization(loss=loss, init_scale=0.4, regularization=0.1, **keywords)
    return model.fit(data, sample_weight=weights)


def endpoint_of(model):
    trajectory = model.trajectory_
    return trajectory.program.endpoint(trajectory.end.tables)


def moved_tables(endpoint, tables, changes):
    users, items = changes[: endpoint.n_users], changes[endpoint.n_users :]
    steps = users[:, :-1], items[:, :-1], users[:, -1], items[:, -1]
    return Tables(*(table + step for table, step in zip(tables, steps, strict=True)))


def random_changes(endpoint, n_moved, size, rng):
    moved = rng.permutation(endpoint.n_rows)[:n_moved]
    changes = np.zeros((endpoint.n_rows, endpoint.d))
    changes[moved] = size * rng.standard_normal((n_moved, endpoint.d))
    return changes, moved


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from(LOSSES),
    st.integers(0, 21),
    st.sampled_from([0.01, 1.0, 4.0, 100.0]),
    st.integers(0, 3),
    st.integers(0, 10**6),
)
def test_the_naive_loss_at_both_ends(loss, n_moved, size, seed, seed_of_changes):
    model = fit(loss, seed)
    endpoint, trajectory = endpoint_of(model), model.trajectory_
    rng = np.random.default_rng(seed_of_changes)
    changes, moved = random_changes(endpoint, n_moved, size, rng)
    there = moved_tables(endpoint, trajectory.end.tables, changes)
    before, after = (
        oracle.losses(trajectory.program, tables) for tables in (trajectory.end.tables, there)
    )
    found = endpoint.loss_drops(changes, moved)
    np.testing.assert_allclose(found, before - after, rtol=1e-10, atol=1e-10 * (1 + size**2))
    data = model.data_
    if loss == "squared":  # no negatives: only the users and items that moved
        touched = np.isin(data.users, moved) | np.isin(data.items + data.n_users, moved)
        assert not found[~touched].any()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("loss", LOSSES)
def test_changes_too_small_for_a_difference_of_losses(loss, dtype):
    model = fit(loss, dtype=dtype)
    endpoint, trajectory = endpoint_of(model), model.trajectory_
    changes, moved = random_changes(endpoint, 6, 1e-14, np.random.default_rng(0))
    gradients = oracle.loss_gradients(trajectory.program, trajectory.end.tables)
    expected = -np.tensordot(gradients, changes, 2)
    assert np.abs(expected).max() > 1e-15
    tolerance = 1e-10 if dtype == "float64" else 1e-6  # weights and values are of the dtype
    found = endpoint.loss_drops(changes, moved)
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * np.abs(expected).max())
