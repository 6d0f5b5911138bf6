"""PD and TC: against single retrainings, with their controls."""

from __future__ import annotations

import numpy as np
import pytest
from planted import ratings

import fastinfluence as fi
from fastinfluence import CurvatureRollback, GradientRollback, MatrixFactorization
from fastinfluence.attribution.objectives import HeldOutLoss, Margin, Mean
from fastinfluence.errors import DataError, ParameterError
from fastinfluence.evaluation import (
    DeletionEffect,
    deletion_effect,
    leave_out,
    probability_drop,
    sample_queries,
    top1_change,
)
from fastinfluence.models.matrix_factorization import scores


def fit(sample_weight=None, **keywords):
    keywords = {"n_factors": 4, "n_epochs": 4, "learning_rate": 0.05, "rng": 0} | keywords
    return MatrixFactorization(**keywords).fit(ratings(30, 20, 400), sample_weight=sample_weight)


@pytest.fixture(scope="module")
def model():
    return fit()


@pytest.fixture(scope="module")
def queries(model):
    return sample_queries(model, 10)


@pytest.fixture(scope="module")
def effect(model, queries):
    methods = [GradientRollback(model), CurvatureRollback(model)]
    rankings = {method.name: method.explain(queries, 10) for method in methods}
    return deletion_effect(model, queries, rankings)


def of(effect, method, size):
    (number,) = [
        number
        for number, condition in enumerate(zip(effect.methods, effect.sizes, strict=True))
        if condition == (method, size)
    ]
    return number


def test_conditions(effect):
    assert isinstance(effect, DeletionEffect)
    names = ["gradient-rollback", "curvature-rollback", "random", "neighbourhood"]
    assert effect.methods == (*names, *names, "nothing")
    assert effect.sizes == (1,) * 4 + (10,) * 4 + (0,)
    assert (effect.n_removed == np.array(effect.sizes)[:, None]).all()


def test_against_single_retrainings(model, queries, effect):
    ex = GradientRollback(model).explain(queries, 10)
    data, items = model.data_, np.arange(20, dtype=np.int32)
    for size in (1, 10):
        number = of(effect, "gradient-rollback", size)
        for q in range(len(queries)):
            removed = ex.train_index[q, :size]
            change = leave_out(model, queries, [removed])[q, 0]
            assert effect.before[q] - effect.after[number, q] == pytest.approx(change, abs=1e-12)
            tables = model.trajectory_.retrain(without=removed)
            of_all = scores(tables, model.global_mean_, ex.users[q], items)
            of_all[data.items[data.users == ex.users[q]]] = -np.inf  # those removed too
            assert effect.best_after[number, q] == of_all.argmax()


def test_the_explained_item_is_the_best_before(model, queries, effect):
    items = model.data_.item_index([item for _, item in queries])
    np.testing.assert_array_equal(effect.best_before, items)


def test_explanations_beat_the_controls(effect):
    rows = {(row["method"], row["size"]): row for row in effect.rows}
    for size in (1, 10):
        for control in ("random", "neighbourhood"):
            for method in ("gradient-rollback", "curvature-rollback"):
                explained, drawn = rows[method, size], rows[control, size]
                assert explained["probability_drop"] > drawn["probability_drop"]
                assert explained["mean_drop"] > 2 * abs(drawn["mean_drop"])
    assert rows["curvature-rollback", 10]["top1_change"] > rows["random", 10]["top1_change"]


def test_nothing_left_out_changes_nothing(effect):
    row = effect.rows[-1]
    assert row["method"] == "nothing"
    assert (row["examples"], row["probability_drop"], row["top1_change"]) == (0, 0, 0)
    assert row["mean_drop"] == 0
    np.testing.assert_array_equal(effect.after[-1], effect.before)
    np.testing.assert_array_equal(effect.best_after[-1], effect.best_before)


def test_rows_are_the_metrics(effect):
    for number, row in enumerate(effect.rows):
        assert row["probability_drop"] == probability_drop(effect.before, effect.after[number])
        assert row["top1_change"] == top1_change(effect.best_before, effect.best_after[number])
        assert row["mean_drop"] == pytest.approx((effect.before - effect.after[number]).mean())
    frame = effect.to_pandas()
    assert frame["method"].tolist() == list(effect.methods)
    assert frame["top1_change"].tolist() == [row["top1_change"] for row in effect.rows]


def test_controls_are_drawn_from_their_pools_and_size_matched(monkeypatch):
    """Sets of any sizes: the controls are as long as the longest list of the query."""
    weights = np.where(np.arange(400) < 300, 1.0, 0.0)
    model = fit(weights)
    queries = sample_queries(model, 4)
    lists = np.full((2, 4, 7), -1)
    for q, lengths in enumerate([(7, 2), (0, 3), (1, 1), (0, 0)]):
        for number, length in enumerate(lengths):
            lists[number, q, :length] = np.arange(length) + 20 * q
    kept = []
    module = __import__("fastinfluence.evaluation.deletion", fromlist=["retrain_values"])
    retrain_values = module.retrain_values

    def noted(model, readout, removals, **keywords):
        kept.extend(removals)
        return retrain_values(model, readout, removals, **keywords)

    monkeypatch.setattr(module, "retrain_values", noted)
    effect = deletion_effect(model, queries, {"a": lists[0], "b": lists[1]}, sizes=[7])
    assert effect.n_removed.tolist() == [
        [7, 0, 1, 0], [2, 3, 1, 0], [7, 3, 1, 0], [7, 3, 1, 0], [0, 0, 0, 0],
    ]  # fmt: skip
    assert effect.rows[0]["examples"] == 2
    data, sets = model.data_, {tuple(removed.tolist()) for removed in kept}
    users, items = zip(*queries, strict=True)
    own = (data.users == users[0]) | (data.items == items[0])
    near = [s for s in sets if len(s) == 7 and own[list(s)].all() and s != tuple(range(7))]
    assert near
    assert all(weights[list(removed)].all() for removed in sets)


def test_a_user_with_every_item_has_no_other_best(model):
    everything = fi.Interactions.from_arrays(
        np.repeat([0, 1], [6, 3]), [0, 1, 2, 3, 4, 5, 0, 1, 2], [1, 2, 3, 4, 5, 4, 3, 2, 1]
    )
    model = MatrixFactorization(n_factors=2, n_epochs=3, rng=0).fit(everything)
    effect = deletion_effect(model, [(0, 5), (1, 5)], {"own": [[0], [6]]}, sizes=[1])
    assert effect.best_before[0] == -1
    assert (effect.best_after[:, 0] == -1).all()
    assert effect.best_before[1] in (3, 4, 5)


def test_other_objectives_about_pairs(model, queries):
    lists = {"own": np.arange(10)[:, None]}
    for objective in (Margin(queries, 3), HeldOutLoss(queries, 4.0)):
        effect = deletion_effect(model, objective, lists, sizes=[1])
        expected = leave_out(model, objective, np.arange(10)[:, None]).diagonal()
        np.testing.assert_allclose(effect.before - effect.after[0], expected, atol=1e-12)


def test_seed_threads_and_files(model, queries, tmp_path, effect):
    ex = {"gradient-rollback": GradientRollback(model).explain(queries, 10)}
    keywords = {"sizes": [1], "path": tmp_path / "kept"}
    first = deletion_effect(model, queries, ex, n_threads=1, **keywords)
    again = deletion_effect(model, queries, ex, n_threads=2, **keywords)
    np.testing.assert_array_equal(first.after, again.after)
    other = deletion_effect(model, queries, ex, rng=1, sizes=[1])
    np.testing.assert_array_equal(first.after[0], other.after[0])
    assert (first.after[1] != other.after[1]).any()


def test_table(effect):
    head, names, *lines = repr(effect).splitlines()
    assert head == "10 queries"
    assert names.split()[:3] == ["left", "out", "examples"]
    assert len(lines) == 9
    assert lines[0].split()[:3] == ["gradient-rollback", "1", "100%"]
    assert lines[-1].split() == ["nothing", "0", "0%", "0%", "0"]


@pytest.mark.parametrize(
    ("queries", "rankings", "error", "message"),
    [
        (Mean([(0, 0)]), {"a": [[1]]}, ParameterError, "about users and their items"),
        ([(0, 0)], {"random": [[1]]}, ParameterError, "'random' is the name of a control"),
        ([(0, 0)], {}, DataError, "at least one ranking"),
        ([(0, 0)], {"a": [[1]]}, ParameterError, "'a' holds 1 examples a query, but 10"),
        ([(0, 0)], {"a": [[400] * 10]}, DataError, "a holds 400, which is no training index"),
        ([], {"a": [[1]]}, DataError, "no queries"),
    ],
)
def test_bad_input(model, queries, rankings, error, message):
    with pytest.raises(error, match=message):
        deletion_effect(model, queries, rankings)
