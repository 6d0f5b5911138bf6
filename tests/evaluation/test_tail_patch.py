"""One more step on an explanation: against an epoch in which nothing else has a weight."""

from __future__ import annotations

import numpy as np
import pytest
from planted import LOSSES, OPTIMIZERS, data_for, ratings, same_tables

from fastinfluence import GradientRollback, MatrixFactorization
from fastinfluence.attribution.objectives import HeldOutLoss, Mean
from fastinfluence.errors import DataError
from fastinfluence.evaluation import sample_queries, tail_patch
from fastinfluence.evaluation.neighbours import bind


def fit(loss="squared", optimizer="sgd", n=400, sample_weight=None, **keywords):
    data = data_for(loss, n_users=130, n_items=90, n=n)
    return MatrixFactorization(
        n_factors=4, n_epochs=3, learning_rate=0.05, loss=loss, optimizer=optimizer, rng=0,
        **keywords,
    ).fit(data, sample_weight=sample_weight)  # fmt: skip


def one_by_one(model, queries, lists):
    """Run the whole last epoch again with a single weight, on a copy, for every entry."""
    trajectory, quantity = model.trajectory_, bind(model, queries)
    program, mean = trajectory.program, model.global_mean_
    before = quantity.values(trajectory.end.tables, mean)
    found = []
    for q, examples in enumerate(lists):
        changes = []
        for j in examples[examples >= 0]:
            weights = np.zeros(len(model.data_))
            weights[j] = program.weights[j]
            state = program.enter(trajectory.end)
            program.reweighted(weights).run_epoch(state, trajectory.n_epochs - 1)
            changes.append(quantity.values(program.leave(state).tables, mean)[q] - before[q])
        found.append(np.mean(changes) if changes else np.nan)
    return np.array(found)


@pytest.mark.parametrize("n", [400, 4100])  # one group of the schedule, and two
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("loss", LOSSES)
def test_every_step_alone(loss, optimizer, n):
    model = fit(loss, optimizer, n, learning_rate_decay=0.8)
    assert model.trajectory_.program.schedule.n_groups == (1 if n == 400 else 2)
    end = model.trajectory_.end.copy()
    queries = sample_queries(model, 6)
    explanations = GradientRollback(model).explain(queries, 5)
    lists = explanations.train_index.copy()
    lists[0], lists[1, 3:], lists[2] = -1, -1, lists[3]
    found = tail_patch(model, queries, lists)
    assert found.shape == (6,)
    np.testing.assert_allclose(found, one_by_one(model, queries, lists), rtol=1e-12, atol=1e-15)
    assert np.isnan(found[0])
    whole = tail_patch(model, queries, explanations)
    assert (whole > 0).all()  # proponents raise what they are credited with
    np.testing.assert_allclose(whole[3:], found[3:])
    assert same_tables(model.trajectory_.end.tables, end.tables)
    if optimizer == "adagrad":
        assert same_tables(model.trajectory_.end.squares, end.squares)


def test_weights():
    weights = np.where(np.arange(400) < 200, 0.0, 2.0)
    model = fit(sample_weight=weights)
    queries = [(user, 0) for user in model.data_.users[[0, 300, 301]]]
    found = tail_patch(model, queries, [[0, 1], [300, 5], [301, 399]])
    assert found[0] == 0
    alone = one_by_one(model, queries[1:], np.array([[300], [301]]))
    assert found[1] == pytest.approx(alone[0] / 2)
    assert abs(alone).min() > 0


def test_other_objectives():
    model = fit()
    pairs = sample_queries(model, 4)
    lists = GradientRollback(model).explain(pairs, 3).train_index
    for objective, asked in (
        (HeldOutLoss(pairs, 4.0), lists),
        (Mean(pairs), lists[:1]),
    ):
        expected = one_by_one(model, objective, asked)
        np.testing.assert_allclose(tail_patch(model, objective, asked), expected)


def test_nothing_but_empty_places():
    model = MatrixFactorization(n_factors=2, n_epochs=1, rng=0).fit(ratings())
    assert np.isnan(tail_patch(model, [(0, 0)], [[-1, -1]])).all()


@pytest.mark.parametrize(
    ("queries", "lists", "message"),
    [
        ([(0, 0)], [[1], [2]], r"train has shape \(2, 1\): one list for each of the 1"),
        ([(0, 0)], [1], r"shape \(1,\)"),
        ([(0, 0)], [[60]], "train holds 60, which is no training index"),
        ([(0, 0)], [[1.5]], "float64"),
        ([], np.zeros((0, 3), int), "no queries"),
    ],
)
def test_bad_input(queries, lists, message):
    model = MatrixFactorization(n_factors=2, n_epochs=1, rng=0).fit(ratings())
    with pytest.raises(DataError, match=message):
        tail_patch(model, queries, lists)
