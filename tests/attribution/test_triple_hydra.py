"""Hydra of models of triples."""

from __future__ import annotations

import numpy as np
import pytest
from planted import graph, same_bits

import fastinfluence as fi
from fastinfluence import GradientRollback, Hydra, Replay, objectives
from fastinfluence.errors import ParameterError, UnknownIdError

DATA = graph()
QUERIES = [("e0", "r1", "e3"), ("e5", "r0", "e5"), ("e7", "r2", "e1")]
OPTIMIZERS = ["sgd", "adagrad", "adam", "adam-dense"]


def fit(kind=fi.ComplEx, data=DATA, **parameters):
    given = {"n_factors": 6, "n_epochs": 3, "n_negatives": 4, "dtype": "float64", "rng": 0}
    return kind(**given | parameters).fit(data)


def linear_rollback(model, quantity):
    """The changes that Gradient Rollback credits the triples with, read along the gradients."""
    rows = GradientRollback(model, credit="gradient").rows
    gradients = quantity.dense_gradient(0, len(quantity), model.trajectory_.end.tables, 0.0)
    n_entities, n_relations = DATA.n_entities, DATA.n_relations
    found = np.zeros((len(quantity), len(DATA)))
    for j, changes in enumerate(rows.changes):
        own = n_entities + rows.relations[j]
        places = [rows.heads[j], rows.tails[j], own, own + n_relations][: len(changes)]
        for row, change in zip(places, changes, strict=True):
            found[:, j] += change @ gradients[row]
    return found


def bound(model, asked):
    return asked.answered(model).bind(DATA, model.trajectory_.recipe)


@pytest.mark.parametrize("kind", [fi.DistMult, fi.ComplEx])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_without_decay_it_is_linear_gradient_rollback(kind, optimizer):
    """In the rows of relations: of entities, Rollback credits no negatives."""
    model = fit(kind, optimizer=optimizer, learning_rate=0.02, regularization=0.0)
    asked = objectives.Score(QUERIES)
    quantity = bound(model, asked)

    def of_relation(parts):
        """The same quantity, of which only the rows of relations count."""
        queries, rows, vectors = parts
        return type(parts)(queries, rows, vectors * (rows >= DATA.n_entities)[:, None])

    whole = quantity.gradients
    quantity.gradients = lambda *args: of_relation(whole(*args))
    expected = linear_rollback(model, quantity)
    found = np.concatenate([rows for _, rows, _ in Hydra(model)._blocks(quantity, False)])
    assert np.abs(expected).max() > 1e-4
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-11 * np.abs(expected).max())


def test_decay_is_what_regularization_takes():
    """None forgets, 0 does not; without regularization they are one."""
    plain, strict = fit(regularization=0.0), fit(regularization=0.3)
    asked = objectives.LogProbability(QUERIES)
    same, none = (Hydra(plain, weight_decay=d).influence(asked) for d in (0, None))
    assert same_bits(same, none)
    kept, left = (np.abs(Hydra(strict, weight_decay=d).influence(asked)).sum() for d in (0, None))
    assert left < 0.95 * kept
    fading = np.abs(Hydra(strict, weight_decay=0.3).influence(asked)).sum()
    assert fading < 0.5 * kept  # the published rule decays all rows at every step


@pytest.mark.parametrize("optimizer", ["sgd", "adagrad"])
def test_after_a_single_triple_it_is_what_training_did(optimizer):
    """Nothing came later: to first order in the rate, what the triple did to the query."""
    data = fi.Triples.from_arrays(["a"], ["likes"], ["b"])
    model = fit(data=data, n_epochs=1, optimizer=optimizer, learning_rate=1e-4, n_negatives=1)
    start = model.trajectory_.checkpoints[0].tables
    asked = objectives.Score([("a", "likes", "b")])
    quantity = asked.bind(data, model.trajectory_.recipe)
    done = quantity.values(model.trajectory_.end.tables, 0.0) - quantity.values(start, 0.0)
    found = Hydra(model).influence(asked)[0]
    np.testing.assert_allclose(found, done, rtol=5e-3)


def test_agrees_with_replay_in_the_order_of_triples():
    model = fit(n_epochs=5, learning_rate=0.02)
    mine, exact = Hydra(model).influence(QUERIES), Replay(model).influence(QUERIES)
    for a, b in zip(mine, exact, strict=True):
        assert np.corrcoef(a, b)[0, 1] > 0.9


def test_an_instance_of_the_method_that_explains_triples():
    model = fit()
    why = Hydra(model)
    assert isinstance(why, Hydra)
    assert type(why) is not Hydra
    asked = objectives.Probability([("e0", "r1", None), (None, "r0", "e2")])
    explained, influence = why.explain(asked, k=4), why.influence(asked)
    np.testing.assert_array_equal(
        np.take_along_axis(influence, explained.train_index, axis=1), explained.influence
    )
    assert (explained.quantity, explained.units) == ("probability", "rank")
    own = why.self_influence([3, 5])
    triples = np.column_stack([*DATA.columns(np.array([3, 5])).values()])
    assert same_bits(own, why.influence(triples)[[0, 1], [3, 5]])


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_threads_memory_and_company_change_nothing(optimizer):
    model = fit(optimizer=optimizer, learning_rate=0.02)
    asked = [("e0", "r1", f"e{n % 10}") for n in range(40)]
    once = Hydra(model, n_threads=1).influence(asked)
    assert same_bits(Hydra(model, n_threads=3, memory_budget=2**20).influence(asked), once)
    assert same_bits(Hydra(model).influence(asked[17:19]), once[17:19])


def test_what_is_left_to_others():
    with pytest.raises(ParameterError, match="use Replay"):
        Hydra(fit(), hessian="forward")
    with pytest.raises(ParameterError, match="unit_norm=True"):
        Hydra(fit(unit_norm=True))
    for optimizer in OPTIMIZERS[1:]:
        model = fit(optimizer=optimizer, learning_rate=0.01)
        with pytest.raises(ParameterError, match=f"trained with {optimizer}: leave them out"):
            Hydra(model, momentum=0.9)
    with pytest.raises(UnknownIdError, match="unknown relation 'r9'"):
        Hydra(fit()).influence([("e0", "r9", "e1")])
