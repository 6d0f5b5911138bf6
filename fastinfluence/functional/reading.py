"""The most influential examples, from what every example did to two rows."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fastinfluence import dispatch, readout
from fastinfluence.attribution.rows import Changes, RowStore
from fastinfluence.errors import DataError
from fastinfluence.functional.arrays import as_array, as_codes
from fastinfluence.functional.homes import home_of, taken_over
from fastinfluence.kernels.structures import Record

__all__ = ["Influences", "explain_mf", "pack_mf"]

Array = npt.NDArray[Any]


class Influences(NamedTuple):
    """The most influential training examples of every query.

    Attributes
    ----------
    train_index : (n_queries, k) int32
        Most influential first, -1 where a query has fewer.
    influence : (n_queries, k) float
        Positive: training on the example raised the score. NaN where a query has fewer.
    total : (n_queries,) float64
        Sum of the absolute influence of all examples of the query's user or item.
    """

    train_index: npt.NDArray[np.int32]
    influence: Array
    total: npt.NDArray[np.float64]


def pack_mf(
    rows: Record,
    users: Any,
    items: Any,
    *,
    n_users: int,
    n_items: int,
    row_dtype: str | None = None,
    n_threads: int | None = None,
) -> RowStore:
    """Sort rows by user and by item and pack them for `explain_mf`.

    Parameters
    ----------
    rows : Record
        Row changes, example j in row j.
    users, items : (n,) integer
        Pair of every example.
    n_users, n_items : int
    row_dtype : {None, "float32", "float64", "bfloat16"}
        Of the packed rows; None keeps that of `rows`.
    n_threads : int, optional

    Returns
    -------
    RowStore
        ``user_side`` and ``item_side``, each of three plain arrays: packed ``rows``
        (n * (k + 1),), ``pointers`` (CSR or CSC bounds of the groups) and ``order`` (training
        index at each place), which may be saved and memory-mapped one by one.
    """
    u, i = as_codes(users, n_users, "users"), as_codes(items, n_items, "items")
    n = int(rows.biases.shape[0])
    if len(u) != len(i) or len(u) != n:
        raise DataError(f"{n} rows, {len(u)} users and {len(i)} items do not match")
    backend = home_of(**rows._asdict()).backend
    memory, biases = dispatch.memory(backend), np.ascontiguousarray(as_array(rows.biases).T)
    given = map(taken_over, (rows.user_rows, rows.item_rows))
    there = map(as_array if backend == "cpu" else memory.put, given)
    of_users, of_items = (Changes(*side, np.arange(n)) for side in zip(there, biases, strict=True))
    count_sort = dispatch.kernels("grouping").count_sort
    return RowStore.build(
        (of_users, of_items),
        (count_sort(u, n_users), count_sort(i, n_items)),
        dtype=row_dtype,
        n_threads=dispatch.thread_count(n_threads),
        device=backend,
    )


def explain_mf(
    user_factors: Any,
    item_factors: Any,
    store: RowStore,
    query_users: Any,
    query_items: Any,
    k: int = 10,
    *,
    proponents: bool = True,
    n_threads: int | None = None,
) -> Influences:
    """Find the k most influential training examples of every query.

    The influence of example j is the score with the tables as they are minus the score with
    j's row changes taken back; the constant and the biases cancel.

    Parameters
    ----------
    user_factors, item_factors : (n_users, k), (n_items, k)
    store : RowStore
        From `pack_mf`.
    query_users, query_items : (n_queries,) integer
        A query may be a training pair itself.
    k : int, default 10
    proponents : bool, default True
        The examples that raised the score most; False: those that lowered it most.
    n_threads : int, optional

    Returns
    -------
    Influences
        ``train_index`` and ``influence``, each (n_queries, k), and ``total`` (n_queries,).
    """
    p, q = as_array(user_factors), as_array(item_factors)
    n_users, n_items = len(store.user_side.pointers) - 1, len(store.item_side.pointers) - 1
    if p.ndim != 2 or q.ndim != 2 or (len(p), len(q)) != (n_users, n_items):
        raise DataError(
            f"factors of shape {p.shape} and {q.shape} do not fit a store of {n_users} users and "
            f"{n_items} items"
        )
    if p.dtype != q.dtype or p.dtype not in (np.float32, np.float64):
        raise DataError(f"factors must both be float32 or float64, not {p.dtype} and {q.dtype}")
    if len(store.user_side.rows) != len(store.user_side.order) * (p.shape[1] + 1):
        raise DataError(f"the rows of the store are not of width {p.shape[1] + 1} (factors, bias)")
    readout.check_k(k)
    home = home_of(
        user_factors=user_factors, item_factors=item_factors, query_users=query_users,
        query_items=query_items, **{"store.user_side.rows": store.user_side.rows},
    )  # fmt: skip
    users = as_codes(query_users, n_users, "query_users")
    items = as_codes(query_items, n_items, "query_items")
    if len(users) != len(items):
        raise DataError(f"{len(users)} query users and {len(items)} query items do not make pairs")
    top = store.top(
        readout.with_ones(q),
        readout.with_ones(p),
        users,
        items,
        k,
        proponents=proponents,
        n_threads=dispatch.thread_count(n_threads),
        device=home.backend,
    )
    found: Influences = home.give(Influences(top.indices, top.values, top.totals))
    return found
