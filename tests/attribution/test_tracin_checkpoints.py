"""TracIn from the ends of epochs, against its formula in plain numpy."""

from __future__ import annotations

import numpy as np
import pytest
from oracles import tracin as oracle
from oracles.sgd import rows_of
from planted import LOSSES, data_for, ratings, same_bits

import fastinfluence as fi
from fastinfluence import Interactions, TracIn
from fastinfluence.kernels.structures import Tables

of = fi.objectives
QUERIES = [(0, 1), (5, 3), (5, 4), (0, 3), (0, 1)]


def fit(data, *, sample_weight=None, **keywords):
    keywords = {"n_factors": 4, "n_epochs": 4, "learning_rate": 0.05, "rng": 0} | keywords
    keywords = {"dtype": "float64", "init_scale": 0.4} | keywords
    return fi.MatrixFactorization(**keywords).fit(data, sample_weight=sample_weight)


def naive_influence(model, queries, rates, kind=None):
    """Queries are lists of terms (user, item, weight, target); of a loss without negatives."""
    trajectory, data = model.trajectory_, model.data_
    program = trajectory.program
    checkpoints = [(rate, rows_of(trajectory.checkpoints[e].tables)) for e, rate in rates.items()]
    columns = (column.tolist() for column in (data.users, data.items, data.values, program.weights))
    examples = [(u, [[i]], value, weight) for u, i, value, weight in zip(*columns, strict=True)]
    fixed = program.hyper(0), program.recipe.loss_code
    return np.array(
        [
            oracle.at_checkpoints(
                checkpoints,
                examples,
                lambda theta, own=terms: oracle.gradient(theta, own, program.mean, kind),
                *fixed,
            )
            for terms in queries
        ]
    )


def checkpoints(model, **options):
    return TracIn(model, mode="checkpoints", **options)


def assert_near(got, expected, tolerance=1e-11):
    scale = np.abs(expected).max()
    assert scale > 1e-3
    np.testing.assert_allclose(got, expected, rtol=0, atol=tolerance * scale)


PLAIN = [[(u, i, 1.0, 0.0)] for u, i in QUERIES]


@pytest.mark.parametrize(("loss", "optimizer"), [
    ("squared", "sgd"), ("squared", "adagrad"), ("logistic", "sgd"),
])  # fmt: skip
def test_influence_by_definition(loss, optimizer):
    """Every epoch with its own learning rate, weights, regularization."""
    data = data_for(loss)
    weights = np.random.default_rng(1).choice([0, 0.4, 1, 2.5], len(data))
    model = fit(
        data, loss=loss, optimizer=optimizer, n_negatives=0, sample_weight=weights,
        learning_rate_decay=0.5, regularization=0.1,
    )  # fmt: skip
    rates = {1: 0.05, 2: 0.025, 3: 0.0125, 4: 0.00625}
    expected = naive_influence(model, PLAIN, rates)
    assert_near(checkpoints(model).influence(QUERIES), expected)
    targets = [1.0, 0.0, 1.0, 1.0, 0.0]
    terms = [[(u, i, 1.0, y)] for (u, i), y in zip(QUERIES, targets, strict=True)]
    expected = naive_influence(model, terms, rates, "logistic")
    held_out = of.HeldOutLoss(QUERIES, targets, "logistic")
    assert_near(checkpoints(model).influence(held_out), expected)


@pytest.mark.parametrize("loss", LOSSES[1:])
def test_losses_with_negatives(loss):
    """The losses of the endpoint, derived numerically along the gradient of phi."""
    data, distance = data_for(loss), 1e-5
    model = fit(data, loss=loss, learning_rate_decay=0.5)
    trajectory = model.trajectory_
    endpoint = trajectory.program.endpoint(trajectory.end.tables)
    expected = np.zeros((2, len(data)))
    for epoch in range(1, 5):
        tables = trajectory.checkpoints[epoch].tables
        for n, (user, item) in enumerate(QUERIES[:2]):
            slope = Tables(*map(np.zeros_like, tables))
            slope.user_factors[user] = tables.item_factors[item]
            slope.item_factors[item] = tables.user_factors[user]
            slope.user_biases[user] = slope.item_biases[item] = 1
            ahead, behind = (
                endpoint.at(
                    Tables(*(a + sign * distance * b for a, b in zip(tables, slope, strict=True)))
                ).losses()
                for sign in (1, -1)
            )
            expected[n] -= 0.05 * 0.5 ** (epoch - 1) * (ahead - behind) / (2 * distance)
    assert_near(checkpoints(model).influence(QUERIES[:2]), expected, 1e-7)


def test_thinned_checkpoints_carry_the_rates_of_the_epochs_between():
    """A peer that loads a checkpoint without its rate takes it for 1."""
    model = fit(ratings(), learning_rate_decay=0.5)
    for epoch in (1, 3):
        del model.trajectory_.checkpoints[epoch]
    expected = naive_influence(model, PLAIN, {2: 0.05 + 0.025, 4: 0.0125 + 0.00625})
    assert_near(checkpoints(model).influence(QUERIES), expected)
    del model.trajectory_.checkpoints[0]  # where no gradient is taken
    assert_near(checkpoints(model).influence(QUERIES), expected)


def test_an_early_stopped_run_counts_the_epochs_it_kept():
    train, test = ratings(30, 20, 400, seed=4).split(0.3, rng=0)
    keywords = {"n_factors": 8, "learning_rate": 0.15, "regularization": 0.0, "rng": 0}
    stopped = fi.MatrixFactorization(n_epochs=60, early_stopping=3, **keywords)
    stopped.fit(train, validation=test)
    short = fi.MatrixFactorization(n_epochs=stopped.n_epochs_, **keywords).fit(train)
    got, expected = (checkpoints(model).influence(QUERIES) for model in (stopped, short))
    assert same_bits(got, expected)


def test_any_objective():
    model = fit(ratings())

    def size(parameters):
        q = parameters.item_factors
        return (q**2).sum() / 2, {"item_factors": q}

    found = checkpoints(model).influence(of.Function(size))[0]
    pairs = of.Mean(of.Score(QUERIES))
    expected = naive_influence(
        model, [[(*q, 0.2, 0.0) for q in QUERIES]], dict.fromkeys(range(1, 5), 0.05)
    )
    assert_near(checkpoints(model).influence(pairs), expected)
    data, trajectory = model.data_, model.trajectory_
    naive = np.zeros(len(data))
    for epoch in range(1, 5):
        p, q, b, c = trajectory.checkpoints[epoch].tables
        u, i = data.users, data.items
        error = model.global_mean_ + b[u] + c[i] + (p[u] * q[i]).sum(1) - data.values
        gradient = error[:, None] * p[u] + model.regularization * q[i]
        naive -= 0.05 * (gradient * q[i]).sum(1)
    assert_near(found, naive)


def test_duplicates_have_the_same_influence():
    data = ratings()
    users, items, values = (np.append(a, a[7]) for a in (data.users, data.items, data.values))
    twice = Interactions.from_arrays(users, items, values, duplicates="keep")
    found = checkpoints(fit(twice)).influence([(users[7], 0), (users[7], 1), (2, items[7])])
    assert_near(found[:, -1], found[:, 7])


def test_an_example_without_a_row_of_the_query_has_exactly_none():
    data = ratings()
    found = checkpoints(fit(data)).influence([(3, 4)])[0]
    np.testing.assert_array_equal(found != 0, (data.users == 3) | (data.items == 4))


@pytest.mark.parametrize("loss", LOSSES)
def test_self_influence_is_the_diagonal(loss):
    data = data_for(loss)
    why = checkpoints(fit(data, loss=loss))
    own = np.diagonal(why.influence(np.column_stack([data.users, data.items])))
    assert_near(why.self_influence(), own)
    assert_near(why.self_influence([5, 3, 5]), own[[5, 3, 5]])
    assert why.self_influence([]).shape == (0,)


def test_threads_and_blocks_change_no_bit():
    data = data_for("logistic", n_users=130, n_items=90, n=4_100)
    model = fit(data, loss="logistic", dtype="float32", n_epochs=2)
    rng = np.random.default_rng(0)
    queries = np.column_stack([rng.integers(130, size=37), rng.integers(90, size=37)])
    once = checkpoints(model, n_threads=1).influence(queries)
    few = checkpoints(model, n_threads=3, memory_budget=1_100_000)
    assert few._at_once() == 16
    assert same_bits(few.influence(queries), once)
    explained = few.explain(queries, k=3)
    top = np.argsort(-once, axis=1, kind="stable")[:, :3]
    np.testing.assert_array_equal(explained.train_index, top)


def test_ideal_is_near_for_a_small_learning_rate():
    """The rows hardly move in an epoch: where the gradient is taken matters little."""
    model = fit(ratings(), learning_rate=1e-4)
    ideal, ends = (TracIn(model, mode=mode).influence(QUERIES) for mode in ("ideal", "checkpoints"))
    np.testing.assert_allclose(ends, ideal, rtol=0.05, atol=1e-3 * np.abs(ideal).max())
