"""Gradient Rollback from a Trajectory: replaying 20 epochs, and sorting the rows."""

from __future__ import annotations

from typing import Any

import pytest
from comparison import compare, fact, timed

import fastinfluence as fi
from fastinfluence.attribution.rows import RowStore, recorded

SUITE = "Gradient Rollback, rebuilt from the Trajectory"


def bench_replay(benchmark: Any, model: fi.MatrixFactorization, smoke: bool, threads: int) -> None:
    """All epochs again with recording, checked bit for bit, against the same without."""
    trajectory = model.trajectory_
    compare(
        benchmark,
        lambda: trajectory.replay(n_threads=threads, show_progress=False),
        {"without recording": timed(lambda: trajectory.verify(n_threads=threads))},
        suite=SUITE,
        label=f"replay of {trajectory.n_epochs} epochs with recording, k=64",
        work=trajectory.n_epochs * len(model.data_),
        unit="ratings",
        threads=threads,
        rounds=1 if smoke else 3,
    )


@pytest.fixture(scope="module")
def record(model: fi.MatrixFactorization) -> Any:
    """Row changes of every rating, in the order of visits."""
    return model.trajectory_.replay(n_threads=2, show_progress=False)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def bench_row_store(
    benchmark: Any,
    model: fi.MatrixFactorization,
    record: Any,
    smoke: bool,
    dtype: str,
    threads: int,
) -> None:
    """Sorting the recorded rows by user and by item."""
    data, visits = model.data_, model.trajectory_.visits()
    stores: list[RowStore] = []

    def build() -> None:
        stores[:] = [
            RowStore.build(
                recorded(record, visits),
                (data.by_user, data.by_item),
                dtype=dtype,
                n_threads=threads,
            )
        ]

    compare(
        benchmark,
        build,
        suite=SUITE,
        label=f"row store, {dtype}, k=64",
        work=len(data),
        unit="ratings",
        threads=threads,
        rounds=1 if smoke else 5,
    )
    fact(benchmark, "row store", stores[0].nbytes / 1e6, "MB")
