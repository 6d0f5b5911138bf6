"""The k most influential rows: of large groups, of all recommendations, of all pairs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

import fastinfluence as fi
from fastinfluence import dispatch, readout
from fastinfluence.kernels.structures import Queries

from . import Case, Size
from .shared import model, plain_torch

__all__ = ["cases"]

K = 10
GROUPS: dict[Size, tuple[int, int, int]] = {
    "smoke": (20, 3, 5),
    "small": (300, 200, 65),
    "full": (2_000, 4_000, 65),
}  # rows and queries of each, d
SAMPLED = 20_000  # of all pairs: compared
CPU_USERS = 60  # whose pairs the CPU explains
AT_ONCE = 2**20  # pairs of a batch, as explain_to has them
BATCHES = 4  # side by side, so that lists are brought back meanwhile


def cases(size: Size) -> Iterator[Case]:
    """Make them."""
    n_rows, n_queries, d = GROUPS[size]
    for n_groups in (1, 64) if size == "full" else (1,):
        yield _groups(n_groups, n_rows, n_queries, d)
    trained = model(size)
    here, there = (
        fi.GradientRollback(trained, device=device, show_progress=False)
        for device in ("cpu", "cuda")
    )
    changes = _changes(trained) if plain_torch() else []
    yield _recommendations(trained, here, there, changes, size)
    yield _all_pairs(trained, here, there, changes, size)


def _groups(n_groups: int, n_rows: int, n_queries: int, d: int) -> Case:
    """Groups of the same size, each read by as many queries."""
    memory, rng = dispatch.memory("cuda"), np.random.default_rng(0)
    rows = rng.standard_normal((n_groups * n_rows, d)).astype(np.float32)
    vectors = rng.standard_normal((n_queries, d)).astype(np.float32)
    order = np.arange(n_groups * n_rows)
    pointers = np.arange(n_groups + 1) * n_rows
    query_pointers = np.arange(n_groups + 1) * n_queries
    n, columns = n_groups * n_queries, np.arange(n_groups * n_queries, dtype=np.int32) % n_queries
    side = readout.pack_side(rows[:, :-1], rows[:, -1], order, pointers, order)
    empty = readout.start_lists(n, K, np.float32, totals=False)
    asked = side, Queries(np.arange(n), columns, vectors), readout.none_excluded(n)

    def read(backend: str, arguments: Any, bounds: Any, top: Any) -> None:
        kernels = dispatch.kernels("readout", backend)
        units = kernels.tile_units(arguments[0].pointers, bounds)
        kernels.read_side(np.float32(1), *arguments, units, 0, len(units), top)

    expected = readout.start_lists(n, K, np.float32, totals=False)
    read("cpu", asked, query_pointers, expected)
    there, bounds, begun, top = memory.put((asked, query_pointers, empty, empty))
    of_groups = "group" if n_groups == 1 else "groups"
    plain = plain_torch()
    if plain:
        theirs = plain.GroupReadout(rows, pointers, vectors)
        parts = [list(plain.put(a).split(n_queries)) for a in (columns, np.arange(n))]

    def again() -> None:
        memory.store(top.values, begun.values)
        memory.store(top.indices, begun.indices)

    return Case(
        f"{n_rows:,} rows x {n_queries:,} queries, {n_groups} {of_groups}, d={d}, top {K}",
        before=again,
        run=lambda: read("cuda", there, bounds, top),
        found=lambda: (memory.fetch(top.values),),
        expected=(expected.values,),
        tolerance=1e-5,
        n_bytes=4 * d * (n_groups * n_rows + n_queries) + 8 * K * n,  # rows, vectors, lists
        n_flops=2 * d * n_rows * n,
        bound="flops",
        cpu=lambda: read("cpu", asked, query_pointers, empty),
        torch=plain and (lambda: (theirs(*parts, n, K),)),
    )


class _Pairs:
    """Pairs of users and items, explained by the rows of both in plain torch."""

    def __init__(self, store: Any, changes: Any, trained: Any, users: Any, items: Any) -> None:
        plain = plain_torch()
        self.n, self.sides = len(users), []
        for side, rows, factors, groups, columns in (
            (store.user_side, changes[0], trained.item_factors_, users, items),
            (store.item_side, changes[1], trained.user_factors_, items, users),
        ):
            by_group = np.argsort(groups, kind="stable")
            counts = np.bincount(groups, minlength=len(side.pointers) - 1).tolist()
            vectors = readout.with_ones(factors)
            read = plain.GroupReadout(rows[side.order], side.pointers, vectors)
            queries = [plain.put(a).split(counts) for a in (columns[by_group], by_group)]
            self.sides.append((read, queries))

    def __call__(self) -> Any:
        """Values (n, K) of the best, over both sides."""
        torch = plain_torch().torch
        lists = [read(*queries, self.n, K) for read, queries in self.sides]
        parts = zip(*(values.split(2**20) for values in lists), strict=True)
        return torch.cat([torch.cat(part, 1).topk(K).values for part in parts])


def _changes(trained: Any) -> list[np.ndarray]:
    """Changes of users' and of items' rows by training index, bias last."""
    trajectory = trained.trajectory_
    record, visits = trajectory.replay(show_progress=False), trajectory.visits()
    halves = (record.user_rows, record.item_rows), record.biases.T
    return [np.column_stack(half)[visits] for half in zip(*halves, strict=True)]


def _recommendations(trained: Any, here: Any, there: Any, changes: Any, size: Size) -> Case:
    data, n_best = trained.data_, 10 if size == "full" else 1
    best, _ = trained.recommend(k=n_best)
    items = data.item_index(best.ravel()).astype(np.int32)
    users = np.repeat(np.arange(data.n_users, dtype=np.int32), n_best)
    made: list[Any] = []

    def read(why: Any, device: str) -> Any:
        vectors = why._vectors_there
        return why.rows.top(*vectors, users, items, K, totals=False, device=device).values

    plain = plain_torch() and _Pairs(here.rows, changes, trained, users, items)
    d = trained.n_factors + 1
    degrees = (np.diff(grouping.pointers) for grouping in (data.by_user, data.by_item))
    n_scores = sum(int(own[codes].sum()) for own, codes in zip(degrees, (users, items)))  # noqa: B905
    return Case(
        f"{len(users):,} recommendations, top {K}, lists brought back, k={d - 1}",
        before=made.clear,
        run=lambda: made.append(read(there, "cuda")),
        found=lambda: (_empty_is_infinite(made[0]),),
        expected=(_empty_is_infinite(read(here, "cpu")),),
        tolerance=1e-5,
        n_bytes=here.rows.nbytes + 8 * K * len(users),
        n_flops=2 * d * n_scores,
        bound="flops",
        cpu=lambda: read(here, "cpu"),
        torch=plain and (lambda: (plain(),)),
        note="torch takes a product and a top-k for every user and every item",
    )


def _all_pairs(trained: Any, here: Any, there: Any, changes: Any, size: Size) -> Case:
    data, d = trained.data_, trained.n_factors + 1
    n = data.n_users * data.n_items
    # Pairs that were trained on have examples on both sides, which the plain version counts twice.
    new = np.ones(n, bool)
    new[data.users.astype(np.int64) * data.n_items + data.items] = False
    sample = np.random.default_rng(3).permutation(np.flatnonzero(new))[:SAMPLED]
    sample.sort()
    per = max(1, AT_ONCE // data.n_items) * data.n_items
    found = np.empty((len(sample), K), np.float32)

    def pairs(numbers: Any) -> Any:
        return [codes.astype(np.int32) for codes in np.divmod(numbers, data.n_items)]

    def explain(start: int) -> None:
        stop = min(start + per, n)
        top = there.rows.top(
            *there._vectors_there, *pairs(np.arange(start, stop)), K, totals=False, device="cuda"
        )
        first, last = np.searchsorted(sample, [start, stop])
        found[first:last] = top.values[sample[first:last] - start]

    def run() -> None:
        for _ in dispatch.in_order(explain, range(0, n, per), BATCHES if size == "full" else 1):
            pass

    def on_cpu(numbers: Any) -> Any:
        return here.rows.top(*here._vectors_there, *pairs(numbers), K, totals=False).values

    cpu_users = min(CPU_USERS, data.n_users)
    chosen = np.arange(cpu_users) * (data.n_users // cpu_users)
    of_cpu = (chosen[:, None] * data.n_items + np.arange(data.n_items)).ravel()
    plain = plain_torch() and _Pairs(here.rows, changes, trained, *pairs(np.arange(n)))
    return Case(
        f"all {n:,} pairs, top {K}, lists brought back, k={d - 1}",
        run=run,
        found=lambda: (_empty_is_infinite(found),),
        expected=(_empty_is_infinite(on_cpu(sample)),),
        tolerance=1e-5,
        n_bytes=here.rows.nbytes + 8 * K * n,
        n_flops=2 * d * len(data) * (data.n_users + data.n_items),
        bound="flops",
        cpu=lambda: on_cpu(of_cpu),
        cpu_share=cpu_users / data.n_users,
        torch=plain and (lambda: (plain()[sample],)),
        note=f"of the CPU {cpu_users:,} users are timed, all results compared are {len(sample):,} "
        "pairs that were not trained on; torch leaves its lists on the card",
    )


def _empty_is_infinite(values: np.ndarray) -> np.ndarray:
    """Lists with -inf where they are empty, as torch has them."""
    return np.where(np.isnan(values), -np.inf, values)
