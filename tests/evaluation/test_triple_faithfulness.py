"""How true the methods are on real knowledge graphs: leave-one-out retraining, slow."""

from __future__ import annotations

import numpy as np
import pytest

import fastinfluence as fi
from fastinfluence import evaluation, objectives

pytestmark = pytest.mark.slow


def asked_about(model, n_queries):
    """The model's own best tails of distinct test (head, relation), right or wrong."""
    test = model.data_.test
    asked = np.unique(np.column_stack([test.heads, test.relations]), axis=0)
    chosen = np.random.default_rng(0).permutation(asked)[:n_queries]
    columns = model.data_.entity_ids[chosen[:, 0]], model.data_.relation_ids[chosen[:, 1]]
    return [(head, relation, None) for head, relation in zip(*columns, strict=True)]


def compared(model, queries, adjacent, others):
    methods = [fi.GradientRollback(model), fi.CurvatureRollback(model), fi.Replay(model)]
    asked = objectives.LogProbability(queries).answered(model)
    comparison = evaluation.compare(
        methods, asked, adjacent=adjacent, others=others, show_progress=False
    )
    return {row["method"]: row for row in comparison.rows}, methods


def assert_as_expected(rows):
    plain, curved, exact = (
        rows[name]["spearman_adjacent"]
        for name in ("gradient-rollback", "curvature-rollback", "replay")
    )
    assert exact >= 0.9
    assert curved >= 0.4
    assert curved >= 1.4 * plain


def test_nations():
    model = fi.ComplEx(
        n_factors=20, n_negatives="all", n_epochs=60, learning_rate=0.05, regularization=0.02, rng=0
    ).fit(fi.datasets.nations())
    assert evaluation.link_prediction(model).mrr >= 0.68
    queries = asked_about(model, 16)
    rows, methods = compared(model, queries, 18, 2)
    assert_as_expected(rows)
    probability = objectives.Probability(queries).answered(model)
    rankings = {method.name: method.explain(probability, 10) for method in methods}
    effect = evaluation.deletion_effect(model, probability, rankings, [10])
    drops = {row["method"]: row["mean_drop"] for row in effect.rows}
    assert drops["curvature-rollback"] >= 1.3 * drops["gradient-rollback"]


def test_a_part_of_fb15k_237(data_dir):
    whole = fi.datasets.knowledge_graph(data_dir / "fb15k-237" / "FB15k-237.tar.gz")
    model = fi.ComplEx(n_factors=16, n_epochs=15, regularization=0.01, init_scale=0.2, rng=0).fit(
        densest(whole, 600, 20)
    )
    assert evaluation.link_prediction(model).mrr >= 0.45
    rows, _ = compared(model, asked_about(model, 10), 18, 2)
    assert_as_expected(rows)


def densest(graph, n_entities, least):
    """The triples among the entities of most triples, of relations with so many of them."""
    degrees = sum(np.bincount(c, minlength=graph.n_entities) for c in (graph.heads, graph.tails))
    kept = np.zeros(graph.n_entities, bool)
    kept[np.argsort(-degrees, kind="stable")[:n_entities]] = True

    def inside(part):
        return kept[part.heads] & kept[part.tails]

    of_relation = np.bincount(graph.relations[inside(graph)], minlength=graph.n_relations)

    def columns(part):
        rows = np.flatnonzero(inside(part) & (of_relation[part.relations] >= least))
        return tuple(part.columns(rows).values())

    return fi.Triples.from_arrays(
        *columns(graph), validation=columns(graph.validation), test=columns(graph.test)
    )
