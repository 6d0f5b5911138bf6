"""Reading what a caller wants explained: pairs of raw ids in any of the usual shapes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from fastinfluence.data import Interactions
from fastinfluence.data.tables import interaction_columns, table_columns
from fastinfluence.errors import DataError

__all__ = ["columns_of_rows", "is_table", "query_codes"]

Codes = npt.NDArray[np.int32]

_PAIRS = (
    "queries are a sequence of (user, item) pairs, an (n, 2) array, a table with columns 'user' "
    "and 'item', or Interactions"
)


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
    elif is_table(queries):
        names, column_at = table_columns(queries)
        named = {"user", "item"} <= set(names)
        user, item = ("user", "item") if named else (None, None)
        users, items = map(column_at, interaction_columns(names, user, item, None)[:2])
    else:
        users, items = columns_of_rows(queries, 2, _PAIRS)
    user_codes, item_codes = data.user_index(users), data.item_index(items)
    if len(user_codes) != len(item_codes):
        raise DataError(f"the queries have {len(user_codes):,} users but {len(item_codes):,} items")
    return user_codes, item_codes


def is_table(queries: Any) -> bool:
    """Whether `queries` has columns of its own."""
    return isinstance(queries, Mapping) or hasattr(queries, "__arrow_c_stream__") or hasattr(
        queries, "columns"
    )  # fmt: skip


def columns_of_rows(queries: Any, width: int, wanted: str) -> list[Any]:
    """Columns of an (n, width) array, or of a sequence of n tuples, lists or rows of arrays.

    Parameters
    ----------
    queries : anything
    width : int
    wanted : str
        What queries should be, for the DataError where they are something else.
    """
    if isinstance(queries, np.ndarray):
        if queries.ndim != 2 or queries.shape[1] != width:
            raise DataError(f"an array of queries has the shape (n, {width}), not {queries.shape}")
        return [queries[:, column] for column in range(width)]
    if isinstance(queries, Iterable) and not isinstance(queries, str):
        rows = list(queries)  # zip(users, items) can be gone through only once
        if all(_is_row(row, width) for row in rows):
            return [[row[column] for row in rows] for column in range(width)]
    raise DataError(f"{wanted}; not {type(queries).__name__} {queries!r:.60}")


def _is_row(row: Any, width: int) -> bool:
    is_sequence = isinstance(row, Sequence | np.ndarray) and not isinstance(row, str)
    return is_sequence and len(row) == width
