"""Curvature Rollback on MovieLens 1M, in trainings of the same model and beside sgemm."""

from __future__ import annotations

import json
import time
from pathlib import Path
from statistics import median
from typing import Any

import data_sets
import machine
import numpy as np
import pytest
from comparison import Rival, compare, fact, figure, timed, training_once

import fastinfluence as fi
from fastinfluence import dispatch
from fastinfluence.attribution.curvature_rollback import _roll_back

SUITE = "Curvature Rollback: 20 epochs of MovieLens 1M, backwards"
N_QUERIES = 20
TRAINING = "training once"
MEMORY = 14 * 10**8  # bytes at k=64


@pytest.fixture(scope="module", params=[64, 32], ids=lambda k: f"k{k}")
def fitted(
    request: pytest.FixtureRequest, model: fi.MatrixFactorization, ml_1m: fi.Interactions
) -> fi.MatrixFactorization:
    """20 epochs with so many factors, and every kernel compiled."""
    tiny = fi.MatrixFactorization(4, n_epochs=1).fit(data_sets.synthetic(60, 50, 600))
    fi.CurvatureRollback(tiny, n_threads=2)
    if request.param == model.n_factors:
        return model
    return fi.MatrixFactorization(request.param, rng=0).fit(ml_1m, show_progress=False)


def _queries(model: fi.MatrixFactorization) -> np.ndarray:
    """(20, 2): the best new item of 20 users, raw ids."""
    users = np.random.default_rng(0).permutation(model.data_.user_ids)[:N_QUERIES]
    return np.column_stack([users, model.recommend(users, k=1)[0]])


class KernelClock:
    """Seconds that threads spend in the row kernel; it lets go of the interpreter meanwhile."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.calls: list[float] = []
        kernels = dispatch.kernels("curvature")
        kernel = kernels.roll_back_rows

        def measured(*arguments: Any) -> None:
            start = time.perf_counter()
            kernel(*arguments)
            self.calls.append(time.perf_counter() - start)

        patch.setattr(kernels, "roll_back_rows", measured)

    def read(self) -> float:
        """Seconds since it was read last, of all threads together."""
        seconds = sum(self.calls)
        self.calls = []
        return seconds


def bench_walk(
    benchmark: Any,
    fitted: fi.MatrixFactorization,
    threads: int,
    smoke: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The walk alone: epochs run again with a log, and all rows taken back over it."""
    trajectory, k = fitted.trajectory_, fitted.n_factors
    clock, in_kernel = KernelClock(monkeypatch), []

    def walk(n_threads: int = threads) -> None:
        clock.read()
        _roll_back(trajectory, None, n_threads, False)

    def ours() -> None:
        walk()
        in_kernel.append(clock.read())

    rivals: dict[str, Rival] = {
        TRAINING: training_once(fitted, threads),
        "sgemm 2048": machine.sgemm_seconds,
    }
    if threads > 1:
        rivals["one thread"] = timed(lambda: walk(1), memory=0 if smoke else MEMORY)
    visits = trajectory.n_epochs * len(fitted.data_)
    timing = compare(
        benchmark,
        ours,
        rivals,
        suite=SUITE,
        label=f"walk, k={k}",
        work=visits,
        unit="visits",
        threads=threads,
        rounds=1 if smoke else 3,
        warm_up=False,
        memory=0 if smoke else MEMORY,
        note=(
            "Training once is those epochs of the same model on as many threads, compared bit "
            "for bit with the parameters. A visit touches two rows, with 4 k² operations each."
        ),
    )
    flops = 2 * 4.0 * k**2 * visits
    sgemm = [machine.sgemm_flops() / seconds for seconds in timing.rivals["sgemm 2048"]]
    shares = [flops / own / rate for own, rate in zip(in_kernel, sgemm, strict=True)]
    inside = [own / threads / whole for own, whole in zip(in_kernel, timing.own, strict=True)]
    trainings = 1 / timing.ratio(TRAINING)
    fact(benchmark, "in trainings", trainings, "×")
    fact(benchmark, "arithmetic", flops / 1e9, "GFLOP")
    fact(benchmark, "the kernel's share of the time", 100 * median(inside), "%")
    fact(benchmark, "the kernel's share of sgemm's rate a thread", 100 * median(shares), "%")
    if threads > 1:
        figure(
            benchmark,
            f"Curvature Rollback, two threads over one, k={k}",
            timing.ratio("one thread"),
            target=1.5,
            at_least=True,
        )
        return
    figure(
        benchmark,
        f"Curvature Rollback, in trainings, k={k}, one thread",
        trainings,
        target={32: 17, 64: 20}[k],
        at_least=False,
    )
    if k == 64:
        figure(
            benchmark,
            "Curvature Rollback, row kernel's share of sgemm's rate, k=64, one thread, %",
            100 * median(shares),
            target=70,
            at_least=True,
        )


def bench_store(
    benchmark: Any,
    fitted: fi.MatrixFactorization,
    threads: int,
    smoke: bool,
    run_script: Any,
    disk: Path,
) -> None:
    """From the model to the rows that every query is answered from."""
    timing = compare(
        benchmark,
        lambda: fi.CurvatureRollback(fitted, n_threads=threads, show_progress=False),
        {TRAINING: training_once(fitted, threads)},
        suite=SUITE,
        label=f"`CurvatureRollback`, row store included, k={fitted.n_factors}",
        work=len(fitted.data_),
        unit="ratings",
        threads=threads,
        rounds=1 if smoke else 2,
        warm_up=False,
        memory=0 if smoke else MEMORY,
    )
    fact(benchmark, "in trainings", 1 / timing.ratio(TRAINING), "×")
    if fitted.n_factors == 64 and threads == min(2, machine.cores()):
        fitted.save(disk / "run")
        memory = json.loads(
            run_script("peak_memory.py", disk / "run", "curvature-rollback", threads)
        )
        fact(benchmark, "row store", memory["row_store"] / 1e6, "MB")
        figure(
            benchmark,
            "extra memory of Curvature Rollback at its peak, row store included, k=64, MB",
            (memory["peak"] - memory["before"]) / 1e6,
            target=1500,
            at_least=False,
        )


def bench_some_rows(
    benchmark: Any, fitted: fi.MatrixFactorization, threads: int, smoke: bool
) -> None:
    """Only the rows that 20 queries are answered from."""
    queries = _queries(fitted)
    timing = compare(
        benchmark,
        lambda: fi.CurvatureRollback(fitted, rows=queries, n_threads=threads, show_progress=False),
        {TRAINING: training_once(fitted, threads)},
        suite=SUITE,
        label=f"`CurvatureRollback(rows=)` of {N_QUERIES} queries, k={fitted.n_factors}",
        work=N_QUERIES,
        unit="queries",
        threads=threads,
        rounds=1 if smoke else 5,
    )
    fact(benchmark, "in trainings", 1 / timing.ratio(TRAINING), "×")
