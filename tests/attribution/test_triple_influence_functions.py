"""Influence functions of triples: dense solutions, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
from oracles import graph_hessian as oracle
from oracles.graph_sgd import Setting

import fastinfluence as fi
from fastinfluence import evaluation, objectives
from fastinfluence.attribution.triple_explanations import TripleExplanations
from fastinfluence.errors import DataError, NegativeCurvature, ParameterError

LOSSES = ["softmax", "logistic"]
QUERIES = [(0, 1, 2), (3, 0, None), (None, 2, 4), (5, 1, 5), (1, 0, 3)]
each_loss = pytest.mark.parametrize("loss", LOSSES)
each_kind = pytest.mark.parametrize("kind", [fi.DistMult, fi.ComplEx])


def graph(n=30, n_entities=6, n_relations=3):
    """Random triples, self loops among them."""
    rng = np.random.default_rng(0)
    heads, tails = rng.integers(0, n_entities, (2, n))
    relations = rng.integers(0, n_relations, n)
    ids = {"entity_ids": np.arange(n_entities), "relation_ids": np.arange(n_relations)}
    return fi.Triples.from_arrays(heads, relations, tails, duplicates="keep", **ids)


def fitted(kind=fi.ComplEx, weights=None, **parameters):
    defaults = {
        "n_factors": 4, "n_epochs": 6, "n_negatives": 3, "init_scale": 0.5, "dtype": "float64",
        "regularization": 0.02, "rng": 0,
    }  # fmt: skip
    return kind(**defaults | parameters).fit(graph(), sample_weight=weights)


def arguments_of(model, left_out=()):
    """Arguments of the oracle."""
    program, recipe, data = model.trajectory_.program, model.trajectory_.recipe, model.data_
    setting = Setting(
        data.n_entities,
        data.n_relations,
        complex=recipe.complex,
        reciprocal=recipe.has_reciprocals,
        loss=recipe.loss,
        n_negatives=recipe.n_negatives,
        seed=program.sampler.seed,
        regularization=recipe.regularization,
    )
    weights = program.weights.copy()
    weights[list(left_out)] = 0
    columns = data.heads, data.relations, data.tails, weights, np.arange(len(data))
    examples = list(zip(*(column[program.order].tolist() for column in columns), strict=True))
    n_epochs = recipe.n_epochs
    epochs = range(1) if recipe.n_negatives == "all" else range(n_epochs - 4, n_epochs)
    return setting, model.trajectory_.end.rows, examples, epochs


def parts_of(model, objective):
    """Gradients of the queries (n_queries, P) and of the triples (n, P), by training index."""
    trajectory = model.trajectory_
    quantity = objective.answered(model).bind(model.data_, trajectory.recipe)
    wanted = quantity.dense_gradient(0, len(quantity), trajectory.end.tables, 0.0)
    gradients = oracle.gradients_of(*arguments_of(model))[trajectory.visits()]
    return wanted.reshape(-1, len(quantity)).T, gradients.reshape(len(gradients), -1)


def dense(model, objective, damping):
    """Influence (n_queries, n) by solving with the whole matrix."""
    matrix = oracle.gauss_newton(*arguments_of(model))
    wanted, gradients = parts_of(model, objective)
    return -wanted @ np.linalg.solve(matrix + damping * np.eye(len(matrix)), gradients.T)


def assert_near(got, expected, tolerance):
    assert got.shape == expected.shape
    np.testing.assert_allclose(got, expected, rtol=0, atol=tolerance * np.abs(expected).max())


# ---------------------------------------------------------------- dense solutions


@each_kind
@each_loss
@pytest.mark.parametrize("objective", [objectives.Score, objectives.LogProbability])
def test_is_the_dense_solution(kind, loss, objective):
    weights = np.random.default_rng(1).choice([0.0, 0.5, 1, 2], 30)
    model = fitted(kind, weights, loss=loss)
    asked = objective(QUERIES)
    why = fi.InfluenceFunction(model, damping=0.3, rtol=1e-10)
    found = why.influence(asked)
    assert_near(found, dense(model, asked, 0.3), 1e-8)
    assert not found[:, weights == 0].any()
    assert why.report_.converged.all()
    assert len(why.report_) == len(QUERIES)
    rough = fi.InfluenceFunction(model, damping=0.3).influence(asked)
    assert_near(rough, found, 1e-2)


def test_more_queries_than_lanes_and_than_parameters():
    model = fitted(n_negatives="all", reciprocal=False)
    queries = [(h, r, t) for h in range(6) for r in range(3) for t in range(6)]
    asked = objectives.Score(queries)
    alone = fi.InfluenceFunction(model, damping=0.5, rtol=1e-10, n_threads=1).influence(asked)
    assert alone.shape == (108, 30)
    assert model.trajectory_.end.rows.size < 108
    assert_near(alone, dense(model, asked, 0.5), 1e-8)
    several = fi.InfluenceFunction(model, damping=0.5, rtol=1e-10, n_threads=3).influence(asked)
    assert several.tobytes() == alone.tobytes()


def test_groups_take_their_curvature_with_them():
    model, group = fitted(), [3, 4, 11]
    why = fi.InfluenceFunction(model, damping=0.3, rtol=1e-10)
    matrix = oracle.gauss_newton(*arguments_of(model, group))
    wanted, gradients = parts_of(model, objectives.Score(QUERIES))
    total = gradients[group].sum(0)
    expected = -wanted @ np.linalg.solve(matrix + 0.3 * np.eye(len(matrix)), total)
    assert_near(why.group_influence(QUERIES, [group])[:, 0], expected, 1e-8)


def test_the_full_hessian():
    model = fitted(n_negatives="all", reciprocal=False)
    with pytest.raises(NegativeCurvature, match="damping"):
        fi.InfluenceFunction(model, hessian="full", damping=0.01).influence(QUERIES)
    why = fi.InfluenceFunction(
        model, hessian="full", damping=0.01, on_negative_curvature="lift", rtol=1e-10
    )
    found = why.influence(QUERIES)
    assert why.damping_ > 0.01
    size = model.trajectory_.end.rows.size
    setting, rows, examples, epochs = arguments_of(model)
    columns = []
    for place in range(size):
        step = np.zeros(size)
        step[place] = 1e-5
        step = step.reshape(rows.shape)
        ends = [
            oracle.gradients_of(setting, moved, examples, epochs).sum(0).ravel()
            for moved in (rows + step, rows - step)
        ]
        columns.append((ends[0] - ends[1]) / 2e-5)
    wanted, gradients = parts_of(model, objectives.Score(QUERIES))
    matrix = np.array(columns) + why.damping_ * np.eye(size)
    assert np.linalg.eigvalsh(matrix).min() > 0
    assert_near(found, -wanted @ np.linalg.solve(matrix, gradients.T), 1e-6)


# ---------------------------------------------------------------- as users call it


@each_kind
def test_explanations_hold_the_most_influential(kind):
    model = fitted(kind)
    why = fi.InfluenceFunction(model)
    assert isinstance(why, fi.InfluenceFunction)
    assert type(why) is not fi.InfluenceFunction
    assert isinstance(why.on(fitted(kind, rng=1)), fi.InfluenceFunction)
    found, influence = why.explain(QUERIES, k=4), why.influence(QUERIES)
    assert isinstance(found, TripleExplanations)
    assert found.units == "effect"
    assert found.converged.all()
    order = np.argsort(-influence, axis=1, kind="stable")[:, :4]
    np.testing.assert_array_equal(found.train_index, order)
    own = why.self_influence([0, 7])
    data = model.data_
    triples = [(data.heads[j], data.relations[j], data.tails[j]) for j in (0, 7)]
    np.testing.assert_allclose(own, why.influence(triples)[[0, 1], [0, 7]], rtol=1e-2)


@each_kind
def test_a_long_way_from_the_query_there_is_influence(kind):
    """Triples that share neither entity nor relation with it."""
    model = fitted(kind)
    far = ~np.isin(model.data_.heads, (0, 2)) & ~np.isin(model.data_.tails, (0, 2))
    far &= model.data_.relations != 1
    assert far.sum() >= 3
    assert (fi.InfluenceFunction(model).influence([(0, 1, 2)])[0, far] != 0).all()


# ---------------------------------------------------------------- what is refused


def test_rows_brought_back_to_length_one():
    with pytest.raises(ParameterError, match="unit_norm"):
        fi.InfluenceFunction(fitted(unit_norm=True))


def test_the_scope_of_pairs():
    with pytest.raises(ParameterError, match="scope='global'"):
        fi.InfluenceFunction(fitted(), scope="pair")


def test_parameters_that_are_no_numbers():
    model = fitted()
    model.trajectory_.end.rows[2, 1] = np.nan
    with pytest.raises(DataError, match="row 2"):
        fi.InfluenceFunction(model).influence(QUERIES)


# ---------------------------------------------------------------- quality


@pytest.mark.slow
def test_truer_than_gradient_rollback_on_nations():
    model = fi.ComplEx(
        n_factors=20, n_negatives="all", n_epochs=60, learning_rate=0.05, regularization=0.02, rng=0
    ).fit(fi.datasets.nations())
    asked = objectives.LogProbability(evaluation.sample_queries(model, 8, rng=0))
    methods = [fi.GradientRollback(model), fi.InfluenceFunction(model)]
    rows = evaluation.compare(methods, asked, adjacent=18, others=2, show_progress=False).rows
    plain, ours = (row["spearman_adjacent"] for row in rows)
    assert ours >= 0.35
    assert ours >= 1.2 * plain
    assert 0.5 <= rows[1]["scale"] <= 2
