"""Replay of 32 predictions on MovieLens 1M, in trainings of the same model, and its peers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import data_sets
import machine
import numpy as np
import peers_influence
import peers_tracin
import pytest
from comparison import Rival, compare, fact, figure, timed, training_once

import fastinfluence as fi

SUITE = "Replay: the influence of all ratings of MovieLens 1M on 32 predictions"
N_QUERIES = 32
N_TRACIN, N_PYDVL = 512, 2**16  # ratings the peers are given
N_ITERATIONS = 90  # of conjugate gradients without a preconditioner, to a residual of 1e-3
EPOCHS = [5, 10, 15, 20]
TRAINING = "training once"
MEMORY = 10**9  # bytes at k=64


@pytest.fixture(scope="module", params=[64, 16], ids=lambda k: f"k{k}")
def fitted(
    request: pytest.FixtureRequest, model: fi.MatrixFactorization, ml_1m: fi.Interactions
) -> fi.MatrixFactorization:
    """20 epochs with so many factors, and every kernel compiled."""
    tiny = fi.MatrixFactorization(4, n_epochs=1).fit(data_sets.synthetic(60, 50, 600))
    fi.Replay(tiny, n_threads=2).influence([(0, 0)])
    if request.param == model.n_factors:
        return model
    return fi.MatrixFactorization(request.param, rng=0).fit(ml_1m, show_progress=False)


@pytest.fixture(scope="module")
def queries(fitted: fi.MatrixFactorization) -> np.ndarray:
    """(32, 2): the best new item of 32 users, raw ids."""
    users = np.random.default_rng(0).permutation(fitted.data_.user_ids)[:N_QUERIES]
    return np.column_stack([users, fitted.recommend(users, k=1)[0]])


def bench_exact(
    benchmark: Any,
    fitted: fi.MatrixFactorization,
    queries: np.ndarray,
    threads: int,
    smoke: bool,
    run_script: Any,
    disk: Path,
) -> None:
    """Every way through training; on one thread beside CG and TracIn."""
    k = fitted.n_factors
    why = fi.Replay(fitted, n_threads=threads, show_progress=False)
    rivals: dict[str, Rival] = {TRAINING: training_once(fitted, threads)}
    missing: dict[str, str] = {}
    if threads == 1:
        others, missing = _peers(fitted, queries, smoke)
        rivals |= others
    else:
        one = fi.Replay(fitted, n_threads=1, show_progress=False)
        rivals["one thread"] = timed(lambda: one.influence(queries), memory=0 if smoke else MEMORY)
    timing = compare(
        benchmark,
        lambda: why.influence(queries),
        rivals,
        suite=SUITE,
        label=f"`Replay`, k={k}",
        work=len(fitted.data_) * len(queries),
        unit="scores",
        threads=threads,
        rounds=1 if smoke else 2,
        warm_up=False,
        memory=0 if smoke else MEMORY,
        missing=missing,
        note=(
            "Training once is those 20 epochs on as many threads, compared bit for bit with the "
            "parameters. Conjugate gradients on the damped Gauss-Newton matrix and TracIn "
            f"({len(EPOCHS)} checkpoints) run on one thread. They are other estimators than "
            "Replay, which is exact: this compares cost and not faithfulness."
        ),
    )
    trainings = 1 / timing.ratio(TRAINING) / len(queries)
    fact(benchmark, "trainings a query", trainings, "×")
    if threads == 1:
        figure(
            benchmark,
            f"Replay, trainings a query, k={k}, one thread",
            trainings,
            target=2.5,
            at_least=False,
        )
    if k == 64 and threads == min(2, machine.cores()):
        fitted.save(disk / "run")
        memory = json.loads(run_script("peak_memory.py", disk / "run", "replay", threads))
        figure(
            benchmark,
            "extra memory of Replay at its peak, 32 queries, result included, k=64, MB",
            (memory["peak"] - memory["before"]) / 1e6,
            target=1500,
            at_least=False,
        )


def bench_two_hops(
    benchmark: Any,
    fitted: fi.MatrixFactorization,
    queries: np.ndarray,
    threads: int,
    smoke: bool,
) -> None:
    """Only through rows one training example away."""
    why = fi.Replay(fitted, hops=2, n_threads=threads, show_progress=False)
    timing = compare(
        benchmark,
        lambda: why.influence(queries),
        {TRAINING: training_once(fitted, threads)},
        suite=SUITE,
        label=f"`Replay(hops=2)`, k={fitted.n_factors}",
        work=len(fitted.data_) * len(queries),
        unit="scores",
        threads=threads,
        rounds=1 if smoke else 2,
        warm_up=False,
        memory=0 if smoke else MEMORY,
    )
    fact(benchmark, "trainings a query", 1 / timing.ratio(TRAINING) / len(queries), "×")


def _peers(
    model: fi.MatrixFactorization, queries: np.ndarray, smoke: bool
) -> tuple[dict[str, Rival], dict[str, str]]:
    data = model.data_
    codes = data.user_index(queries[:, 0]), data.item_index(queries[:, 1])
    order = np.random.default_rng(1).permutation(len(data))
    tracin = order[: 256 if smoke else N_TRACIN]
    by_tracin = peers_tracin.rivals(model, tracin, codes, EPOCHS, ("Captum TracInCP",))
    found, missing = peers_influence.peers(
        model,
        codes,
        damping=1 / (model.learning_rate * model.n_epochs_),
        n_iterations=N_ITERATIONS,
        sample=order[:N_PYDVL],
        names=("CG in torch", "pyDVL CG"),
    )
    return peers_influence.rivals(found) | by_tracin[0], missing | by_tracin[1]
