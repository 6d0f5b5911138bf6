"""Reading what a caller wants explained: pairs of raw ids in any of the usual shapes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from fastinfluence.data import Interactions
from fastinfluence.data.tables import interaction_columns, table_columns
from fastinfluence.errors import DataError

__all__ = ["query_codes"]

Codes = npt.NDArray[np.int32]


def query_codes(queries: Any, data: Interactions) -> tuple[Codes, Codes]:
    """Codes (users, items), each (n,), of the pairs to explain.

    Parameters
    ----------
    queries : sequence of (user, item) pairs, (n, 2) array, table or Interactions
        Raw ids as in the training data. A table (pandas, polars, Arrow, mapping of columns)
        has columns ``user`` and ``item``, or just two or three (the third is not read).

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
        names, column_at = table_columns(queries)
        named = {"user", "item"} <= set(names)
        user, item = ("user", "item") if named else (None, None)
        users, items = map(column_at, interaction_columns(names, user, item, None)[:2])
    else:
        users, items = _pairs(queries)
    user_codes, item_codes = data.user_index(users), data.item_index(items)
    if len(user_codes) != len(item_codes):
        raise DataError(f"the queries have {len(user_codes):,} users but {len(item_codes):,} items")
    return user_codes, item_codes


def _is_table(queries: Any) -> bool:
    return isinstance(queries, Mapping) or hasattr(queries, "__arrow_c_stream__") or hasattr(
        queries, "columns"
    )  # fmt: skip


def _pairs(queries: Any) -> tuple[Any, Any]:
    if isinstance(queries, np.ndarray):
        if queries.ndim != 2 or queries.shape[1] != 2:
            raise DataError(f"an array of queries has the shape (n, 2), not {queries.shape}")
        return queries[:, 0], queries[:, 1]
    if isinstance(queries, Iterable) and not isinstance(queries, str):
        pairs = list(queries)  # zip(users, items) can be gone through only once
        if all(_is_pair(pair) for pair in pairs):
            return [user for user, _ in pairs], [item for _, item in pairs]
    raise DataError(
        "queries are a sequence of (user, item) pairs, an (n, 2) array, a table with columns "
        f"'user' and 'item', or Interactions; not {type(queries).__name__} {queries!r:.60}"
    )


def _is_pair(pair: Any) -> bool:
    return isinstance(pair, Sequence | np.ndarray) and not isinstance(pair, str) and len(pair) == 2
