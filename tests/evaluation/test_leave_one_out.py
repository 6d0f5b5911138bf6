"""Leave-one-out truth, which examples it is measured on, and several seeds."""

from __future__ import annotations

import numpy as np
import pytest
from planted import data_for, ratings, same_bits

import fastinfluence as fi
from fastinfluence import MatrixFactorization
from fastinfluence.attribution.objectives import Function, HeldOutLoss, Margin, Mean
from fastinfluence.errors import DataError, ParameterError, RunDirectoryError
from fastinfluence.evaluation import (
    SeedTruth,
    Truth,
    leave_one_out,
    multi_seed,
    noise_ceiling,
    sample_examples,
)

PAIRS = [(0, 0), (3, 5), (7, 1)]


def fit(data=None, **keywords):
    keywords = {"n_factors": 4, "n_epochs": 3, "learning_rate": 0.05, "rng": 0} | keywords
    return MatrixFactorization(**keywords).fit(ratings() if data is None else data)


def size_of_item_2(parameters):
    gradient = np.zeros_like(parameters.item_factors)
    gradient[2] = 2 * parameters.item_factors[2]
    return (parameters.item_factors[2] ** 2).sum(), {"item_factors": gradient}


def shares(data, example, users, items):
    return data.users[example] in users or data.items[example] in items


# ---------------------------------------------------------------- one at a time


def test_all_examples_by_default():
    model = fit()
    truth = leave_one_out(model, PAIRS)
    assert truth.train_index.tolist() == list(range(60))
    assert truth.change.shape == truth.adjacent.shape == (3, 60)
    users, items = np.array(PAIRS).T
    np.testing.assert_allclose(truth.value, model.predict(users, items), rtol=1e-6)
    again = fit()
    for j in (0, 31, 59):
        weights = np.ones(60)
        weights[j] = 0
        without = again.fit(model.data_, sample_weight=weights).predict(users, items)
        np.testing.assert_allclose(truth.change[:, j], truth.value - without, atol=2e-6)
    assert np.abs(truth.change).max() > 1e-3


@pytest.mark.parametrize("loss", ["logistic", "bpr"])
def test_implicit_feedback(loss):
    model = fit(data_for(loss), loss=loss)
    truth = leave_one_out(model, PAIRS, [3, 4])
    full = model.trajectory_.retrain(without=[4])
    without = (
        full.user_factors[3] @ full.item_factors[5] + full.user_biases[3] + full.item_biases[5]
    )
    assert truth.change[1, 1] == pytest.approx(truth.value[1] - without, abs=1e-6)


def test_lists_of_explanations():
    model = fit()
    ex = fi.GradientRollback(model).explain(PAIRS, k=20)
    assert (ex.train_index == -1).any()
    truth = leave_one_out(model, PAIRS, ex.train_index)
    expected = np.unique(ex.train_index[ex.train_index >= 0])
    np.testing.assert_array_equal(truth.train_index, expected)
    change = truth.at(ex.train_index)
    assert change.shape == ex.train_index.shape
    for q, place in np.ndindex(change.shape):
        j = ex.train_index[q, place]
        if j < 0:
            assert np.isnan(change[q, place])
        else:
            assert change[q, place] == truth.change[q, expected == j]


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ([[0, 1], [0, 1]], r"shape \(3, k\)"),
        ([0, 1, 2], r"of shape \(3,\)"),
        ([[0.0], [0.0], [0.0]], "float64"),
        ([[0], [-1], [9]], "example 9 was not left out"),
        ([[0], [-1], [99]], "example 99 was not left out"),
    ],
)
def test_what_is_not_in_the_truth(asked, message):
    truth = leave_one_out(fit(), PAIRS, [0, 4])
    with pytest.raises(DataError, match=message):
        truth.at(asked)


@pytest.mark.parametrize(
    ("train", "message"),
    [
        ([0, -1], "train holds -1"),  # only lists of lists have empty places
        ([[0, 60]], "train holds 60"),
        ([0.5], "takes training indices, not float64"),
        ([], "no example to leave out"),
        ([[-1, -1]], "no example to leave out"),
    ],
)
def test_bad_examples(train, message):
    with pytest.raises(DataError, match=message):
        leave_one_out(fit(), PAIRS, train)


def test_repeated_and_unordered_examples():
    model = fit()
    one, other = (leave_one_out(model, PAIRS, train) for train in ([9, 2, 9], [2, 9]))
    assert one.train_index.tolist() == [2, 9]
    assert same_bits(one.change, other.change)


@pytest.mark.parametrize(
    ("objective", "own"),
    [
        (PAIRS, [({0}, {0}), ({3}, {5}), ({7}, {1})]),
        (Margin(PAIRS, 8), [({0}, {0, 8}), ({3}, {5, 8}), ({7}, {1, 8})]),
        (HeldOutLoss(PAIRS, 4.0), [({0}, {0}), ({3}, {5}), ({7}, {1})]),
        (Mean(PAIRS), [({0, 3, 7}, {0, 5, 1})]),
        (Function(size_of_item_2), [(set(), {2})]),
    ],
)
def test_objectives_and_their_adjacent_examples(objective, own):
    model = fit()
    truth = leave_one_out(model, objective)
    expected = [[shares(model.data_, j, *rows) for j in range(60)] for rows in own]
    assert truth.adjacent.tolist() == expected
    tables = model.trajectory_.retrain(without=[11])
    quantity = (
        objective.bind(model.data_, model.trajectory_.recipe)
        if not isinstance(objective, list)
        else fi.objectives.Score(objective).bind(model.data_, model.trajectory_.recipe)
    )
    without = quantity.values(tables, model.global_mean_)
    np.testing.assert_array_equal(truth.change[:, 11], truth.value - without)


def test_a_user_without_ratings():
    data = ratings(user_ids=np.arange(13))
    truth = leave_one_out(fit(data), [(12, 4)])
    assert (truth.adjacent[0] == (data.items == 4)).all()
    assert np.isfinite(truth.change).all()


def test_truth_as_a_table():
    data = fi.Interactions.from_arrays(
        ["ann", "bob", "ann", "cy"], ["x", "y", "y", "z"], [5, 3, 4, 1]
    )
    model = fit(data)
    truth = leave_one_out(model, [("bob", "x"), ("cy", "y")], [0, 3])
    frame = truth.to_pandas()
    assert list(frame.columns) == [
        "query", "user", "item", "value", "train_index", "train_user", "train_item",
        "train_value", "change", "adjacent",
    ]  # fmt: skip
    assert len(frame) == 4
    last = frame.iloc[3]
    assert last["query"] == 1
    assert last[["user", "item", "train_user", "train_item"]].tolist() == ["cy", "y", "cy", "z"]
    assert last["train_value"] == 1
    assert last["adjacent"]
    assert last["change"] == truth.change[1, 1]
    np.testing.assert_array_equal(frame["value"], truth.value.repeat(2))
    assert "2 queries, 2 examples left out" in repr(truth)
    assert "user" not in leave_one_out(model, Mean([("bob", "x")]), [0]).to_dict()


def test_results_are_kept(tmp_path):
    model = fit()
    first = leave_one_out(model, PAIRS, [1, 2], path=tmp_path / "loo")
    again = leave_one_out(model, PAIRS, [2, 1], path=tmp_path / "loo")
    assert same_bits(first.change.copy(), again.change.copy())
    with pytest.raises(RunDirectoryError, match="queries"):
        leave_one_out(model, HeldOutLoss(PAIRS, 3.0), [1, 2], path=tmp_path / "loo")


# ---------------------------------------------------------------- which examples


def test_sampled_examples():
    model = fit(ratings(40, 30, 600))
    data = model.data_
    few = sample_examples(model, PAIRS, adjacent=6, others=50)
    assert (np.diff(few) > 0).all()
    for user, item in PAIRS:
        own = np.flatnonzero((data.users == user) | (data.items == item))
        assert np.isin(own, few).sum() >= 6
    assert 50 <= len(few) <= 68
    np.testing.assert_array_equal(few, sample_examples(model, PAIRS, adjacent=6, others=50))
    assert few.tolist() != sample_examples(model, PAIRS, adjacent=6, others=50, rng=1).tolist()
    only = sample_examples(model, PAIRS, adjacent=1000, others=0)
    expected = [j for j in range(600) if any(shares(data, j, {u}, {i}) for u, i in PAIRS)]
    assert only.tolist() == expected
    assert len(sample_examples(model, PAIRS, others=10**6)) == 600


def test_examples_of_weight_0_are_not_sampled():
    data = ratings()
    weights = np.where(np.arange(60) % 2, 1.0, 0.0)
    model = MatrixFactorization(n_factors=2, n_epochs=1, rng=0).fit(data, sample_weight=weights)
    assert sample_examples(model, PAIRS).tolist() == list(range(1, 60, 2))


@pytest.mark.parametrize("wrong", [{"adjacent": -1}, {"others": 2.5}, {"others": True}])
def test_bad_numbers_of_examples(wrong):
    with pytest.raises(ParameterError, match="must be an integer >= 0"):
        sample_examples(fit(), PAIRS, **wrong)


# ---------------------------------------------------------------- seeds


def test_multi_seed(tmp_path):
    data = data_for("logistic")
    weights = np.linspace(0.5, 1.5, 60)
    keywords = {"n_factors": 3, "loss": "logistic", "n_epochs": 2, "learning_rate": 0.1}
    model = MatrixFactorization(**keywords, rng=0).fit(data, sample_weight=weights)
    seeds = multi_seed(model, iter(PAIRS), [4, 0, 9], [5, 6, 7], path=tmp_path)
    assert isinstance(seeds, SeedTruth)
    assert seeds.seeds == (4, 0, 9)
    assert sorted(folder.name for folder in tmp_path.iterdir()) == ["seed-0", "seed-4", "seed-9"]
    assert seeds.change.shape == (3, 3, 3)
    assert same_bits(seeds.change[1], leave_one_out(model, PAIRS, [5, 6, 7]).change.copy())
    other = MatrixFactorization(**keywords, rng=9).fit(data, sample_weight=weights)
    expected = leave_one_out(other, PAIRS, [5, 6, 7])
    np.testing.assert_array_equal(seeds.change[2], expected.change)
    assert not np.array_equal(seeds.change[0], seeds.change[1])
    assert isinstance(seeds.mean, Truth)
    np.testing.assert_allclose(seeds.mean.change, seeds.change.mean(0))
    np.testing.assert_allclose(seeds.mean.value, np.mean([t.value for t in seeds.truths], axis=0))
    np.testing.assert_allclose(seeds.deviation, np.std(seeds.change, axis=0, ddof=1))
    np.testing.assert_array_equal(seeds.noise_ceiling(), noise_ceiling(seeds.change))
    assert np.isnan(seeds.noise_ceiling(adjacent=True)).all()  # three examples are too few
    assert "(4, 0, 9)" in repr(seeds)


def test_seeds_train_for_as_long_as_the_model_did():
    train, test = ratings(30, 20, 400, seed=4).split(0.3, rng=0)
    model = MatrixFactorization(
        8, n_epochs=60, learning_rate=0.15, regularization=0.0, early_stopping=3, rng=0
    ).fit(train, validation=test)
    assert model.n_epochs_ < 57
    seeds = multi_seed(model, PAIRS, [0, 1], [3])
    np.testing.assert_array_equal(seeds.truths[0].change, leave_one_out(model, PAIRS, [3]).change)


@pytest.mark.parametrize("seeds", [[1], [1, 1], [], [1, 2, 1]])
def test_seeds_must_differ(seeds):
    with pytest.raises(ParameterError, match="two or more different seeds"):
        multi_seed(fit(), PAIRS, seeds)


def test_seeds_are_integers():
    with pytest.raises(ParameterError, match="a seed must be an integer >= 0, not None"):
        multi_seed(fit(), PAIRS, [1, None])
