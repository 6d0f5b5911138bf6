"""TracIn by definition, its identity, and its promises."""

from __future__ import annotations

import numpy as np
import pytest
from oracles import steps as walk
from oracles import tracin as oracle
from oracles.sgd import rows_of
from planted import LOSSES, OPTIMIZERS, data_for, ratings, same_bits

import fastinfluence as fi
from fastinfluence import Interactions, MatrixFactorization, TracIn
from fastinfluence.attribution import dense
from fastinfluence.errors import (
    DataError,
    NotFittedError,
    ParameterError,
    ReplayMismatch,
    UnknownIdError,
)

of = fi.objectives
PAIRS = [(0, 1), (5, 3), (5, 4), (0, 3), (0, 1)]


def fit(data, *, sample_weight=None, **keywords):
    keywords = {"n_factors": 4, "n_epochs": 3, "learning_rate": 0.05, "rng": 0} | keywords
    keywords = {"dtype": "float64", "init_scale": 0.4} | keywords
    return MatrixFactorization(**keywords).fit(data, sample_weight=sample_weight)


def naive_influence(model, queries, kind=None):
    """Queries are lists of terms (user code, item code, weight, target)."""
    trajectory = model.trajectory_
    program = trajectory.program
    theta = rows_of(program.enter(trajectory.checkpoints[0]).tables)
    steps = walk.run(program, trajectory.checkpoints[0], trajectory.n_epochs).steps
    found = []
    for terms in queries:
        placed = [
            (walk.name_of(program, "user", u)[1], walk.name_of(program, "item", i)[1], w, y)
            for u, i, w, y in terms
        ]
        by_step = oracle.ideal(
            theta, steps, lambda rows, own=placed: oracle.gradient(rows, own, program.mean, kind)
        )
        found.append(walk.in_training_order(program, by_step))
    return np.array(found)


def values(model, objective, epoch):
    """phi (n_queries,) after so many epochs."""
    quantity = of.as_objective(objective).bind(model.data_, model.trajectory_.recipe)
    return quantity.values(model.trajectory_.checkpoints[epoch].tables, model.global_mean_)


def assert_near(got, expected, tolerance=1e-10):
    scale = np.abs(expected).max()
    assert scale > 1e-3
    np.testing.assert_allclose(got, expected, rtol=0, atol=tolerance * scale)


# ---------------------------------------------------------------- by definition


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("loss", LOSSES)
def test_influence_by_definition(loss, optimizer):
    """Unseen pairs and trained ones, a user and an item without examples, weights, a decay."""
    data = data_for(loss, n_users=8, n_items=7, n=14, seed=4)
    lonely = [np.flatnonzero(np.bincount(c, minlength=n) == 0)[0] for c, n in
              ((data.users, 8), (data.items, 7))]  # fmt: skip
    queries = [(0, 1), (data.users[3], data.items[3]), (lonely[0], 2), (3, lonely[1])]
    weights = np.random.default_rng(1).choice([0, 0.4, 1, 2.5], 14)
    model = fit(
        data, loss=loss, optimizer=optimizer, sample_weight=weights, learning_rate_decay=0.7
    )
    expected = naive_influence(model, [[(u, i, 1.0, 0.0)] for u, i in queries])
    assert_near(TracIn(model).influence(queries), expected)


@pytest.mark.parametrize("loss", LOSSES)
def test_objectives_that_are_made_of_scores(loss):
    model = fit(data_for(loss), loss=loss)
    targets = [1.0, 0.0, 1.0, 1.0, 0.0]
    with_targets = [(u, i, 1.0, y) for (u, i), y in zip(PAIRS, targets, strict=True)]
    cases = [
        (of.Margin(PAIRS, over=2), [[(u, i, 1.0, 0), (u, 2, -1.0, 0)] for u, i in PAIRS], None),
        (of.Mean(of.Score(PAIRS)), [[(u, i, 0.2, 0) for u, i in PAIRS]], None),
    ]
    for kind in ("squared", "logistic"):
        held_out = of.HeldOutLoss(PAIRS, targets, kind)
        cases.append((held_out, [[term] for term in with_targets], kind))
        cases.append((of.Mean(held_out), [[(u, i, 0.2, y) for u, i, _, y in with_targets]], kind))
    for objective, queries, kind in cases:
        expected = naive_influence(model, queries, kind)
        assert_near(TracIn(model).influence(objective), expected)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("loss", LOSSES)
def test_influences_add_up_to_what_training_did(loss, optimizer):
    """Up to the learning rate's second order: half the rate, a quarter of the error."""
    queries = of.HeldOutLoss(PAIRS, [1, 0, 1, 1, 0], "logistic")
    errors = []
    for rate in (0.002, 0.001):
        model = fit(data_for(loss), loss=loss, optimizer=optimizer, learning_rate=rate)
        done = values(model, queries, 3) - values(model, queries, 0)
        errors.append(done - TracIn(model).influence(queries).sum(axis=1))
        assert (np.abs(errors[-1]) < 0.01 * np.abs(done)).all()
    assert np.linalg.norm(errors[0]) / np.linalg.norm(errors[1]) == pytest.approx(4, rel=0.05)


def test_influences_add_up_over_blocks_of_the_schedule():
    """Users and items that move in several tiles of a stratum."""
    data = ratings(130, 90, 4_100)
    rng = np.random.default_rng(0)
    queries = np.column_stack([rng.integers(130, size=9), rng.integers(90, size=9)])
    errors = []
    for rate in (0.0002, 0.0001):
        model = fit(data, learning_rate=rate, n_epochs=2)
        assert model.trajectory_.program.schedule.n_groups > 1
        done = values(model, queries, 2) - values(model, queries, 0)
        errors.append(done - TracIn(model).influence(queries).sum(axis=1))
    assert np.linalg.norm(errors[0]) / np.linalg.norm(errors[1]) == pytest.approx(4, rel=0.05)


def test_the_learning_rate_is_in_the_influence():
    """The one example's one step: with half the rate half the influence."""
    data = Interactions.from_arrays([0], [0], [5], user_ids=[0, 1], item_ids=[0, 1])
    full, half = (
        TracIn(fit(data, n_epochs=1, learning_rate=rate)).influence([(0, 0)])
        for rate in (0.1, 0.05)
    )
    assert full[0, 0] == pytest.approx(2 * half[0, 0], rel=1e-12)


# ---------------------------------------------------------------- structure


def test_an_example_without_a_row_of_the_query_has_exactly_none():
    data = ratings()
    user, item = 3, 4
    found = TracIn(fit(data)).influence([(user, item)])[0]
    shares = (data.users == user) | (data.items == item)
    assert shares.any()
    assert not shares.all()
    np.testing.assert_array_equal(found != 0, shares)


def test_duplicates_share_the_influence():
    """Every copy has its own steps, and together about what the one has at twice the weight."""
    data = ratings()
    at = 7
    users, items, targets = (np.append(a, a[at]) for a in (data.users, data.items, data.values))
    twice = Interactions.from_arrays(users, items, targets, duplicates="keep")
    queries = [(users[at], (items[at] + 1) % 9), (users[at], items[at])]
    small = {"learning_rate": 0.005, "n_epochs": 10}
    first, second = TracIn(fit(twice, **small)).influence(queries)[:, [at, -1]].T
    np.testing.assert_allclose(first, second, rtol=0.05)
    weights = np.ones(len(data))
    weights[at] = 2
    doubled = TracIn(fit(data, sample_weight=weights, **small)).influence(queries)[:, at]
    np.testing.assert_allclose(first + second, doubled, rtol=0.05)


def test_positive_means_that_training_raised_the_score():
    data = Interactions.from_arrays([0, 1], [0, 1], [5, 1])
    raised, lowered = TracIn(fit(data, init_scale=0.01)).self_influence()
    assert raised > 0 > lowered


@pytest.mark.parametrize("loss", LOSSES)
def test_self_influence_is_the_diagonal(loss):
    data = data_for(loss)
    why = TracIn(fit(data, loss=loss, dtype="float32"))
    own = np.diagonal(why.influence(np.column_stack([data.users, data.items])))
    assert same_bits(why.self_influence(), own.copy())
    some = np.append(np.random.default_rng(0).permutation(len(data))[:20], [5, 5])
    assert same_bits(why.self_influence(some), own[some])
    assert why.self_influence([]).shape == (0,)


# ---------------------------------------------------------------- one result, however computed


@pytest.fixture(scope="module", params=["squared", "logistic"])
def grouped(request):
    """Trained in several groups, in float32; the loss's walk skips steps, or may not."""
    data = data_for(request.param, n_users=130, n_items=90, n=4_100)
    model = fit(data, loss=request.param, dtype="float32", n_factors=5)
    assert model.trajectory_.program.schedule.n_groups > 1
    rng = np.random.default_rng(0)
    queries = np.column_stack([rng.integers(130, size=37), rng.integers(90, size=37)])
    return model, queries, TracIn(model, n_threads=1).influence(queries)


def test_threads_and_walks_change_no_bit(grouped, monkeypatch):
    model, queries, once = grouped
    walks = []
    backward = dense.backward
    monkeypatch.setattr(
        dense, "backward", lambda *a, **k: walks.append(k["only"]) or backward(*a, **k)
    )
    few = TracIn(model, n_threads=2, memory_budget=1_100_000)
    assert same_bits(few.influence(queries), once)
    assert len(walks) == 3  # of 16, 16 and 5
    assert same_bits(TracIn(model, n_threads=3).influence(queries), once)
    alone = np.concatenate([TracIn(model).influence(queries[n : n + 1]) for n in (0, 20, 36)])
    assert same_bits(alone, once[[0, 20, 36]])
    if model.loss == "squared":
        assert walks[-1].sum() < len(model.data_) / 10
    own = TracIn(model, n_threads=1).self_influence()
    assert same_bits(TracIn(model, n_threads=3, memory_budget=2**20).self_influence(), own)


def test_a_saved_model_gives_the_same_bits(grouped, tmp_path):
    model, queries, once = grouped
    model.save(tmp_path / "run")
    assert same_bits(TracIn(fi.load(tmp_path / "run")).influence(queries), once)


@pytest.mark.parametrize("proponents", [True, False])
def test_explain_is_the_top_of_influence(grouped, proponents):
    model, queries, once = grouped
    explained = TracIn(model).explain(queries, k=7, proponents=proponents)
    order = np.argsort(-once if proponents else once, axis=1, kind="stable")[:, :7]
    np.testing.assert_array_equal(explained.train_index, order)
    assert same_bits(explained.influence, np.take_along_axis(once, order, axis=1))
    np.testing.assert_allclose(explained.total_influence, np.abs(once).sum(axis=1), rtol=1e-5)
    assert (explained.method, explained.units) == ("tracin", "rank")


def test_the_same_method_of_another_model():
    model, other = fit(ratings()), fit(ratings(), rng=1)
    why = TracIn(model, mode="checkpoints").on(other)
    assert (why.mode, why.model) == ("checkpoints", other)
    assert TracIn(model).on(other).mode == "ideal"


# ---------------------------------------------------------------- what cannot be done


def test_needs_a_fitted_model_and_a_mode():
    with pytest.raises(NotFittedError, match="not fitted"):
        TracIn(MatrixFactorization())
    with pytest.raises(ParameterError, match="mode='cp' is not known: use 'ideal' or"):
        TracIn(fit(ratings()), mode="cp")


def test_a_function_is_not_made_of_scores():
    size = of.Function(lambda p: ((p.item_factors**2).sum(), {"item_factors": 2 * p.item_factors}))
    with pytest.raises(ParameterError, match="use mode='checkpoints'"):
        TracIn(fit(ratings())).influence(size)


def test_a_run_without_its_start():
    model = fit(ratings())
    del model.trajectory_.checkpoints[0]
    with pytest.raises(ParameterError, match=r"after epoch 0.*mode='checkpoints'"):
        TracIn(model)


def test_a_changed_run_is_not_followed():
    model = fit(ratings())
    model.trajectory_.checkpoints[2].tables.item_factors[0] *= 1.01
    with pytest.raises(ReplayMismatch):
        TracIn(model).influence([(0, 1)])
    with pytest.raises(ReplayMismatch):
        TracIn(model).self_influence()


def test_wrong_queries():
    why = TracIn(fit(ratings()))
    with pytest.raises(UnknownIdError, match="unknown user 99"):
        why.influence([(99, 0)])
    with pytest.raises(DataError, match="no queries"):
        why.explain([])
    with pytest.raises(ParameterError, match="k must be"):
        why.explain([(0, 1)], k=0)
    with pytest.raises(ParameterError, match=r"use influence\(\)"):
        why.explain(of.Mean([(0, 1)]))
    with pytest.raises(DataError, match="train_index holds 60"):
        why.self_influence([3, 60])
    with pytest.raises(ParameterError, match="use explain"):
        TracIn(why.model, memory_budget=2**20).influence(np.zeros((3000, 2), int))
