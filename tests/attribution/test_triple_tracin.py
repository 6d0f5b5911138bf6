"""TracIn of models of triples: from checkpoints, by the derivatives of losses along gradients."""

from __future__ import annotations

import numpy as np
import pytest
from planted import graph, same_bits

import fastinfluence as fi
from fastinfluence import TracIn, objectives
from fastinfluence.errors import DataError, ParameterError
from fastinfluence.kernels.structures import GraphTables

QUERIES = [("e0", "r0", "e1"), ("e3", "r2", "e3"), ("e5", "r1", "e2")]


def fitted(kind=fi.ComplEx, *, sample_weight=None, **parameters):
    given = {"n_factors": 4, "n_epochs": 4, "n_negatives": 3, "dtype": "float64", "rng": 0}
    return kind(**given | parameters).fit(graph(n=40), sample_weight=sample_weight)


def rates(model):
    """Mean learning rate of every epoch, step by step."""
    recipe = model.trajectory_.recipe
    steps = 40 * recipe.n_sides
    total = recipe.n_epochs * steps
    linear = recipe.learning_rate_decay == "linear"
    each = [recipe.learning_rate * (1 - linear * step / total) for step in range(total)]
    return np.reshape(each, (recipe.n_epochs, steps)).mean(axis=1)


def naive_influence(model, objective, weights, distance=1e-5):
    """``weights`` are those of the checkpoints; losses are derived numerically."""
    trajectory = model.trajectory_
    quantity = objective.bind(model.data_, trajectory.recipe)
    endpoint = trajectory.program.endpoint(trajectory.end.tables)
    found = np.zeros((len(quantity), 40))
    for epoch, weight in weights.items():
        rows = trajectory.checkpoints[epoch].rows
        for n in range(len(quantity)):
            slope = quantity.dense_gradient(n, n + 1, GraphTables(rows), 0.0)[:, :, 0]
            ahead, behind = (
                endpoint.at(GraphTables(rows + sign * distance * slope)).losses()
                for sign in (1, -1)
            )
            found[n] -= weight * (ahead - behind) / (2 * distance)
    return found


def assert_near(got, expected):
    scale = np.abs(expected).max()
    assert scale > 1e-3
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-6 * scale)


@pytest.mark.parametrize("kind", [fi.DistMult, fi.ComplEx])
@pytest.mark.parametrize("decay", ["constant", "linear"])
def test_influence_by_definition(kind, decay):
    weights = np.random.default_rng(1).choice([0, 0.5, 1, 2], 40)
    model = fitted(kind, learning_rate_decay=decay, sample_weight=weights)
    of_epochs = dict(enumerate(rates(model), start=1))
    for objective in (objectives.Score(QUERIES), objectives.Probability(QUERIES)):
        expected = naive_influence(model, objective, of_epochs)
        assert_near(TracIn(model).influence(objective), expected)
        assert not expected[:, weights == 0].any()


def test_thinned_checkpoints_carry_the_rates_of_the_epochs_between():
    model = fitted(learning_rate_decay="linear")
    for epoch in (1, 3):
        del model.trajectory_.checkpoints[epoch]
    passed = rates(model)
    weights = {2: passed[:2].sum(), 4: passed[2:].sum()}
    objective = objectives.Mean(objectives.Score(QUERIES))
    expected = naive_influence(model, objective, weights)
    assert_near(TracIn(model).influence(objective), expected)


def test_threads_and_blocks_change_no_bit():
    model = fitted(dtype="float32")
    many = [QUERIES[n % 3] for n in range(37)]
    once = TracIn(model, n_threads=1).influence(many)
    assert same_bits(TracIn(model, n_threads=3).influence(many), once)
    assert same_bits(TracIn(model).influence(QUERIES[1:]), once[[1, 2]])


def test_explanations_and_self_influence():
    model = fitted()
    why = TracIn(model)
    data = model.data_
    explained = why.explain(QUERIES, k=5)
    assert (explained.method, explained.units) == ("tracin", "rank")
    top = np.argsort(-why.influence(QUERIES), axis=1, kind="stable")[:, :5]
    np.testing.assert_array_equal(explained.train_index, top)
    own = [(data.entity_ids[h], data.relation_ids[r], data.entity_ids[t])
           for h, r, t in zip(data.heads, data.relations, data.tails, strict=True)]  # fmt: skip
    diagonal = np.diagonal(why.influence(own))
    assert same_bits(why.self_influence(), diagonal.copy())
    assert same_bits(why.self_influence([3, 0]), diagonal[[3, 0]])


def test_only_checkpoints():
    model = fitted()
    assert TracIn(model).mode == "checkpoints"
    assert TracIn(model).on(fitted(rng=1)).mode == "checkpoints"
    with pytest.raises(ParameterError, match="of triples use mode='checkpoints'"):
        TracIn(model, mode="ideal")
    with pytest.raises(ParameterError, match="is not known"):
        TracIn(model, mode="last")
    with pytest.raises(DataError, match="train_index holds 40"):
        TracIn(model).self_influence([40])
    with pytest.raises(ParameterError, match="unit_norm=False"):
        TracIn(fitted(unit_norm=True))
