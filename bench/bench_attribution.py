"""Influence of every rating of MovieLens 100K on 50 predictions, against TracIn in torch."""

from __future__ import annotations

from typing import Any

import numpy as np
import peers_tracin
import pytest
from comparison import compare

import fastinfluence as fi

SUITE = "Attribution peers: the influence of all ratings on 50 predictions"
N_QUERIES, N_SAMPLED = 50, 256
EPOCHS = [5, 10, 15, 20]


@pytest.fixture(scope="module")
def small_model(ml_100k: fi.Interactions) -> fi.MatrixFactorization:
    """k = 64 and 20 epochs on 90 % of MovieLens 100K."""
    train, _ = ml_100k.split(0.1, rng=0)
    return fi.MatrixFactorization(rng=0).fit(train, show_progress=False)


@pytest.fixture(scope="module")
def queries(small_model: fi.MatrixFactorization) -> np.ndarray:
    """(50, 2): the best new item of 50 users, raw ids."""
    data = small_model.data_
    users = data.user_ids[np.random.default_rng(0).permutation(data.n_users)[:N_QUERIES]]
    items, _ = small_model.recommend(users, k=1)
    return np.column_stack([users, items[:, 0]])


def bench_from_trajectory(
    benchmark: Any, small_model: fi.MatrixFactorization, queries: np.ndarray, smoke: bool
) -> None:
    """Replay, row store and the dense matrix: as TracIn, starting from the checkpoints."""
    data = small_model.data_
    codes = data.user_index(queries[:, 0]), data.item_index(queries[:, 1])
    sample = np.random.default_rng(1).permutation(len(data))[: 32 if smoke else N_SAMPLED]
    rivals, missing = peers_tracin.rivals(small_model, sample, codes, EPOCHS)

    def influence() -> None:
        why = fi.GradientRollback(small_model, n_threads=1, show_progress=False)
        why.influence(queries, dense=True)

    compare(
        benchmark,
        influence,
        rivals,
        suite=SUITE,
        label="`GradientRollback`, replay and row store included",
        work=len(data) * len(queries),
        unit="scores",
        rounds=1 if smoke else 2,
        missing=missing,
        note=(
            f"TracIn uses {len(EPOCHS)} checkpoints of the same model, with dense gradients on "
            "one thread: another estimator than Gradient Rollback, which follows every step, so "
            "this compares cost and not faithfulness. Only its seconds for the sampled ratings "
            "are measured."
        ),
    )


def bench_influence(
    benchmark: Any, small_model: fi.MatrixFactorization, queries: np.ndarray, smoke: bool
) -> None:
    """The dense matrix alone, once the row store is there."""
    why = fi.GradientRollback(small_model, n_threads=1, show_progress=False)
    compare(
        benchmark,
        lambda: why.influence(queries, dense=True),
        suite=SUITE,
        label="`influence(dense=True)`, row store there",
        work=len(why.data) * len(queries),
        unit="scores",
        rounds=1 if smoke else 21,
    )


def bench_explain(
    benchmark: Any, small_model: fi.MatrixFactorization, queries: np.ndarray, smoke: bool
) -> None:
    """The 10 most influential ratings only: what is needed to show a reason."""
    why = fi.GradientRollback(small_model, n_threads=1, show_progress=False)
    compare(
        benchmark,
        lambda: why.explain(queries, k=10, show_progress=False),
        suite=SUITE,
        label="`explain(k=10)`, row store there",
        work=len(queries),
        unit="predictions",
        rounds=1 if smoke else 21,
    )
