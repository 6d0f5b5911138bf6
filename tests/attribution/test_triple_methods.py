"""Gradient Rollback, Curvature Rollback and Replay of models of triples, as users call them."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

import fastinfluence as fi
from fastinfluence import evaluation, objectives
from fastinfluence.errors import ChaosWarning, DivergenceError, ParameterError, UnknownIdError

NATIONS = fi.datasets.nations()
QUERIES = [("brazil", "exports3", None), (None, "treaties", "usa"), ("china", "embassy", "india")]
METHODS = (fi.GradientRollback, fi.CurvatureRollback, fi.Replay)
each_method = pytest.mark.parametrize("method", METHODS)


def fitted(kind=fi.ComplEx, data=NATIONS, **parameters):
    given = {"n_factors": 8, "n_epochs": 3, "n_negatives": 4, "dtype": "float64", "rng": 0}
    return kind(**given | parameters).fit(data)


@pytest.fixture(scope="module")
def model():
    return fitted()


@each_method
def test_the_variant_is_an_instance_of_the_method(model, method):
    why = method(model)
    assert isinstance(why, method)
    assert type(why) is not method
    assert isinstance(why.on(fitted(rng=1)), method)


@each_method
def test_explanations_hold_the_queries_and_the_influence(model, method):
    why = method(model)
    asked = objectives.Probability(QUERIES)
    found = why.explain(asked, k=4)
    influence = np.asarray(why.influence(asked, dense=True))
    assert influence.shape == (3, len(NATIONS))
    assert found.train_index.shape == (3, 4)
    np.testing.assert_array_equal(
        np.take_along_axis(influence, found.train_index, axis=1), found.influence
    )
    assert (np.diff(found.influence, axis=1) <= 0).all()
    assert found.predict_head.tolist() == [False, True, False]
    assert found.quantity == "probability"
    np.testing.assert_allclose(found.total_influence, np.abs(influence).sum(axis=1), rtol=1e-10)
    assert "brazil — exports3 →" in found.because(0)


@pytest.mark.parametrize("kind", [fi.DistMult, fi.ComplEx])
@pytest.mark.parametrize("optimizer", ["sgd", "adagrad", "adam", "adam-dense"])
def test_replay_is_the_derivative_of_retraining(kind, optimizer):
    rate = 0.1 if optimizer == "sgd" else 0.003
    model = fitted(kind, optimizer=optimizer, learning_rate=rate)
    asked = objectives.LogProbability(QUERIES).answered(model)
    quantity = asked.bind(NATIONS, model.trajectory_.recipe)
    influence = fi.Replay(model).influence(asked)
    for j in (0, 700, 1591):
        ends = []
        for change in (1e-4, -1e-4):
            weights = np.ones(len(NATIONS))
            weights[j] += change
            tables = model.trajectory_.retrain(sample_weight=weights)
            ends.append(quantity.values(tables, 0.0))
        expected = (ends[0] - ends[1]) / 2e-4
        np.testing.assert_allclose(
            influence[:, j], expected, rtol=0, atol=1e-6 * np.abs(influence).max()
        )


def test_one_hop_of_replay_is_curvature_rollback_of_a_linear_read_out():
    """Where no triple joins two rows of the query, and SGD: the same walk, read otherwise."""
    model = fitted(n_negatives="all")
    head, relation, tail = "brazil", "exports3", "china"
    quantity = objectives.Score([(head, relation, tail)])
    near = fi.Replay(model, hops=1).influence(quantity)[0]
    curved = np.asarray(fi.CurvatureRollback(model).influence(quantity, dense=True))[0]
    shares = objectives.Score([(head, relation, tail)]).bind(NATIONS, model.trajectory_.recipe)
    adjacent = shares.adjacent(NATIONS, np.arange(len(NATIONS)))[0]
    assert (curved[~adjacent] == 0).all()
    assert np.corrcoef(near[adjacent], curved[adjacent])[0, 1] > 0.95


def test_rows_of_some_queries_are_those_of_all(model):
    asked = objectives.Score(QUERIES).answered(model)
    some = fi.CurvatureRollback(model, rows=asked)
    np.testing.assert_array_equal(
        some.influence(asked, dense=True),
        fi.CurvatureRollback(model, n_threads=1).influence(asked, dense=True),
    )
    with pytest.raises(ParameterError, match="made with rows= of other queries"):
        some.influence([("poland", "ngo", "cuba")])
    with pytest.raises(ParameterError, match="without rows="):
        some.self_influence()


def test_credits_differ_for_adam_alone():
    for optimizer, same in (("sgd", True), ("adagrad", True), ("adam", False)):
        model = fitted(optimizer=optimizer, learning_rate=0.02)
        update, gradient = (
            fi.GradientRollback(model, credit=credit).influence(QUERIES, dense=True)
            for credit in ("update", "gradient")
        )
        assert np.array_equal(update, gradient) == same


def test_recorded_while_training_or_afterwards(model):
    recorded = fi.ComplEx(**model.get_params()).fit(NATIONS, record="rollback")
    np.testing.assert_array_equal(
        fi.GradientRollback(recorded).influence(QUERIES, dense=True),
        fi.GradientRollback(model).influence(QUERIES, dense=True),
    )


@each_method
def test_threads_change_nothing(model, method):
    asked = objectives.LogProbability(QUERIES)
    one, two = (np.asarray(method(model, n_threads=n).influence(asked, dense=True)) for n in (1, 2))
    np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize("method", [fi.CurvatureRollback, fi.Replay])
def test_small_budgets_change_nothing(model, method, monkeypatch):
    whole = np.asarray(method(model).influence(QUERIES, dense=True))
    monkeypatch.setattr(
        "fastinfluence.attribution.triples.curvature_rollback.memory_budget", lambda: 2**18
    )
    options = {"memory_budget": 2**21} if method is fi.Replay else {}
    few = np.asarray(method(model, **options).influence(QUERIES, dense=True))
    np.testing.assert_array_equal(whole, few)


@each_method
def test_self_influence(model, method):
    why = method(model)
    if method is fi.Replay:
        found = why.self_influence([3, 5])
        own = np.column_stack([*NATIONS.columns(np.array([3, 5])).values()])
        expected = why.influence(own)[np.arange(2), [3, 5]]
    else:
        found = why.self_influence()
        assert found.shape == (len(NATIONS),)
        own = np.column_stack([*NATIONS.columns(np.array([3, 5])).values()])
        expected = np.asarray(why.influence(own, dense=True))[np.arange(2), [3, 5]]
        found = found[[3, 5]]
    np.testing.assert_allclose(found, expected, rtol=1e-9)


# ---------------------------------------------------------------- runs that cannot be explained


def test_unit_norm_is_left_to_the_actual_updates():
    model = fitted(unit_norm=True)
    fi.GradientRollback(model).explain(QUERIES)
    with pytest.raises(ParameterError, match="credit='update'"):
        fi.GradientRollback(model, credit="gradient")
    for method in (fi.CurvatureRollback, fi.Replay):
        with pytest.raises(ParameterError, match="unit_norm=True"):
            method(model)


def test_chaos_is_marked_and_warned_of():
    model = fitted(
        n_factors=20, n_negatives="all", n_epochs=20, learning_rate=0.3, regularization=0.0,
        learning_rate_decay="constant",
    )  # fmt: skip
    with pytest.warns(ChaosWarning, match=r"lower learning_rate .*decline.*raise regularization"):
        found = fi.Replay(model).explain(QUERIES[:1], k=3)
    assert found.amplification[0] > 1e3
    assert "amplifies small changes" in found.because(0)


def test_a_calm_run_is_not(model):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = fi.Replay(model).explain(QUERIES, k=3)
    assert (found.amplification >= 1).all()
    assert (found.amplification < 1e3).all()


def test_divergence_names_the_step_and_leaves_what_was_there(model):
    rows = model.entity_factors_.copy()
    wild = fi.ComplEx(**model.get_params() | {"learning_rate": 1e6, "n_epochs": 50})
    wild._take(model.trajectory_)
    with pytest.raises(DivergenceError, match=r"step [\d,]+ .*learning_rate") as caught:
        wild.fit(NATIONS)
    assert caught.value.trajectory is not None
    assert caught.value.trajectory.n_epochs < 50
    np.testing.assert_array_equal(wild.entity_factors_, rows)


@each_method
def test_bad_queries(model, method):
    why = method(model)
    with pytest.raises(UnknownIdError, match="nearest known: 'brazil'"):
        why.explain([("brasil", "exports3", "usa")])
    with pytest.raises(UnknownIdError, match="unknown relation 'exports'"):
        why.explain([("brazil", "exports", "usa")])
    with pytest.raises(ParameterError, match="not about triples"):
        why.explain(objectives.Mean(QUERIES))


def test_hops(model):
    with pytest.raises(ParameterError, match="two hops are all rows"):
        fi.Replay(model, hops=2)


def test_pairs_and_triples_do_not_mix(model):
    ratings = fi.Interactions.from_arrays(["ann", "bob"], ["x", "y"], [5, 3])
    pairs = fi.MatrixFactorization(n_factors=4, rng=0).fit(ratings)
    with pytest.raises(ParameterError, match="MatrixFactorization is needed, not str"):
        fi.Replay("no model")
    assert fi.GradientRollback(pairs).explain([("ann", "y")]).train_index.shape == (1, 10)


def test_leave_one_out_agrees_with_replay():
    model = fitted(n_negatives="all", n_epochs=20, learning_rate=0.05, regularization=0.02)
    asked = objectives.LogProbability(QUERIES).answered(model)
    examples = np.arange(0, len(NATIONS), 40)
    truth = evaluation.leave_one_out(model, asked, examples)
    estimate = fi.Replay(model).influence(asked)[:, examples]
    for true, estimated in zip(truth.change, estimate, strict=True):
        assert np.corrcoef(true, estimated)[0, 1] > 0.95
