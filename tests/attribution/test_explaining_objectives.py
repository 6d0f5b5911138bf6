"""Influence on objectives other than scores, and explanations of them, from rows."""

from __future__ import annotations

import numpy as np
import pytest
from planted import data_for, positives, ratings, same_bits

from fastinfluence import GradientRollback, Interactions, MatrixFactorization
from fastinfluence.attribution import bulk
from fastinfluence.attribution.objectives import Function, HeldOutLoss, Margin, Mean, Score
from fastinfluence.attribution.ranking import top_of_rows
from fastinfluence.errors import DataError, ParameterError, UnknownIdError


def fit(data, **keywords):
    defaults = {"n_factors": 4, "n_epochs": 3, "learning_rate": 0.05, "init_scale": 0.4, "rng": 0}
    return MatrixFactorization(**(defaults | keywords)).fit(data)


@pytest.fixture(scope="module")
def why():
    return GradientRollback(fit(ratings(n_users=20, n_items=15, n=150), dtype="float64"))


def many(why, n=40, seed=0):
    rng = np.random.default_rng(seed)
    data = why.data
    return np.column_stack([rng.integers(data.n_users, size=n), rng.integers(data.n_items, size=n)])


def flat(parameters):
    return 1.0, {}


def bound_values(why, objective):
    trajectory = why.model.trajectory_
    quantity = objective.bind(why.data, trajectory.recipe)
    return quantity.values(trajectory.end.tables, why.model.global_mean_)


def assert_matrix(found, expected):
    """A csr_array, each row sorted and without zeros, against a dense array."""
    assert found.has_canonical_format
    assert found.data.all()
    assert found.shape == expected.shape
    np.testing.assert_allclose(found.toarray(), expected, rtol=0, atol=1e-13)
    assert (np.count_nonzero(found.toarray(), axis=1) > 0).any()


def test_a_margin_is_a_difference_of_scores(why):
    queries, over = many(why), many(why, seed=1)[:, 1]
    expected = why.influence(queries, dense=True)
    expected = expected - why.influence(np.column_stack([queries[:, 0], over]), dense=True)
    objective = Margin(queries, over)
    assert_matrix(why.influence(objective), expected)
    assert same_bits(why.influence(objective, dense=True), why.influence(objective).toarray())


def test_zeros_are_no_entries(why):
    """Neither those of an item compared with itself nor those of a loss without a slope."""
    same = Margin([(3, 5), (3, 5)], over=[5, 6])
    assert np.diff(why.influence(same).indptr).tolist()[0] == 0
    here = float(bound_values(why, Score([(3, 5)]))[0])
    assert why.influence(HeldOutLoss([(3, 5)], here)).nnz == 0
    listed = why.explain(same, k=3)
    assert (listed.train_index == -1).tolist() == [[True] * 3, [False] * 3]


@pytest.mark.parametrize("loss", ["squared", "logistic", "bpr"])
def test_a_loss_is_followed_through_its_score(loss):
    why = GradientRollback(fit(data_for(loss), loss=loss, dtype="float64"))
    data, queries = why.data, many(why)
    predicted = why.model.predict(*queries.T)
    if loss == "squared":
        targets = np.random.default_rng(2).normal(3, 1, len(queries))
        slopes, objective = targets - predicted, HeldOutLoss(queries, targets)
    else:
        targets = np.arange(len(queries)) % 2
        slopes = targets - 1 / (1 + np.exp(-predicted))
        objective = HeldOutLoss(queries, targets, loss="logistic")
    scores = why.influence(queries, dense=True)
    assert_matrix(why.influence(objective), slopes[:, None] * scores)
    assert_matrix(why.influence(Mean(objective)), (slopes @ scores)[None] / len(queries))
    assert why.influence(Mean(objective)).shape == (1, len(data))


def test_positive_means_that_the_loss_became_lower():
    """Three ratings of their own rows: retraining without each tells the sign."""
    data = Interactions.from_arrays([0, 1, 2], [0, 1, 2], [5, 1, 4])
    model = fit(data, init_scale=0.01, dtype="float64")
    for values, expected in (([5, 1, 4], 1), ([1, 5, 1], -1)):
        objective = HeldOutLoss(np.column_stack([data.users, data.items]), values)
        quantity = objective.bind(data, model.trajectory_.recipe)
        influence = GradientRollback(model).influence(objective, dense=True)
        with_all = quantity.values(model.trajectory_.end.tables, model.global_mean_)
        for j in range(3):
            without = quantity.values(model.trajectory_.retrain(without=[j]), model.global_mean_)
            assert np.sign(with_all[j] - without[j]) == np.sign(influence[j, j]) == expected


def test_a_score_is_what_plain_queries_mean(why):
    queries = many(why)
    plain, score = why.influence(queries), why.influence(Score(queries))
    assert same_bits(plain.data, score.data)
    assert same_bits(why.explain(queries).influence, why.explain(Score(queries)).influence)
    assert_matrix(why.influence(Mean(queries)), plain.toarray().mean(axis=0, keepdims=True))


def test_influence_keeps_the_dtype_of_the_model():
    why = GradientRollback(fit(ratings()))
    assert why.influence(Margin([(0, 1)], 2)).dtype == np.float32
    assert why.explain(Margin([(0, 1)], 2)).influence.dtype == np.float32


@pytest.mark.parametrize("at_once", [1, 60, 500])
def test_pieces_change_nothing(why, monkeypatch, at_once):
    objectives = Margin(many(why), 3), Mean(HeldOutLoss(many(why), 2.0))
    expected = [why.influence(objective).toarray() for objective in objectives]
    listed = why.explain(objectives[0], k=7)
    monkeypatch.setattr(bulk, "_ENTRIES_AT_ONCE", at_once)
    for objective, whole in zip(objectives, expected, strict=True):
        assert_matrix(why.influence(objective), whole)
    found = why.explain(objectives[0], k=7)
    assert same_bits(found.train_index, listed.train_index)
    np.testing.assert_allclose(found.influence, listed.influence, rtol=1e-12)


@pytest.mark.parametrize("proponents", [True, False])
@pytest.mark.parametrize("batch_size", [None, 7])
def test_explaining_a_margin(why, proponents, batch_size):
    queries = many(why)
    objective = Margin(queries, over=2)
    found = why.explain(objective, k=6, proponents=proponents, batch_size=batch_size)
    index, influence, total = top_of_rows(why.influence(objective, dense=True), 6, proponents)
    np.testing.assert_array_equal(found.train_index, index)
    np.testing.assert_array_equal(found.influence, influence)
    np.testing.assert_allclose(found.total_influence, total)
    assert (found.users.tolist(), found.items.tolist()) == tuple(queries.T.tolist())
    here = why.model.predict(*queries.T) - why.model.predict(queries[:, 0], 2)
    np.testing.assert_allclose(found.prediction, here, atol=1e-13)
    assert (found.method, found.units) == ("gradient-rollback", "rank")
    assert found.proponents is proponents
    assert {"user", "item", "other"} <= set(found.side.ravel().tolist())  # of the item compared
    assert f"predicted {here[0]:.4g}" in found.because(0)


def test_explaining_a_loss_of_users_and_items_without_examples():
    data = Interactions.from_arrays([0], [0], [4], user_ids=["a", "b"], item_ids=["x", "y"])
    objective = HeldOutLoss([("b", "y"), ("a", "y")], [5, 5])
    found = GradientRollback(fit(data)).explain(objective, k=2)
    assert found.train_index.tolist() == [[-1, -1], [0, -1]]
    assert np.isnan(found.influence).tolist() == [[True, True], [False, True]]


def test_objectives_without_pairs(why):
    with pytest.raises(ParameterError, match=r"Mean is not about pairs.*use influence\(\)"):
        why.explain(Mean(many(why)))
    for ask in (why.influence, why.explain):
        for objective in (Function(flat), Mean(Function(flat))):
            with pytest.raises(ParameterError, match=r"use Replay\(model\)\.influence\(\)"):
                ask(objective)


def test_objectives_are_checked_where_they_are_asked_about(why):
    for ask in (why.influence, why.explain):
        with pytest.raises(UnknownIdError, match="unknown item 99"):
            ask(Margin([(0, 0)], over=99))
        with pytest.raises(DataError, match="no queries"):
            ask(Margin([], over=0))
    bpr = GradientRollback(fit(positives(), loss="bpr"))
    with pytest.raises(ParameterError, match="no loss of a single pair"):
        bpr.influence(HeldOutLoss([(0, 0)]))


def test_influence_on_objectives_keeps_to_the_memory_budget(monkeypatch, why):
    monkeypatch.setattr("fastinfluence.attribution.base.memory_budget", lambda: 2**20)
    queries = many(why, 500)
    assert why.influence(Margin(queries, 0)).shape == (500, 150)
    with pytest.raises(ParameterError, match="ask for fewer queries, dense=False, or use explain"):
        why.influence(Margin(np.tile(queries, (2, 1)), 0), dense=True)
    with pytest.raises(ParameterError, match="ask for fewer queries or use explain"):
        why.influence(Margin(np.tile(queries, (20, 1)), 0))
    assert len(why.explain(Margin(np.tile(queries, (20, 1)), 0), k=3)) == 10_000
    assert why.influence(Mean(Margin(np.tile(queries, (20, 1)), 0))).shape == (1, 150)
