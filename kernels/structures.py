"""The groups of arrays that kernels take: plain named tuples, shared by all backends.

They live apart from the kernels so that the Python layers can build them without importing a
compiler.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy.typing as npt

__all__ = [
    "Examples",
    "Exclusions",
    "Hyper",
    "Queries",
    "Record",
    "Sampler",
    "Side",
    "Tables",
    "Top",
]

Array = npt.NDArray[Any]


class Tables(NamedTuple):
    """Parameters, or anything shaped like them (Adagrad's sums of squared gradients)."""

    user_factors: Array  # (n_users, k)
    item_factors: Array  # (n_items, k)
    user_biases: Array  # (n_users,)
    item_biases: Array  # (n_items,)


class Examples(NamedTuple):
    """Training examples in the order of their visits."""

    users: Array  # (n,) int32
    items: Array  # (n,) int32
    values: Array  # (n,) dtype of the tables
    weights: Array  # (n,) dtype of the tables; 0 skips the example
    ids: Array  # (n,) int64, keys of the random draws


class Sampler(NamedTuple):
    """Where negatives come from: pool g serves the blocks whose item group is g."""

    n_negatives: int
    seed: int
    pool_pointers: Array  # (n_groups + 1,) int64
    pool: Array  # (n_items,) int32, items of group 0, group 1, ...
    known_pointers: Array  # (n_users + 1,) int64
    known_items: Array  # (n,) int32, ascending within a user


class Hyper(NamedTuple):
    """Scalars of the step, in the dtype of the tables."""

    mean: Any
    learning_rate: Any
    regularization: Any
    epsilon: Any  # Adagrad only


class Record(NamedTuple):
    """Row changes added up per example, in the order of visits (Gradient Rollback)."""

    user_rows: Array  # (n, k)
    item_rows: Array  # (n, k)
    biases: Array  # (n, 2): user, item


class Side(NamedTuple):
    """Rows of the examples of every user (or every item), packed for the read-out."""

    rows: Array  # (n * d,) float32, float64, or bfloat16 in uint16
    pointers: Array  # (n_groups + 1,) int64
    order: Array  # (n,) int64: training index of each row, ascending in a group


class Queries(NamedTuple):
    """Queries sorted by group; query number `ids[s]` reads out with ``vectors[columns[s]]``."""

    ids: Array  # (m,) int64
    columns: Array  # (m,) int32
    vectors: Array  # (n_columns, d)


class Exclusions(NamedTuple):
    """Rows a query must not see: ``places[starts[id] : stops[id]]``, places in the store."""

    starts: Array  # (n_queries,) int64
    stops: Array  # (n_queries,) int64
    places: Array  # int64


class Top(NamedTuple):
    """Lists of the best k, by query id, changed in place."""

    values: Array  # (n_queries, k), -inf where empty
    indices: Array  # (n_queries, k) int32, -1 where empty
    totals: Array  # (n_queries,) float64: sum of |score| over all candidates; or (0,)
