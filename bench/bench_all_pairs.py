"""Explaining every user-item pair, streamed to the disk: run with --all-pairs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import machine
import numpy as np
import numpy_readout
import pytest
from comparison import Rival, Timing, compare, fact, figure, timed

import fastinfluence as fi

SUITE = "Every user-item pair, 10 examples each, streamed to the disk"
SAMPLED_PAIRS = 2000
SAMPLED_USERS, SAMPLED_ITEMS = 40, 25
K, N_FACTORS = 10, 64


@pytest.fixture(autouse=True)
def _asked_for(request: pytest.FixtureRequest) -> None:
    if not request.config.getoption("--all-pairs"):
        pytest.skip("explains millions of pairs: give --all-pairs")


class Discard:
    """Takes the place of the shard writer and writes nothing."""

    rows_done = 0

    def __init__(self, *arguments: object, **named: object) -> None:
        pass

    def append(self, columns: dict[str, Any]) -> None:
        """Forget the block."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        pass


def bench_explain_to(
    benchmark: Any, model: fi.MatrixFactorization, run_script: Any, disk: Path, smoke: bool
) -> None:
    """`explain_to` with queries=None, against the same without writing, numpy and sgemm."""
    threads = min(2, machine.cores())
    why = fi.GradientRollback(model, n_threads=threads, show_progress=False)
    data = model.data_
    n_pairs = data.n_users * data.n_items
    target = disk / "explained"
    why.explain_to(
        disk / "warm-up", queries=[(data.user_ids[0], data.item_ids[0])], show_progress=False
    )

    def explain() -> None:
        why.explain_to(target, k=K, show_progress=False)

    def without_writing() -> float:
        shutil.rmtree(target, ignore_errors=True)  # of the round before
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("fastinfluence.attribution.base.ShardWriter", Discard)
            return timed(explain)()

    timing = compare(
        benchmark,
        explain,
        {
            "the same without writing": without_writing,
            "sgemm 2048": machine.sgemm_seconds,
            **_numpy(model),
        },
        suite=SUITE,
        label="`GradientRollback.explain_to`",
        work=n_pairs,
        unit="predictions",
        threads=threads,
        rounds=1 if smoke else 3,
        warm_up=False,
        note="numpy runs on one thread, its seconds are extrapolated from the sample.",
    )
    on_disk = sum(file.stat().st_size for file in target.rglob("*") if file.is_file())
    shutil.rmtree(target)
    _report(benchmark, timing, data, threads)
    fact(benchmark, "on the disk", on_disk / 1e6, "MB")
    bandwidth = machine.disk_bandwidth(disk, 2**24 if smoke else 2**30)
    fact(benchmark, "writing to that disk, with fsync", bandwidth, "MB/s")

    model.save(disk / "run")
    memory = json.loads(run_script("peak_memory.py", disk / "run", "all-pairs", threads, disk))
    fact(benchmark, "row store", memory["row_store"] / 1e6, "MB")
    fact(benchmark, "peak memory of a process while explaining", memory["peak"] / 1e6, "MB")
    figure(
        benchmark,
        "peak memory explaining all pairs, MB over the row store",
        (memory["peak"] - memory["row_store"]) / 1e6,
        target=1000,
        at_least=False,
    )


def _report(benchmark: Any, timing: Timing, data: fi.Interactions, threads: int) -> None:
    flops = 2.0 * (N_FACTORS + 1) * len(data) * (data.n_users + data.n_items)
    share = flops / machine.sgemm_flops() * timing.ratio("sgemm 2048") / threads
    faster = timing.ratio("the same without writing")
    fact(benchmark, "arithmetic", flops / 1e9, "GFLOP")
    fact(benchmark, "share of sgemm's rate a thread, without writing", 100 * share / faster, "%")
    figure(
        benchmark,
        "all user-item pairs to the disk, k=64, seconds on two cores",
        timing.seconds,
        target=12,
        at_least=False,
    )
    figure(
        benchmark,
        "all user-item pairs to the disk, share of sgemm's rate a thread, %",
        100 * share,
        target=40,
        at_least=True,
    )


def _numpy(model: fi.MatrixFactorization) -> dict[str, Rival]:
    """numpy on a sample: random pairs one by one, and whole users and items at once."""
    data, rows = model.data_, numpy_readout.plain_rows(model)
    rng = np.random.default_rng(0)
    pairs = (
        rng.integers(data.n_users, size=SAMPLED_PAIRS),
        rng.integers(data.n_items, size=SAMPLED_PAIRS),
    )
    one_by_one = timed(
        lambda: numpy_readout.explain_one_by_one(rows, *pairs, K),
        share=SAMPLED_PAIRS / (data.n_users * data.n_items),
    )
    halves = [
        timed(_whole_groups(half, chosen), share=len(chosen) / (len(half.pointers) - 1))
        for half, chosen in (
            (rows.user, _of_all_sizes(rows.user, SAMPLED_USERS)),
            (rows.item, _of_all_sizes(rows.item, SAMPLED_ITEMS)),
        )
    ]
    return {
        f"numpy, pair by pair ({SAMPLED_PAIRS:,} sampled, extrapolated)": one_by_one,
        f"numpy, batched by group ({SAMPLED_USERS} users and {SAMPLED_ITEMS} items sampled, "
        "extrapolated, merge not counted)": lambda: sum(half() for half in halves),
    }


def _of_all_sizes(half: numpy_readout.Half, n: int) -> np.ndarray:
    """n groups spread evenly over the groups sorted by size."""
    by_size = np.argsort(np.diff(half.pointers))
    return by_size[((np.arange(n) + 0.5) * len(by_size) / n).astype(int)]


def _whole_groups(half: numpy_readout.Half, chosen: np.ndarray) -> Any:
    columns = np.arange(len(half.vectors))

    def read() -> None:
        for group in chosen:
            groups = np.full(len(columns), group)
            numpy_readout.best_of_groups(half, groups, columns, K)

    return read
