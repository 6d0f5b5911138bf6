"""The bounds bound: gradients, curvatures, retraining without every triple, Gradient Rollback."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
from oracles import graph_norms as oracle
from oracles.graph_sgd import Setting, run

import fastinfluence as fi
from fastinfluence.errors import NotFittedError, ParameterError
from fastinfluence.evaluation import Stability, stability
from fastinfluence.models import ComplEx, DistMult

BUDGET = 2**20
KINDS = {
    "distmult": (DistMult, {}),
    "complex": (ComplEx, {"reciprocal": False}),
    "logistic": (ComplEx, {"loss": "logistic", "n_negatives": "all"}),
    "tail only": (DistMult, {"sides": "tail", "reciprocal": False, "loss": "logistic"}),
}
each_kind = pytest.mark.parametrize("kind", KINDS)


def triples(n=12, n_entities=5, n_relations=2):
    rng = np.random.default_rng(0)
    heads, tails = rng.integers(0, n_entities, (2, n))
    heads[:n_entities] = np.arange(n_entities)
    tails[3] = heads[3]
    relations = np.arange(n) % n_relations
    return fi.Triples.from_arrays(heads, relations, tails, duplicates="keep")


def fitted(kind="distmult", *, sample_weight=None, **options):
    model, own = KINDS[kind]
    defaults = {
        "n_factors": 4, "n_epochs": 2, "learning_rate": 0.02, "n_negatives": 3, "rng": 0,
        "dtype": "float64", "regularization": 0.05,
    }  # fmt: skip
    return model(**defaults | own | options).fit(triples(), sample_weight=sample_weight)


def naive_steps(model):
    """The run of a model by the naive loop, and its setting."""
    program, recipe = model.trajectory_.program, model.trajectory_.recipe
    setting = Setting(
        *program.graph[:2], recipe.complex, recipe.has_reciprocals, recipe.n_sides, recipe.loss,
        recipe.n_negatives, recipe.seed, learning_rate=recipe.learning_rate,
        n_epochs=recipe.n_epochs, linear=recipe.learning_rate_decay == "linear",
        regularization=recipe.regularization,
    )  # fmt: skip
    examples = list(zip(*(column.tolist() for column in program.examples), strict=True))
    return setting, run(setting, program.start().rows, examples)


def distances(model):
    """Norms of the change by leaving each triple out, and of Gradient Rollback's error."""
    end = model.trajectory_.end.rows
    graph, data = model.graph_, model.data_
    credited = model.trajectory_.replay(show_progress=False).changes[model.trajectory_.visits()]
    change, error = [], []
    for j in range(len(data)):
        without = model.trajectory_.retrain(without=[j]).rows
        relation = graph.n_entities + data.relations[j]
        rows = [data.heads[j], data.tails[j], relation]
        if graph.reciprocal:
            rows.append(relation + graph.n_relations)
        rolled_back = end.copy()
        for slot, row in enumerate(rows):
            rolled_back[row] -= credited[j, slot]
        change.append(np.linalg.norm(end - without))
        error.append(np.linalg.norm(rolled_back - without))
    return np.array(change), np.array(error)


# ---------------------------------------------------------------- the constants


@each_kind
def test_constants_bound_gradients_and_curvatures(kind):
    model = fitted(kind, init_scale=0.6, learning_rate=0.001)
    found = stability(model, memory_budget=BUDGET)
    assert found.proven
    setting, naive = naive_steps(model)
    norms = oracle.graph_norms(setting, naive.steps)
    assert found.subject_relation == pytest.approx(norms[0])
    assert found.relation_object == pytest.approx(norms[1])
    assert found.subject_object == pytest.approx(norms[2])
    rng = np.random.default_rng(0)
    reach = 10.0 ** found.log10_change.max()
    slopes, bends = [], []
    for step in naive.steps[::5]:
        rows = model.trajectory_.end.rows.copy()
        for row, before in step.before.items():
            rows[row] = before
        slopes.append(np.linalg.norm(oracle.loss_gradient(setting, step, rows)))
        rows += rng.normal(size=rows.shape) * reach / math.sqrt(rows.size) / 2
        bends.append(np.linalg.norm(oracle.loss_hessian(setting, step, rows), 2))
    assert 0.1 * found.loss_lipschitz < max(slopes) <= found.loss_lipschitz
    assert 0.05 * found.smoothness < max(bends) <= found.smoothness


def test_a_subject_among_its_own_candidates_counts_twice():
    """The score of a self loop is quadratic in its entity's row."""
    data = fi.Triples.from_arrays([0], [0], [0], entity_ids=[0, 1])
    exceeded = 0
    for seed in range(10):
        model = DistMult(
            1, n_negatives="all", sides="tail", n_epochs=1, learning_rate=1e-9, rng=seed,
            dtype="float64",
        ).fit(data)  # fmt: skip
        (entity, _), (relation,) = model.entity_factors_.ravel(), model.relation_factors_.ravel()
        slope = np.hypot(2 * entity * relation, entity**2)
        found = stability(model, memory_budget=BUDGET)
        assert slope <= found.score_lipschitz
        products = found.subject_relation, found.relation_object, found.subject_object
        exceeded += slope > 1.01 * np.linalg.norm(products)
    assert exceeded  # what the products alone would give


# ---------------------------------------------------------------- the bounds


@pytest.mark.parametrize("keywords", [{}, {"learning_rate_decay": "constant", "n_epochs": 3}])
@each_kind
def test_bounds_hold_for_every_triple(kind, keywords):
    weights = np.random.default_rng(1).choice([0.5, 1.0, 2.0], 12)
    weights[4] = 0
    model = fitted(kind, learning_rate=0.002, sample_weight=weights, **keywords)
    found = stability(model, memory_budget=BUDGET)
    assert found.proven
    assert not found.vacuous
    change, error = distances(model)
    assert (change <= 10.0**found.log10_change).all()
    assert (error <= 10.0**found.log10_error).all()
    assert found.log10_change[4] == found.log10_error[4] == -np.inf
    others = weights != 0
    tight = 10.0 ** found.log10_change[others] / change[others]
    assert np.median(tight) < 30  # not from far above
    assert (found.log10_error[others] < found.log10_change[others]).all()


@each_kind
def test_bounds_that_are_not_proven_held_here(kind):
    found = stability(model := fitted(kind, learning_rate=0.1), memory_budget=BUDGET)
    assert not found.proven
    change, error = distances(model)
    assert (change <= 10.0**found.log10_change).all()
    assert (error <= 10.0**found.log10_error).all()


def test_bounds_are_the_documented_sums():
    model = fitted("complex", sample_weight=np.linspace(0, 2, 12))
    found = stability(model, memory_budget=BUDGET)
    program, n = model.trajectory_.program, 12
    steps = []  # (triple, rate * weight) of every step
    for epoch in range(2):
        for t in range(n):
            j = program.order[t]
            for side in range(2):
                k = (epoch * n + t) * 2 + side
                rate = 0.02 * (1 - k / (2 * n * 2))
                steps.append((j, rate * np.linspace(0, 2, 12)[j]))
    for j in range(1, n):
        change = error = 0.0
        for number, (own, rate) in enumerate(steps):
            if own != j:
                continue
            later = [1 + r * found.smoothness for other, r in steps[number + 1 :] if other != j]
            product = math.prod(later)
            change += rate * found.loss_lipschitz * product
            error += rate * (found.loss_lipschitz * (product - 1) + found.subject_relation)
        assert 10.0 ** found.log10_change[j] == pytest.approx(change, rel=1e-9)
        assert 10.0 ** found.log10_error[j] == pytest.approx(error, rel=1e-9)


def test_hot_training_has_a_vacuous_bound():
    found = stability(fitted(n_epochs=400, learning_rate=0.1), memory_budget=BUDGET)
    assert found.vacuous
    assert not found.proven
    assert found.log10_change.max() > 400  # more than a float64 holds
    assert np.isfinite(found.log10_change).all()
    assert np.isfinite(found.log10_error).all()
    text = repr(found)
    assert "at most 10^" in text
    assert "vacuous" in text
    assert "if retraining stays" in text


@pytest.mark.parametrize(
    "keywords", [{"optimizer": "adagrad"}, {"optimizer": "adam-dense"}, {"unit_norm": True}]
)
def test_no_bound_but_norms_for_others_than_plain_sgd(keywords):
    found = stability(fitted(**keywords), memory_budget=BUDGET)
    assert found.log10_change is None
    assert found.log10_error is None
    assert found.vacuous
    assert found.smoothness > found.subject_relation > 0
    assert "plain SGD" in repr(found)
    assert found.to_dict()["greatest_log10_change"] is None


# ---------------------------------------------------------------- showing, bad input


def test_shows_itself():
    found = stability(fitted("complex", learning_rate=0.004), memory_budget=BUDGET)
    text = repr(found)
    assert text.startswith("Stability of ComplEx trained by sgd in 2 epochs\n")
    assert f"|e_s * w_r| {found.subject_relation:.3g}" in text
    assert f"by at most {10.0 ** found.log10_change.max():.3g} " in text
    assert "vacuous" not in text
    assert "if retraining" not in text
    columns = found.to_dict()
    assert columns["greatest_log10_change"] == found.log10_change.max()
    assert columns["median_log10_error"] == np.median(found.log10_error)
    assert columns["proven"] is True
    assert isinstance(found, Stability)


def test_bad_input():
    with pytest.raises(ParameterError, match="DistMult or ComplEx, not SimpleNamespace"):
        stability(SimpleNamespace())
    with pytest.raises(NotFittedError, match="fit"):
        stability(DistMult())
    with pytest.raises(ParameterError, match="memory_budget"):
        stability(fitted(), memory_budget=5)
