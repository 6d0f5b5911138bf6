"""Reading what a caller wants explained: pairs of raw ids in any of the usual shapes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from fastinfluence.data import Interactions
from fastinfluence.errors import DataError

__all__ = ["query_codes"]

Codes = npt.NDArray[np.int32]


def query_codes(queries: Any, data: Interactions) -> tuple[Codes, Codes]:
    """Codes (users, items), each (n,), of the pairs to explain.

    Parameters
    ----------
    queries : sequence of (user, item) pairs, (n, 2) array, table or Interactions
        Raw ids as in the training data. A table (pandas, polars, Arrow, mapping of columns)
        has columns ``user`` and ``item``, or exactly two columns in that order.

    Raises
    ------
    DataError
        The queries are not pairs.
    UnknownIdError
        An id is not in the training data.
    """
    if isinstance(queries, Interactions):
        users: Any = queries.user_ids[queries.users]
        items: Any = queries.item_ids[queries.items]
    elif _is_table(queries):
        named = Interactions.from_table(queries, **_columns(queries), duplicates="keep")
        users, items = named.user_ids[named.users], named.item_ids[named.items]
    else:
        users, items = _pairs(queries)
    return data.user_index(users), data.item_index(items)


def _is_table(queries: Any) -> bool:
    return isinstance(queries, Mapping) or hasattr(queries, "__arrow_c_stream__") or hasattr(
        queries, "columns"
    )  # fmt: skip


def _columns(table: Any) -> dict[str, str]:
    names = list(table) if isinstance(table, Mapping) else list(getattr(table, "column_names", []))
    names = names or [str(name) for name in getattr(table, "columns", [])]
    return {"user": "user", "item": "item"} if {"user", "item"} <= set(names) else {}


def _pairs(queries: Any) -> tuple[Any, Any]:
    if isinstance(queries, np.ndarray):
        if queries.ndim != 2 or queries.shape[1] != 2:
            raise DataError(f"an array of queries has the shape (n, 2), not {queries.shape}")
        return queries[:, 0], queries[:, 1]
    try:
        pairs = [tuple(pair) for pair in queries]
    except TypeError:
        pairs = []
    if pairs and all(len(pair) == 2 for pair in pairs) and not isinstance(queries[0], str):
        return [user for user, _ in pairs], [item for _, item in pairs]
    if isinstance(queries, list | tuple) and not queries:
        return [], []
    raise DataError(
        "queries are a sequence of (user, item) pairs, an (n, 2) array, a table with columns "
        f"'user' and 'item', or Interactions; not {type(queries).__name__} {queries!r:.60}"
    )
