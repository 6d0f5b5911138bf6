"""Influence functions of a pair's own two rows on MovieLens 1M: solves, systems, read-out."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

import fastinfluence as fi
from fastinfluence import dispatch, readout

from . import Case, Size
from .shared import model, plain_torch

__all__ = ["cases"]

K = 10
SAMPLED: dict[Size, int] = {"smoke": 3, "small": 100, "full": 20_000}  # of the pairs trained on


def cases(size: Size) -> Iterator[Case]:
    """Make them."""
    trained = model(size)
    here, there = (
        fi.InfluenceFunction(trained, scope="pair", n_threads=1, device=device)
        for device in ("cpu", "cuda")
    )
    data, rng = trained.data_, np.random.default_rng(0)
    chosen = np.sort(rng.permutation(len(data))[: SAMPLED[size]])
    users, items = data.users[chosen], data.items[chosen]
    pairs = users, items, *here.rows.find_pairs(users, items)
    yield _solves(here._endpoint, there._endpoint)
    yield _systems(here, there, pairs)
    yield _lists(here, there, pairs, chosen)


def _solves(here: Any, there: Any) -> Case:
    """Every example's gradient by its user's row, solved by the row's block."""
    memory, n, d = dispatch.memory("cuda"), here.n, here.d
    mine, again, its, kept = (
        endpoint.own_gradients()[0] for endpoint in (here, here, there, there)
    )
    plain = plain_torch("gpu_torch_pairs")
    theirs = plain and plain.RowSolves(
        here.row_blocks[: here.n_users], here.damping, mine.pointers,
        np.column_stack([mine.rows, mine.biases]),
    )  # fmt: skip
    here.solve(mine, 0)

    def restore() -> None:
        memory.store(its.rows, kept.rows)
        memory.store(its.biases, kept.biases)

    return Case(
        f"{n:,} gradients solved by {here.n_users:,} blocks, k={d - 1}",
        before=restore,
        run=lambda: there.solve(its, 0),
        found=lambda: (np.column_stack(memory.fetch((its.rows, its.biases))),),
        expected=(np.column_stack([mine.rows, mine.biases]),),
        tolerance=1e-4,
        # Gradients there and back, half of every block.
        n_bytes=(2 * n * d + here.n_users * d * (d + 1) / 2) * here.dtype.itemsize,
        n_flops=4 * n * d**2 + here.n_users * d**3 / 3,
        bound="flops",
        cpu=lambda: here.solve(again, 0),
        torch=plain and (lambda: (theirs(),)),
        note="in float64, of which a card does half as much as of float32, or far less",
    )


def _systems(here: Any, there: Any, pairs: Any) -> Case:
    """What changes of the rows of pairs are multiplied with: couplings, factors, solutions."""
    m, d, memory = len(pairs[0]), here._endpoint.d, dispatch.memory("cuda")
    endpoint, plain = here._endpoint, plain_torch("gpu_torch_pairs")
    made: list[Any] = []
    theirs = plain and plain.PairSystems(
        endpoint._ends, endpoint.row_blocks, endpoint.damping, pairs[0], pairs[1] + endpoint.n_users
    )
    return Case(
        f"systems of {m:,} pairs trained on, k={d - 1}",
        before=made.clear,
        run=lambda: made.append(there._vectors(*pairs, 1)),
        found=lambda: memory.fetch(made[0]),
        expected=here._vectors(*pairs, 1),
        tolerance=1e-4,
        # Half of two blocks, the coupling written and read twice.
        n_bytes=m * (d * (d + 1) * endpoint.dtype.itemsize + 3 * 8 * d * d),
        n_flops=m * 8 / 3 * d**3,
        bound="flops",
        cpu=lambda: here._vectors(*pairs, 1),
        torch=plain and theirs,
        note="in float64, as the solves of rows",
    )


def _lists(here: Any, there: Any, pairs: Any, own: Any) -> Case:
    """The most influential examples of pairs that have vectors of their own."""
    m, d, memory = len(pairs[0]), here._endpoint.d, dispatch.memory("cuda")
    vectors, columns = here._vectors(*pairs, 1), pairs[:2]
    ours, cpu = (dispatch.kernels("pair_readout", b).top_of_pairs for b in ("cuda", "cpu"))
    expected, empty = (readout.start_lists(m, K, vectors[0].dtype, totals=False) for _ in range(2))
    cpu(np.float32(1), *here._sides, *vectors, *columns, 0, m, expected)
    asked, top = memory.put((*vectors, *columns)), memory.put(empty)
    begun, plain = memory.put(empty), plain_torch("gpu_torch_pairs")
    theirs = plain and plain.PairLists(
        [(side.pointers, side.order) for side in here._sides],
        [np.column_stack(changes[:2]) for changes in here._credit()],
        vectors, columns, own,
    )  # fmt: skip
    n_rows = int(here._degrees(*columns).sum()) - m

    def again() -> None:
        memory.store(top.values, begun.values)
        memory.store(top.indices, begun.indices)

    return Case(
        f"{m:,} pairs trained on, top {K} of {n_rows:,} rows, k={d - 1}",
        before=again,
        run=lambda: ours(np.float32(1), *there._sides, *asked, 0, m, top),
        found=lambda: (memory.fetch(top.values),),
        expected=(expected.values,),
        tolerance=1e-4,
        n_bytes=n_rows * (d * here._endpoint.dtype.itemsize + 8),  # rows, training indices
        n_flops=2 * d * n_rows,
        bound="bytes",
        cpu=lambda: cpu(np.float32(1), *here._sides, *vectors, *columns, 0, m, empty),
        torch=plain and (lambda: (theirs(K),)),
        note="rows of users and items that several pairs share come from the cache",
    )
