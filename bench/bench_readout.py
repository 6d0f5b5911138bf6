"""Explaining the ten best recommendations of every user, against numpy and sgemm."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import machine
import numpy as np
import numpy_readout
import pytest
from comparison import Timing, compare, fact, figure, timed

import fastinfluence as fi
from fastinfluence import readout

SUITE = "Read-out: the 10 best recommendations of every user, 10 examples each"
SAMPLED_USERS = 200
K = 10


@pytest.fixture(scope="module")
def plain(model: fi.MatrixFactorization) -> numpy_readout.PlainRows:
    """The same rows for numpy."""
    return numpy_readout.plain_rows(model)


@pytest.fixture(scope="module")
def why(model: fi.MatrixFactorization, threads: int) -> fi.GradientRollback:
    """Gradient Rollback on so many threads."""
    return fi.GradientRollback(model, n_threads=threads, show_progress=False)


@pytest.fixture(scope="module")
def codes(model: fi.MatrixFactorization, top_10: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The queries as codes."""
    return model.data_.user_index(top_10[:, 0]), model.data_.item_index(top_10[:, 1])


def bench_kernels(
    benchmark: Any,
    why: fi.GradientRollback,
    codes: tuple[np.ndarray, np.ndarray],
    threads: int,
    smoke: bool,
) -> None:
    """Grouping, tiles and selection alone: codes in, lists out."""
    users, items = codes
    store = why.rows
    p, q = (readout.with_ones(f) for f in (why.model.user_factors_, why.model.item_factors_))
    none = readout.none_excluded(len(users))

    def read() -> None:
        top = readout.start_lists(len(users), K, np.float32, totals=False)
        for side, groups, columns, vectors in (
            (store.user_side, users, items, q),
            (store.item_side, items, users, p),
        ):
            readout.read_side(side, groups, columns, vectors, none, top, n_threads=threads)

    timing = compare(
        benchmark,
        read,
        {"sgemm 2048": machine.sgemm_seconds},
        suite=SUITE,
        label="kernels alone",
        work=len(users),
        unit="predictions",
        threads=threads,
        rounds=1 if smoke else 15,
    )
    _share_of_sgemm(benchmark, timing, why, codes, threads)


def bench_explain(
    benchmark: Any,
    why: fi.GradientRollback,
    plain: numpy_readout.PlainRows,
    top_10: np.ndarray,
    codes: tuple[np.ndarray, np.ndarray],
    threads: int,
    run_script: Any,
    disk: Path,
    smoke: bool,
) -> None:
    """`GradientRollback.explain` from raw ids to Explanations, against numpy on one thread."""
    users, items = codes
    chosen = np.random.default_rng(0).permutation(why.data.n_users)[:SAMPLED_USERS]
    sample = np.flatnonzero(np.isin(users, chosen))  # whole users: numpy's rows stay in cache
    some = users[sample], items[sample]
    loop = f"numpy, query by query ({len(sample):,} of {len(users):,} queries sampled)"
    found = why.explain(top_10, k=K, show_progress=False).influence
    expected = numpy_readout.explain_one_by_one(plain, *some, K)
    np.testing.assert_allclose(found[sample], expected, rtol=1e-3, atol=1e-5)

    timing = compare(
        benchmark,
        lambda: why.explain(top_10, k=K, show_progress=False),
        {
            "sgemm 2048": machine.sgemm_seconds,
            loop: timed(
                lambda: numpy_readout.explain_one_by_one(plain, *some, K),
                share=len(sample) / len(users),
            ),
            "numpy, batched by group": timed(
                lambda: numpy_readout.explain_by_group(plain, users, items, K)
            ),
        },
        suite=SUITE,
        label="`GradientRollback.explain`, end to end",
        work=len(users),
        unit="predictions",
        threads=threads,
        rounds=1 if smoke else 7,
        note=(
            "numpy runs on one thread over contiguous float32 slices and returns values only; "
            "`explain` also maps raw ids, finds the examples' indices, scores the predictions "
            "and adds up the influence of all candidates."
        ),
    )
    _share_of_sgemm(benchmark, timing, why, codes, threads)
    if threads == 1:
        figure(
            benchmark,
            "explaining 60,400 predictions, k=64, predictions/s on one thread",
            len(users) / timing.seconds,
            target=400_000,
            at_least=True,
        )
        figure(
            benchmark,
            "explaining 60,400 predictions, speed over numpy query by query, one thread",
            timing.ratio(loop),
            target=8.0,
            at_least=True,
        )
    else:
        figure(
            benchmark,
            "explaining 60,400 predictions, k=64, predictions/s a thread on two",
            len(users) / timing.seconds / threads,
            target=400_000,
            at_least=True,
        )
    if threads == min(2, machine.cores()):
        _peak_memory(benchmark, why.model, run_script, disk, threads)


def _peak_memory(
    benchmark: Any, model: fi.MatrixFactorization, run_script: Any, disk: Path, threads: int
) -> None:
    """Highest memory of a process that explains the same queries."""
    model.save(disk / "run")
    memory = json.loads(run_script("peak_memory.py", disk / "run", "top-10", threads))
    fact(benchmark, "row store", memory["row_store"] / 1e6, "MB")
    fact(benchmark, "peak memory of a process while explaining", memory["peak"] / 1e6, "MB")
    figure(
        benchmark,
        "peak memory explaining 60,400 predictions, MB over the row store",
        (memory["peak"] - memory["row_store"]) / 1e6,
        target=500,
        at_least=False,
    )


def _share_of_sgemm(
    benchmark: Any,
    timing: Timing,
    why: fi.GradientRollback,
    codes: tuple[np.ndarray, np.ndarray],
    threads: int,
) -> None:
    """The arithmetic the scores need, as a share of sgemm's rate in the same rounds."""
    users, items = codes
    degrees = np.diff(why.data.by_user.pointers)[users] + np.diff(why.data.by_item.pointers)[items]
    flops = 2.0 * (why.model.n_factors + 1) * float(degrees.sum())
    share = flops / machine.sgemm_flops() * timing.ratio("sgemm 2048") / threads
    fact(benchmark, "arithmetic", flops / 1e9, "GFLOP")
    fact(benchmark, "share of sgemm's rate a thread", 100 * share, "%")
