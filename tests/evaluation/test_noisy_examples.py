"""Corrupted examples, and whether self-influence finds them."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
from planted import positives, ratings

import fastinfluence as fi
from fastinfluence import CurvatureRollback, GradientRollback, Interactions, MatrixFactorization
from fastinfluence.errors import DataError, NotFittedError, ParameterError
from fastinfluence.evaluation import auc, corrupt, noisy_example_auc


def clicks(n_users=40, n_items=40):
    """Users and items of two kinds; every user has most items of the own kind only."""
    rng = np.random.default_rng(0)
    users, items = np.divmod(np.arange(n_users * n_items), n_items)
    own = (users % 2 == items % 2) & (rng.random(len(users)) < 0.7)
    ids = {"user_ids": np.arange(n_users), "item_ids": np.arange(n_items)}
    return Interactions.from_arrays(users[own], items[own], **ids)


# ---------------------------------------------------------------- corrupting


def test_values_become_other_values():
    data = ratings(30, 20, 400)
    noisy, which = corrupt(data, 0.25)
    assert which.sum() == 100
    np.testing.assert_array_equal(noisy.values[~which], data.values[~which])
    assert (noisy.values[which] != data.values[which]).all()
    assert set(noisy.values) == set(data.values)
    for name in ("users", "items"):
        np.testing.assert_array_equal(getattr(noisy, name), getattr(data, name))
    levels = np.unique(data.values)
    moved = np.array([corrupt(data, 0.9, rng=r)[0].values[:50] for r in range(40)])
    for level in levels:  # every other level, about as often
        n_became = np.count_nonzero((moved == level) & (data.values[:50] != level))
        assert n_became / (0.9 * 40 * (data.values[:50] != level).sum()) > 0.6 / len(levels)


def test_labels_are_flipped():
    data = positives(30, 20, 300, zeros=True)
    noisy, which = corrupt(data, 0.1)
    np.testing.assert_array_equal(noisy.values[which], 1 - data.values[which])


def test_clicks_go_to_unknown_items():
    data = Interactions.from_arrays(
        positives(30, 20, 400).users, positives(30, 20, 400).items,
        user_ids=np.arange(30), item_ids=np.arange(20), item_labels=[f"i{n}" for n in range(20)],
    )  # fmt: skip
    noisy, which = corrupt(data, 0.3)
    assert 100 < which.sum() <= 120
    np.testing.assert_array_equal(noisy.users, data.users)
    np.testing.assert_array_equal(noisy.items[~which], data.items[~which])
    known = set(zip(data.users.tolist(), data.items.tolist(), strict=True))
    after = list(zip(noisy.users.tolist(), noisy.items.tolist(), strict=True))
    assert not known & {pair for pair, moved in zip(after, which, strict=True) if moved}
    assert len(set(after)) == len(after)
    assert noisy.item_name(3) == "i3"
    assert not noisy.has_values


def test_clicks_of_a_user_with_every_item_stay():
    data = Interactions.from_arrays([0, 0, 0, 1], [0, 1, 2, 0])
    for rng in range(20):
        noisy, which = corrupt(data, 0.99, rng=rng)
        assert which.tolist() == [False, False, False, True]
        assert noisy.items[3] in (1, 2)
    with pytest.raises(DataError, match="their users have every item"):
        corrupt(data, 0.5, among=[0, 1, 2])


def test_the_same_seed_gives_the_same_noise():
    data = ratings()
    first, again, other = (corrupt(data, 0.2, rng=rng) for rng in (3, 3, 4))
    np.testing.assert_array_equal(first[0].values, again[0].values)
    assert (first[1] != other[1]).any()


def test_among():
    _, which = corrupt(ratings(), 0.5, among=np.arange(20))
    assert which[:20].sum() == 10
    assert not which[20:].any()


@pytest.mark.parametrize("fraction", [0, 1, -0.1, np.nan])
def test_bad_fractions(fraction):
    with pytest.raises(ParameterError, match="fraction must lie between 0 and 1"):
        corrupt(ratings(), fraction)


# ---------------------------------------------------------------- finding them


def test_noisy_ratings_are_found():
    data = ratings(60, 40, 1500)
    model = MatrixFactorization(n_factors=4, n_epochs=20, learning_rate=0.03, rng=0).fit(data)
    found = {method: noisy_example_auc(model, method) for method in (GradientRollback, Curve)}
    assert all(0.75 < value < 1 for value in found.values())
    assert noisy_example_auc(model, Curve, rng=1) != found[Curve]


Curve = CurvatureRollback


def test_noisy_clicks_are_found():
    model = MatrixFactorization(
        n_factors=4, loss="logistic", n_epochs=20, learning_rate=0.1, regularization=0.01, rng=0
    ).fit(clicks())
    assert noisy_example_auc(model, Curve) > 0.7


def test_it_is_the_auc_of_a_model_of_the_corrupted_data():
    data = ratings(30, 20, 400)
    weights = np.where(np.arange(400) % 4 == 0, 0.0, 1.5)
    keywords = {"n_factors": 3, "n_epochs": 6, "learning_rate": 0.03, "rng": 5}
    model = MatrixFactorization(**keywords).fit(data, sample_weight=weights)
    seen = np.flatnonzero(weights)
    noisy, which = corrupt(data, 0.2, among=seen, rng=2)
    again = MatrixFactorization(**keywords).fit(noisy, sample_weight=weights)
    expected = auc(np.abs(GradientRollback(again).self_influence())[seen], which[seen])
    assert noisy_example_auc(model, partial(GradientRollback, n_threads=1), 0.2, rng=2) == expected


def test_a_run_that_was_stopped_early():
    train, validation = ratings(30, 20, 400).split(0.2, rng=0)
    model = MatrixFactorization(n_epochs=50, early_stopping=1, learning_rate=0.05, rng=0)
    model.fit(train, validation=validation)
    assert model.n_epochs_ < 50
    made = []

    def method(noisy):
        made.append(noisy)
        return GradientRollback(noisy)

    noisy_example_auc(model, method)
    assert made[0].n_epochs_ == model.n_epochs_


def test_bad_models():
    with pytest.raises(NotFittedError, match="call fit"):
        noisy_example_auc(MatrixFactorization())
    with pytest.raises(ParameterError, match="MatrixFactorization is needed"):
        noisy_example_auc(fi.evaluation)
