"""Every method beside every other in `compare`, for both kinds of models."""

from __future__ import annotations

import numpy as np
import pytest
from planted import graph, ratings

import fastinfluence as fi
from fastinfluence.attribution.objectives import LogProbability
from fastinfluence.cli.methods import METHODS, explaining

FIGURES = ["spearman_adjacent", "spearman_all", "scale", "relative_error", "top1_ratio"]


def pairs():
    model = fi.MatrixFactorization(n_factors=4, n_epochs=6, learning_rate=0.03, rng=0)
    model.fit(ratings(30, 20, 400))
    return model, [(user, user % 7) for user in range(6)]


def triples():
    recipe = {"n_factors": 6, "n_negatives": "all", "n_epochs": 6, "learning_rate": 0.05}
    model = fi.DistMult(**recipe, rng=0).fit(graph())
    return model, LogProbability([("e0", "r1", "e3"), ("e2", "r0", "e2"), ("e4", "r2", "e0")])


@pytest.mark.parametrize("of", [pairs, triples])
def test_all_methods(of):
    model, queries = of()
    names = explaining(model)
    methods = [METHODS[name](model) for name in names]
    comparison = fi.evaluation.compare(methods, queries, adjacent=20, others=30)
    assert [row["method"] for row in comparison.rows] == names
    for row in comparison.rows:
        assert row["units"] == METHODS[row["method"]].units
        assert np.isfinite([row[name] for name in FIGURES]).all(), row["method"]
    found = {row["method"]: row["spearman_adjacent"] for row in comparison.rows}
    assert found["replay"] > 0.9
    # Chance would give 0; that of halves of four factors is not far from it.
    assert all(found[name] > 0.1 for name in found if name != "turn-over-dropout"), found
    shown = repr(comparison)
    assert all(name in shown for name in names)
