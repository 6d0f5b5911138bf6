"""Arrays in, arrays out: the parts of fastinfluence for other libraries to build in.

Nothing here needs the library's classes. Tables are the parameters of a biased matrix
factorization whose score is ``mean + b_u + b_i + p_u . q_i``:

========================= ==================== ============================
``user_factors``          (n_users, k)         float32 or float64
``item_factors``          (n_items, k)         the same dtype
``user_biases``           (n_users,)           the same dtype
``item_biases``           (n_items,)           the same dtype
========================= ==================== ============================

Users and items are codes: integers from 0. Arrays may be numpy arrays (read-only and
memory-mapped ones too, wherever they are only read) or anything with ``__array__`` or
``__dlpack__`` in CPU memory, such as torch tensors, which share their memory.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fastinfluence import dispatch, readout
from fastinfluence.attribution.rows import RowStore, recorded
from fastinfluence.errors import DataError, ParameterError
from fastinfluence.kernels.structures import Examples, Hyper, Record, Sampler, Tables
from fastinfluence.training.recipe import LOSSES

__all__ = [
    "Influences",
    "Record",
    "RowStore",
    "explain_mf",
    "new_rows",
    "pack_mf",
    "rollback_mf",
    "sgd_mf",
]

Array = npt.NDArray[Any]

_EPSILON = 1e-8


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


def new_rows(n: int, n_factors: int, dtype: npt.DTypeLike = "float32") -> Record:
    """Make room for the row changes of n examples, all zero.

    Returns
    -------
    Record
        ``user_rows`` (n, n_factors), ``item_rows`` (n, n_factors), ``biases`` (n, 2) (user,
        item). A training loop of your own adds to it what example j changed:
        ``rows.user_rows[j] += after - before``.
    """
    return Record(
        np.zeros((n, n_factors), dtype), np.zeros((n, n_factors), dtype), np.zeros((n, 2), dtype)
    )


def sgd_mf(
    users: Any,
    items: Any,
    values: Any,
    user_factors: Any,
    item_factors: Any,
    user_biases: Any,
    item_biases: Any,
    *,
    mean: float = 0.0,
    learning_rate: float = 0.01,
    regularization: float = 0.05,
    loss: str = "squared",
    squares: Tables | None = None,
    sample_weight: Any = None,
    rows: Record | None = None,
    n_negatives: int = 0,
    known: tuple[Any, Any] | None = None,
    seed: int = 0,
    epoch: int = 0,
    example_ids: Any = None,
) -> float:
    """Take one gradient step for every example, in the order given, changing the tables.

    Parameters
    ----------
    users, items : (n,) integer
    values : (n,) float
        Ratings, or 1 (and 0 for ``logistic``) for the sampled losses.
    user_factors, item_factors, user_biases, item_biases
        The tables; writable and C-contiguous.
    mean : float
        Constant of the score.
    learning_rate, regularization : float
        L2 on the rows an example touches.
    loss : {"squared", "logistic", "bpr"}
    squares : Tables, optional
        Adagrad's sums of squared gradients, changed in place; plain SGD without.
    sample_weight : (n,) float, optional
        0 skips an example.
    rows : Record, optional
        From `new_rows`; what example j changes is added to row j (Gradient Rollback).
    n_negatives : int, default 0
        Items drawn for every positive example (``logistic``, ``bpr``).
    known : (pointers, items), optional
        CSR of the items of every user, ascending within a user: never drawn as negatives.
        Built from `users` and `items` by default; pass it if they are only a part of the data.
    seed, epoch : int
        Keys of the draws, together with `example_ids`.
    example_ids : (n,) integer, optional
        Number of each example in the whole data; 0..n-1 by default.

    Returns
    -------
    float
        Mean weighted loss of the steps, each before its update, without regularization.

    Raises
    ------
    DataError
        Arrays that do not fit together; codes outside the tables.
    """
    tables = _tables(user_factors, item_factors, user_biases, item_biases, writable=True)
    n_users, n_items = len(tables.user_biases), len(tables.item_biases)
    dtype = tables.user_factors.dtype
    u, i = _codes(users, n_users, "users"), _codes(items, n_items, "items")
    y = _vector(values, dtype, "values", len(u))
    weights = np.ones(len(u), dtype)
    if sample_weight is not None:
        weights = _vector(sample_weight, dtype, "sample_weight", len(u))
    ids = np.arange(len(u))
    if example_ids is not None:
        ids = _vector(example_ids, np.int64, "example_ids", len(u))
    if len(i) != len(u):
        raise DataError(f"{len(u)} users and {len(i)} items do not make pairs")
    if loss not in LOSSES:
        raise ParameterError(f"loss={loss!r} is not known: use one of {', '.join(LOSSES)}")
    if loss == "bpr" and n_negatives < 1:
        raise ParameterError("loss='bpr' compares with negatives: pass n_negatives >= 1")
    if rows is not None:
        _check_rows(rows, len(u), tables)
    pointers, known_items = _known(known, u, i, n_users, n_items, loss)
    sampler = Sampler(
        n_negatives, seed, np.array([0, n_items]), np.arange(n_items, dtype=np.int32),
        pointers, known_items, np.empty((0, n_negatives), np.int32),
    )  # fmt: skip
    hyper = Hyper(*map(dtype.type, (mean, learning_rate, regularization, _EPSILON)))
    total = dispatch.kernels("sgd").sgd_epoch(
        tables, squares, Examples(u, i, y, weights, ids), np.array([0, len(u)]), sampler, hyper,
        LOSSES.index(loss), epoch, (0, 1), rows, None,
    )  # fmt: skip
    return float(total / max(float(weights.sum()), np.finfo(dtype).tiny))


def rollback_mf(
    users: Any,
    items: Any,
    values: Any,
    user_factors: Any,
    item_factors: Any,
    user_biases: Any,
    item_biases: Any,
    *,
    n_epochs: int,
    learning_rate_decay: float = 1.0,
    learning_rate: float = 0.01,
    **options: Any,
) -> tuple[Tables, Record]:
    """Train for some epochs from the given tables, and return what every example did.

    Parameters
    ----------
    users, items, values, user_factors, item_factors, user_biases, item_biases
        As for `sgd_mf`; the tables are where training starts and are not changed.
    n_epochs : int
    learning_rate_decay : float
        Factor on the learning rate after every epoch.
    **options
        As for `sgd_mf`.

    Returns
    -------
    tables : Tables
        Where training ended.
    rows : Record
        Row changes of every example, in the order of `users`.
    """
    given = _tables(user_factors, item_factors, user_biases, item_biases, writable=False)
    tables = Tables(*(table.copy() for table in given))
    rows = new_rows(len(_array(users)), tables.user_factors.shape[1], tables.user_factors.dtype)
    for epoch in range(n_epochs):
        rate = learning_rate * learning_rate_decay**epoch
        sgd_mf(users, items, values, *tables, learning_rate=rate, rows=rows, epoch=epoch, **options)
    return tables, rows


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
    u, i = _codes(users, n_users, "users"), _codes(items, n_items, "items")
    if len(u) != len(i) or len(u) != len(rows.biases):
        raise DataError(f"{len(rows.biases)} rows, {len(u)} users and {len(i)} items do not match")
    count_sort = dispatch.kernels("grouping").count_sort
    return RowStore.build(
        recorded(rows, np.arange(len(u))),
        (count_sort(u, n_users), count_sort(i, n_items)),
        dtype=row_dtype,
        n_threads=dispatch.thread_count(n_threads),
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
    p, q = _array(user_factors), _array(item_factors)
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
    users = _codes(query_users, n_users, "query_users")
    items = _codes(query_items, n_items, "query_items")
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
    )
    return Influences(top.indices, top.values, top.totals)


def _array(given: Any) -> Array:
    """As a numpy array, sharing memory wherever the other side allows it."""
    if hasattr(given, "__dlpack__") and not hasattr(given, "__array__"):
        return np.from_dlpack(given)
    try:
        return np.asarray(given)
    except (TypeError, RuntimeError) as error:  # a tensor on a GPU, or one that needs gradients
        raise DataError(
            f"an array in CPU memory is needed, {type(given).__name__} cannot give one: {error}"
        ) from error


def _vector(given: Any, dtype: npt.DTypeLike, name: str, n: int | None = None) -> Array:
    vector = np.ascontiguousarray(_array(given), dtype=dtype)
    if vector.ndim != 1 or (n is not None and len(vector) != n):
        raise DataError(f"{name} has shape {vector.shape}, a vector of {n} is needed")
    if vector.dtype.kind == "f" and not np.isfinite(vector).all():
        row = int((~np.isfinite(vector)).argmax())
        raise DataError(f"{name} must be finite, but row {row} is {vector[row]}")
    return vector


def _codes(given: Any, n: int, name: str) -> npt.NDArray[np.int32]:
    array = _array(given)
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
        raise DataError(
            f"{name} must be a vector of integer codes, not {array.dtype} {array.shape}"
        )
    if array.size and (array.min() < 0 or array.max() >= n):
        raise DataError(f"{name} holds codes from {array.min()} to {array.max()}; 0 to {n - 1} fit")
    return np.ascontiguousarray(array, dtype=np.int32)


def _tables(
    user_factors: Any, item_factors: Any, user_biases: Any, item_biases: Any, *, writable: bool
) -> Tables:
    tables = Tables(*map(_array, (user_factors, item_factors, user_biases, item_biases)))
    p, q, b, c = tables
    shapes = " ".join(str(table.shape) for table in tables)
    if p.ndim != 2 or q.ndim != 2 or p.shape[1] != q.shape[1]:
        raise DataError(f"factors must be (n_users, k) and (n_items, k); the tables are {shapes}")
    if b.shape != p.shape[:1] or c.shape != q.shape[:1]:
        raise DataError(f"biases must be (n_users,) and (n_items,); the tables are {shapes}")
    if len({table.dtype for table in tables}) > 1 or p.dtype not in (np.float32, np.float64):
        dtypes = ", ".join(str(table.dtype) for table in tables)
        raise DataError(f"tables must all be float32 or all float64, not {dtypes}")
    for name, table in tables._asdict().items():
        if writable and not (table.flags.c_contiguous and table.flags.writeable):
            raise DataError(
                f"{name} is changed in place and must be C-contiguous and writable: pass a copy"
            )
    return tables


def _check_rows(rows: Record, n: int, tables: Tables) -> None:
    k = tables.user_factors.shape[1]
    for name, array, shape in zip(Record._fields, rows, ((n, k), (n, k), (n, 2)), strict=True):
        if array.shape != shape or array.dtype != tables.user_factors.dtype:
            raise DataError(
                f"rows.{name} is {array.dtype} {array.shape}; {tables.user_factors.dtype} {shape} "
                "is needed: make it with new_rows"
            )


def _known(
    known: tuple[Any, Any] | None, users: Array, items: Array, n_users: int, n_items: int, loss: str
) -> tuple[Array, Array]:
    if known is not None:
        return _vector(known[0], np.int64, "known[0]", n_users + 1), _codes(
            known[1], n_items, "known[1]"
        )
    if loss == "squared":
        return np.zeros(n_users + 1, np.int64), np.zeros(0, np.int32)
    count_sort = dispatch.kernels("grouping").count_sort
    pointers, order = count_sort(users, n_users, count_sort(items, n_items)[1])
    return pointers, items[order]
