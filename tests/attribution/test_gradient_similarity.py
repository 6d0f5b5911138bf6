"""Similarity of gradients against the dense gradients of every example."""

from __future__ import annotations

import numpy as np
import pytest
from oracles import fixed_point as oracle
from planted import LOSSES, data_for, graph, ratings, same_bits

import fastinfluence as fi
from fastinfluence import GradientSimilarity, MatrixFactorization, TracIn
from fastinfluence.errors import DataError, NotFittedError, ParameterError

of = fi.objectives
QUERIES = [(0, 1), (5, 3), (5, 4), (0, 3), (0, 1)]
MEASURES = ["dot", "cosine"]


def fit(data, *, sample_weight=None, **keywords):
    keywords = {"n_factors": 4, "n_epochs": 5, "learning_rate": 0.05, "rng": 0} | keywords
    keywords = {"dtype": "float64", "init_scale": 0.4, "regularization": 0.1} | keywords
    return MatrixFactorization(**keywords).fit(data, sample_weight=sample_weight)


def weights_for(data):
    return np.random.default_rng(1).choice([0.0, 0.4, 1, 2.5], len(data))


def naive_influence(model, slopes, measure):
    """Influence (n_queries, n_train) on quantities of dense gradients (n_queries, n_rows, d)."""
    program, tables = model.trajectory_.program, model.trajectory_.end.tables
    examples = oracle.loss_gradients(program, tables).reshape(len(model.data_), -1)
    slopes = np.reshape(slopes, (len(slopes), -1))
    found = -slopes @ examples.T
    if measure == "cosine":
        lengths = np.outer(np.linalg.norm(slopes, axis=1), np.linalg.norm(examples, axis=1))
        found[lengths > 0] /= lengths[lengths > 0]
    return found


def score_gradients(model, pairs):
    program, tables = model.trajectory_.program, model.trajectory_.end.tables
    return [oracle.score_gradient(program, tables, *pair) for pair in pairs]


def assert_near(got, expected, tolerance=1e-11):
    scale = np.abs(expected).max()
    assert scale > 1e-3
    np.testing.assert_allclose(got, expected, rtol=0, atol=tolerance * scale)


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize("loss", LOSSES)
def test_influence_by_definition(loss, measure):
    data = data_for(loss)
    weights = weights_for(data)
    model = fit(data, loss=loss, sample_weight=weights)
    got = GradientSimilarity(model, measure=measure).influence(QUERIES)
    assert_near(got, naive_influence(model, score_gradients(model, QUERIES), measure))
    assert (got[:, weights == 0] == 0).all()
    if measure == "cosine":
        assert np.abs(got).max() <= 1


@pytest.mark.parametrize("measure", MEASURES)
def test_other_objectives(measure):
    model = fit(ratings())
    pairs = np.array(score_gradients(model, QUERIES))
    others = np.array(score_gradients(model, [(user, 2) for user, _ in QUERIES]))
    why = GradientSimilarity(model, measure=measure)
    margin = of.Margin(QUERIES, over=[2] * 5)
    assert_near(why.influence(margin), naive_influence(model, pairs - others, measure))
    mean = of.Mean(of.Score(QUERIES))
    assert_near(why.influence(mean), naive_influence(model, [pairs.mean(axis=0)], measure))


def test_a_quantity_that_nothing_moves_has_no_cosine():
    model = fit(ratings())
    nothing = of.Function(lambda parameters: (1.0, {}))
    for measure in MEASURES:
        assert not GradientSimilarity(model, measure=measure).influence(nothing).any()


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize("loss", LOSSES)
def test_self_influence_is_the_diagonal(loss, measure):
    data = data_for(loss)
    model = fit(data, loss=loss, sample_weight=weights_for(data))
    why = GradientSimilarity(model, measure=measure)
    pairs = score_gradients(model, zip(data.users, data.items, strict=True))
    expected = np.diagonal(naive_influence(model, pairs, measure))
    assert_near(why.self_influence(), expected)
    assert_near(why.self_influence([5, 3, 5]), expected[[5, 3, 5]])
    assert why.self_influence([]).shape == (0,)


def test_tracin_with_one_checkpoint_is_the_dot():
    model = fit(ratings(), n_epochs=1)
    dot = GradientSimilarity(model).influence(QUERIES)
    assert_near(TracIn(model, mode="checkpoints").influence(QUERIES), 0.05 * dot)


def test_threads_change_no_bit_and_explain_is_the_top():
    data = data_for("logistic", n_users=130, n_items=90, n=4_100)
    model = fit(data, loss="logistic", dtype="float32", n_epochs=2)
    rng = np.random.default_rng(0)
    queries = np.column_stack([rng.integers(130, size=37), rng.integers(90, size=37)])
    for measure in MEASURES:
        why = GradientSimilarity(model, measure=measure, n_threads=1)
        more = GradientSimilarity(model, measure=measure, n_threads=3)
        once = why.influence(queries)
        assert once.dtype == np.float32
        assert same_bits(more.influence(queries), once)
        assert same_bits(more.influence(queries[20:21]), once[20:21])
        assert same_bits(more.self_influence(), why.self_influence())
        explained = more.explain(queries, k=3)
        top = np.argsort(-once, axis=1, kind="stable")[:, :3]
        np.testing.assert_array_equal(explained.train_index, top)
        assert (explained.method, explained.units) == ("gradient-similarity", "rank")


def test_of_another_model_with_the_same_measure():
    model, other = fit(ratings()), fit(ratings(), rng=1)
    on = GradientSimilarity(model, measure="cosine").on(other)
    assert same_bits(
        on.influence(QUERIES), GradientSimilarity(other, measure="cosine").influence(QUERIES)
    )


@pytest.mark.parametrize("measure", MEASURES)
def test_triples(measure):
    model = fi.DistMult(n_factors=6, n_epochs=3, rng=0, dtype="float64", init_scale=0.4)
    model.fit(graph())
    queries = [("e0", "r1", "e3"), ("e2", "r0", "e2")]
    why = GradientSimilarity(model, measure=measure)
    endpoint = why._endpoint
    score = why._bind(of.Score(queries))
    panel = endpoint.panel(score, 0)
    expected = endpoint.credit(panel)[:, :2].T
    if measure == "cosine":
        expected = expected / endpoint.norms()
        expected /= np.sqrt((panel[:, :, :2] ** 2).sum((0, 1)))[:, None]
    assert_near(why.influence(queries), expected)
    own = model.data_.columns(np.array([4, 2]))
    rows = list(zip(*(column.tolist() for column in own.values()), strict=True))
    assert_near(why.self_influence([4, 2]), why.influence(rows)[[0, 1], [4, 2]])


def test_bad_input():
    model = fit(ratings())
    with pytest.raises(ParameterError, match="measure='angle' is not known: use 'dot' or"):
        GradientSimilarity(model, measure="angle")
    large = fit(data_for("squared", n_users=130, n_items=90, n=4_100))
    with pytest.raises(ParameterError, match="16 queries take 2 MiB, more than the memory budget"):
        GradientSimilarity(large, memory_budget=2**20).influence(QUERIES)
    with pytest.raises(NotFittedError):
        GradientSimilarity(MatrixFactorization())
    with pytest.raises(DataError, match="train_index"):
        GradientSimilarity(model).self_influence([60])
    model.trajectory_.end.tables.item_factors[2, 1] = np.nan
    with pytest.raises(DataError, match="item 2 holds NaN"):
        GradientSimilarity(model).influence(QUERIES)
