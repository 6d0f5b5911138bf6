"""Predictions worth explaining, drawn from the users of a model."""

from __future__ import annotations

import numpy as np
import pytest
from planted import ratings

from fastinfluence import Interactions, MatrixFactorization
from fastinfluence.errors import NotFittedError, ParameterError
from fastinfluence.evaluation import sample_queries


def fit(data, sample_weight=None):
    return MatrixFactorization(n_factors=3, n_epochs=2, rng=0).fit(
        data, sample_weight=sample_weight
    )


def test_best_recommendations_of_users_with_enough_examples():
    model = fit(ratings(30, 25, 450))
    data = model.data_
    n_examples = np.bincount(data.users)
    assert (n_examples < 15).sum() > 5
    drawn = set()
    for rng in range(10):
        queries = sample_queries(model, 5, rng)
        assert queries == sample_queries(model, 5, np.random.default_rng(rng))
        users = [user for user, _ in queries]
        assert users == sorted(set(users))
        assert (n_examples[users] >= 15).all()
        best, _ = model.recommend(users, k=1)
        assert [item for _, item in queries] == best[:, 0].tolist()
        drawn |= set(users)
    assert drawn == set(np.flatnonzero(n_examples >= 15).tolist())


def test_raw_ids_as_they_are():
    data = Interactions.from_arrays(list("aabbcc"), list("xyyzzx"), [1, 2, 3, 4, 5, 1])
    assert sample_queries(fit(data), 3) == [("a", "z"), ("b", "x"), ("c", "y")]


def test_fewer_users_with_enough_examples():
    users = np.repeat(np.arange(5), [20, 3, 18, 9, 0])
    items = np.concatenate([np.arange(20), np.arange(3), np.arange(18), np.arange(9)])
    data = Interactions.from_arrays(users, items, user_ids=np.arange(5), item_ids=np.arange(20))
    model = fit(data)
    # User 0 has every item, user 4 none: they are never asked about.
    assert [user for user, _ in sample_queries(model, 1)] == [2]
    assert [user for user, _ in sample_queries(model, 2)] == [2, 3]
    assert [user for user, _ in sample_queries(model, 3)] == [1, 2, 3]
    with pytest.raises(ParameterError, match="3 users have examples and an item left"):
        sample_queries(model, 4)
    weights = (users != 2).astype(float)
    assert [user for user, _ in sample_queries(fit(data, weights), 2)] == [1, 3]


def test_bad_input():
    with pytest.raises(NotFittedError, match="call fit"):
        sample_queries(MatrixFactorization())
    with pytest.raises(ParameterError, match="n must be an integer >= 1"):
        sample_queries(fit(ratings()), 0)
