"""Influence functions of masked gradients against dense solutions."""

from __future__ import annotations

import numpy as np
import pytest
from oracles import fixed_point as oracle
from planted import LOSSES, data_for, graph, ratings, same_bits

import fastinfluence as fi
from fastinfluence import DropoutInfluence, InfluenceFunction, MatrixFactorization
from fastinfluence.errors import (
    ConvergenceWarning,
    DataError,
    NegativeCurvature,
    NotFittedError,
    ParameterError,
)

of = fi.objectives
QUERIES = [(0, 1), (5, 3), (5, 4), (0, 3), (0, 1)]


def fit(data, *, sample_weight=None, **keywords):
    keywords = {"n_factors": 4, "n_epochs": 5, "learning_rate": 0.05, "rng": 0} | keywords
    keywords = {"dtype": "float64", "init_scale": 0.4, "regularization": 0.1} | keywords
    return MatrixFactorization(**keywords).fit(data, sample_weight=sample_weight)


def weights_for(data):
    return np.random.default_rng(1).choice([0.0, 0.4, 1, 2.5], len(data))


def dense(model):
    """Gradients (n_train, P) of the examples, the Gauss-Newton matrix (P, P), scores' gradients."""
    program, tables = model.trajectory_.program, model.trajectory_.end.tables
    examples = oracle.loss_gradients(program, tables).reshape(len(model.data_), -1)
    size = examples.shape[1]
    matrix = oracle.gauss_newton(program, tables).reshape(size, size)
    slopes = [oracle.score_gradient(program, tables, *pair).ravel() for pair in QUERIES]
    return examples, matrix, np.array(slopes)


def mask_of(model, keep, seed):
    data = model.data_
    shape = data.n_users + data.n_items, model.n_factors + 1
    return (np.random.default_rng(seed).random(shape) < keep).ravel()


def naive_influence(model, keep, seed, damping):
    """Only the coordinates that are kept are there at all."""
    examples, matrix, slopes = dense(model)
    kept = mask_of(model, keep, seed)
    system = matrix[np.ix_(kept, kept)] + damping * np.eye(kept.sum())
    return -np.linalg.solve(system, slopes[:, kept].T).T @ examples[:, kept].T / keep


def assert_near(got, expected, tolerance):
    scale = np.abs(expected).max()
    assert scale > 1e-3
    np.testing.assert_allclose(got, expected, rtol=0, atol=tolerance * scale)


@pytest.mark.parametrize("keep", [0.3, 0.8])
@pytest.mark.parametrize("loss", LOSSES)
def test_the_dense_solution(loss, keep):
    data = data_for(loss)
    weights = weights_for(data)
    model = fit(data, loss=loss, sample_weight=weights)
    why = DropoutInfluence(model, keep=keep, rng=7, damping=0.5, rtol=1e-10)
    got = why.influence(QUERIES)
    assert_near(got, naive_influence(model, keep, 7, 0.5), 1e-8)
    assert (got[:, weights == 0] == 0).all()
    assert why.report_.converged.all()
    explained = why.explain(QUERIES, k=3)
    np.testing.assert_array_equal(
        explained.train_index, np.argsort(-got, axis=1, kind="stable")[:, :3]
    )
    assert (explained.method, explained.units) == ("dropout-influence", "rank")


def test_without_damping_dropped_coordinates_are_no_singularity():
    model = fit(ratings(), regularization=0.5)
    why = DropoutInfluence(model, damping=0, rtol=1e-10)
    assert_near(why.influence(QUERIES), naive_influence(model, 0.5, 0, 0), 1e-8)


def test_all_kept_is_the_influence_function():
    model = fit(ratings())
    whole = InfluenceFunction(model, rtol=1e-10).influence(QUERIES)
    assert_near(DropoutInfluence(model, keep=1, rtol=1e-10).influence(QUERIES), whole, 1e-8)


@pytest.mark.parametrize("keep", [0.3, 0.7])
def test_the_mean_over_masks_is_right_where_damping_prevails(keep):
    model = fit(ratings())
    examples, _, slopes = dense(model)
    options = {"keep": keep, "damping": 1e5, "rtol": 1e-6, "n_threads": 1}
    masks = [DropoutInfluence(model, rng=seed, **options).influence(QUERIES) for seed in range(150)]
    got, noise = np.mean(masks, axis=0), np.std(masks, axis=0) / np.sqrt(len(masks))
    expected = -slopes @ examples.T / 1e5
    large = np.abs(expected) > 0.1 * np.abs(expected).max()
    assert large.sum() > 20
    assert (np.abs(got - expected)[large] < 5 * noise[large]).all()
    assert abs(got[large] @ expected[large] / (expected[large] @ expected[large]) - 1) < 0.1


def test_factors_and_groups():
    model = fit(ratings())
    why = DropoutInfluence(model, rng=3, rtol=1e-10)
    factors = why.influence_factors(QUERIES)
    kept = mask_of(model, 0.5, 3).reshape(factors.vectors.shape[1:])
    assert not factors.vectors[:, ~kept].any()
    assert_near(why.influence_from_factors(factors), why.influence(QUERIES), 1e-12)

    group = [4, 9, 30]
    weights = np.ones(60)
    weights[group] = 0
    kept = kept.ravel()
    examples, _, slopes = dense(model)
    left = model.trajectory_.program.reweighted(weights)
    matrix = oracle.gauss_newton(left, model.trajectory_.end.tables).reshape(len(kept), -1)
    system = matrix[np.ix_(kept, kept)] + why.damping_ * np.eye(kept.sum())
    solved = np.linalg.solve(system, slopes[:, kept].T).T
    expected = -solved @ examples[group].sum(axis=0)[kept] / 0.5
    assert_near(why.group_influence(QUERIES, [group])[:, 0], expected, 1e-8)


def test_threads_change_no_bit_and_seeds_do():
    data = data_for("logistic", n_users=130, n_items=90, n=4_100)
    model = fit(data, loss="logistic", dtype="float32", n_epochs=2)
    rng = np.random.default_rng(0)
    queries = np.column_stack([rng.integers(130, size=37), rng.integers(90, size=37)])
    once = DropoutInfluence(model, n_threads=1).influence(queries)
    assert once.dtype == np.float32
    assert same_bits(DropoutInfluence(model, n_threads=3).influence(queries), once)
    assert not np.array_equal(DropoutInfluence(model, rng=1).influence(queries), once)


def test_another_model_gets_the_same_mask():
    why = DropoutInfluence(fit(ratings()), rng=np.random.default_rng(5))
    other = fit(ratings(), rng=1)
    expected = DropoutInfluence(other, rng=why.seed).influence(QUERIES)
    assert same_bits(why.on(other).influence(QUERIES), expected)


@pytest.mark.parametrize("keep", [0, -0.5, 1.1, np.nan, True, "half"])
def test_bad_share(keep):
    with pytest.raises(ParameterError, match=r"keep must be a number in \(0, 1\], not"):
        DropoutInfluence(fit(ratings()), keep=keep)


def test_bad_input():
    model = fit(ratings())
    with pytest.raises(NotFittedError):
        DropoutInfluence(MatrixFactorization())
    with pytest.raises(ParameterError, match="rng must be an integer >= 0"):
        DropoutInfluence(model, rng=-1)
    with pytest.raises(ParameterError, match="damping must be a finite number >= 0"):
        DropoutInfluence(model, damping=-1)
    with pytest.raises(TypeError, match="scope"):
        DropoutInfluence(model, scope="pair")
    triples = fi.DistMult(n_factors=4, n_epochs=1, rng=0).fit(graph())
    with pytest.raises(ParameterError, match="a DistMult has none: use InfluenceFunction"):
        DropoutInfluence(triples)
    singular = fit(ratings(), regularization=0.0, n_factors=8)
    with pytest.raises(NegativeCurvature, match="singular"):
        DropoutInfluence(singular, damping=0, keep=0.9).influence(QUERIES)
    with pytest.warns(ConvergenceWarning, match="not solved"):
        DropoutInfluence(model, max_iterations=1, rtol=1e-8).influence(QUERIES)
    model.trajectory_.end.tables.item_factors[2, 1] = np.nan
    with pytest.raises(DataError, match="item 2 holds NaN"):
        DropoutInfluence(model).influence(QUERIES)
