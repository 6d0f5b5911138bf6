"""Training on arrays, with what every example did."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from fastinfluence import dispatch
from fastinfluence.errors import DataError, DeviceError, ParameterError
from fastinfluence.functional.arrays import as_array, as_codes, as_tables, as_vector
from fastinfluence.functional.homes import check_in_place, home_of
from fastinfluence.kernels.structures import Examples, Hyper, Record, Sampler, Tables
from fastinfluence.training.recipe import LOSSES

__all__ = ["new_rows", "rollback_mf", "sgd_mf"]

Array = npt.NDArray[Any]

_EPSILON = 1e-8


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
    DeviceError
        Tables, `squares` and `rows` do not lie on one device.
    """
    given = user_factors, item_factors, user_biases, item_biases
    backend = home_of(**Tables(*given)._asdict()).backend
    if backend.startswith("torch"):
        raise DeviceError(
            f"there are no kernels that train on {backend.removeprefix('torch:')}: move the tables "
            "to the CPU or to an NVIDIA GPU"
        )
    named = _named("squares", squares) | _named("rows", rows)
    check_in_place(backend, **Tables(*given)._asdict(), **named)
    memory = dispatch.memory(backend)
    tables = as_tables(*given, writable=True, backend=backend)
    n_users, n_items = tables.user_biases.shape[0], tables.item_biases.shape[0]
    dtype = tables.user_factors.dtype
    u, i = as_codes(users, n_users, "users"), as_codes(items, n_items, "items")
    y = as_vector(values, dtype, "values", len(u))
    weights = np.ones(len(u), dtype)
    if sample_weight is not None:
        weights = as_vector(sample_weight, dtype, "sample_weight", len(u))
    ids = np.arange(len(u))
    if example_ids is not None:
        ids = as_vector(example_ids, np.int64, "example_ids", len(u))
    if len(i) != len(u):
        raise DataError(f"{len(u)} users and {len(i)} items do not make pairs")
    if loss not in LOSSES:
        raise ParameterError(f"loss={loss!r} is not known: use one of {', '.join(LOSSES)}")
    if loss == "bpr" and n_negatives < 1:
        raise ParameterError("loss='bpr' compares with negatives: pass n_negatives >= 1")
    squares, rows = memory.put((squares, rows))
    if rows is not None:
        _check_rows(rows, len(u), tables)
    pointers, known_items = _known(known, u, i, n_users, n_items, loss)
    sampler = Sampler(
        n_negatives, seed, np.array([0, n_items]), np.arange(n_items, dtype=np.int32),
        pointers, known_items, np.empty((0, n_negatives), np.int32),
    )  # fmt: skip
    hyper = Hyper(*map(dtype.type, (mean, learning_rate, regularization, _EPSILON)))
    visits = memory.put((Examples(u, i, y, weights, ids), np.array([0, len(u)]), sampler))
    total = dispatch.kernels("sgd", backend).sgd_epoch(
        tables, squares, *visits, hyper, LOSSES.index(loss), epoch, (0, 1), rows, None
    )
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
    given = user_factors, item_factors, user_biases, item_biases
    home = home_of(**dict(zip(Tables._fields, given, strict=True)))
    start = as_tables(*given, writable=False)
    memory = dispatch.memory(home.backend)
    tables: Tables = memory.put(Tables(*(table.copy() for table in start)))
    rows = new_rows(len(as_array(users)), start.user_factors.shape[1], start.user_factors.dtype)
    rows = memory.put(rows)
    for epoch in range(n_epochs):
        rate = learning_rate * learning_rate_decay**epoch
        sgd_mf(users, items, values, *tables, learning_rate=rate, rows=rows, epoch=epoch, **options)
    return home.give(tables), home.give(rows)


def _named(what: str, arrays: Any) -> dict[str, Any]:
    fields = {} if arrays is None else arrays._asdict()
    return {f"{what}.{name}": array for name, array in fields.items()}


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
        return as_vector(known[0], np.int64, "known[0]", n_users + 1), as_codes(
            known[1], n_items, "known[1]"
        )
    if loss == "squared":
        return np.zeros(n_users + 1, np.int64), np.zeros(0, np.int32)
    count_sort = dispatch.kernels("grouping").count_sort
    pointers, order = count_sort(users, n_users, count_sort(items, n_items)[1])
    return pointers, items[order]
