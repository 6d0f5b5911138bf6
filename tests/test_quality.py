"""Models that are worth explaining: accuracy on real data, with the settings the README names."""

from __future__ import annotations

import numpy as np
import pytest

import fastinfluence as fi

pytestmark = pytest.mark.slow


def test_movielens_100k(data_dir):
    """RMSE on a random tenth; the defaults, nothing tuned to the split."""
    path = data_dir / "ml-100k" / "ml-100k.zip"
    if not path.exists():
        pytest.skip(f"no MovieLens 100K at {path}")
    data = fi.datasets.movielens(path)
    assert len(data) == 100_000
    train, test = data.split(0.1, rng=0)
    model = fi.MatrixFactorization(rng=0).fit(train)
    predicted = model.predict(test.user_ids[test.users], test.item_ids[test.items])
    rmse = np.sqrt(np.mean((predicted - test.values) ** 2))
    always_the_mean = np.sqrt(np.mean((train.values.mean() - test.values) ** 2))
    print(f"MovieLens 100K: RMSE {rmse:.4f}, of the mean rating {always_the_mean:.4f}")
    assert rmse <= 0.92
    assert always_the_mean > 1.1


def hit_rate(top, test):
    """Share of the held-out items among their users' ten best unknown items."""
    return np.mean([item in top[user] for user, item in zip(test.users, test.items, strict=True)])


def most_popular(train, k=10):
    """The k items with most examples that each user does not have."""
    popularity = np.bincount(train.items, minlength=train.n_items)
    order = np.argsort(-popularity, kind="stable")
    top = np.empty((train.n_users, k), int)
    for user in range(train.n_users):
        rows = train.by_user.order[train.by_user.pointers[user] : train.by_user.pointers[user + 1]]
        top[user] = order[~np.isin(order, train.items[rows])][:k]
    return top


def test_npm():
    """One dependency of every package held out, looked for among the best ten of all 1,417."""
    train, test = fi.datasets.npm().leave_one_out(rng=0)
    model = fi.MatrixFactorization(
        64,
        loss="logistic",
        n_negatives=4,
        learning_rate=0.05,
        regularization=0.01,
        n_epochs=40,
        rng=0,
    ).fit(train)
    items, _ = model.recommend(k=10)
    rate = hit_rate(train.item_index(items.ravel()).reshape(items.shape), test)
    popular = hit_rate(most_popular(train), test)
    print(f"npm: HR@10 {rate:.3f}, of popularity {popular:.3f}")
    assert rate >= 0.45
    assert popular == pytest.approx(0.16, abs=0.02)
