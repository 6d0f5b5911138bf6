"""How true the methods are on real data: leave-one-out retraining, slow."""

from __future__ import annotations

import numpy as np
import pytest

import fastinfluence as fi
from fastinfluence import evaluation


def compared(model, n_queries, adjacent, others):
    queries = evaluation.sample_queries(model, n_queries)
    methods = [
        fi.GradientRollback(model),
        fi.CurvatureRollback(model, rows=queries),
        fi.Replay(model),
    ]
    comparison = evaluation.compare(
        methods, queries, adjacent=adjacent, others=others, show_progress=False
    )
    return {row["method"]: row for row in comparison.rows}


@pytest.mark.slow
def test_movielens_100k(data_dir):
    ratings = fi.datasets.movielens(next((data_dir / "ml-100k").glob("*.zip")))
    train, test = ratings.split(0.1, rng=0)
    model = fi.MatrixFactorization(n_factors=16, rng=0).fit(train)
    predicted = model.predict(test.user_ids[test.users], test.item_ids[test.items])
    assert np.sqrt(np.mean((predicted - test.values) ** 2)) < 0.91
    rows = compared(model, 20, 40, 200)
    plain, curved, exact = (
        rows[name] for name in ("gradient-rollback", "curvature-rollback", "replay")
    )
    assert plain["spearman_adjacent"] < 0.7
    assert plain["scale"] < 0.1  # overstates more than ten-fold
    assert curved["spearman_adjacent"] >= 0.95
    assert curved["top1_ratio"] >= 0.95
    assert exact["spearman_adjacent"] >= 0.985
    assert exact["spearman_all"] >= 0.98
    assert exact["top1_ratio"] >= 0.95


@pytest.mark.slow
def test_npm_with_sampled_negatives():
    model = fi.MatrixFactorization(
        n_factors=16, loss="logistic", n_epochs=15, learning_rate=0.02, regularization=0.01, rng=0
    ).fit(fi.datasets.npm())
    rows = compared(model, 6, 20, 30)
    assert rows["curvature-rollback"]["spearman_adjacent"] >= 0.8
    assert rows["replay"]["spearman_adjacent"] >= 0.96
    assert rows["replay"]["spearman_all"] >= 0.96
