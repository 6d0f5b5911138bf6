"""Columns out of whatever table the caller holds: no library is imported unless handed in."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from fastinfluence.errors import DataError, MissingExtraError

__all__ = ["Column", "interaction_columns", "positions", "table_columns", "triple_columns"]

Column: TypeAlias = str | int


def table_columns(table: Any) -> tuple[list[Any], Any]:
    """Names of a table's columns, and a function from position to column (n,).

    Raises
    ------
    DataError
        `table` is nothing that has columns.
    MissingExtraError
        It speaks only Arrow, and pyarrow is not installed.
    """
    if isinstance(table, Mapping):
        names = list(table)
        return names, lambda position: table[names[position]]
    if type(table).__name__ == "LazyFrame":
        raise DataError("a LazyFrame has no rows yet: pass its collect()")
    is_frame = hasattr(type(table), "columns") and not hasattr(type(table), "column_names")
    if is_frame and hasattr(table, "__getitem__"):  # pandas, polars: need no pyarrow
        names = list(table.columns)
        return names, lambda position: table[names[position]].to_numpy()
    if hasattr(table, "__arrow_c_stream__") or hasattr(table, "__arrow_c_array__"):
        try:
            import pyarrow
        except ImportError:
            raise MissingExtraError("reading an Arrow table", "pyarrow", "arrow") from None
        arrow = pyarrow.table(table)
        return arrow.column_names, lambda position: arrow.column(position).to_numpy()
    raise DataError(
        f"a {type(table).__name__} is no table: pass a pandas or polars frame, an Arrow table, "
        "or a dict of arrays"
    )


def positions(names: Sequence[Any], wanted: Sequence[Column]) -> list[int]:
    """Positions of columns asked for by name or by position.

    Raises
    ------
    DataError
        A column that does not exist (those that do are listed), a name held by two columns, or
        one column asked for twice.
    """
    found = []
    for column in wanted:
        if isinstance(column, str):
            if names.count(column) > 1:
                raise DataError(f"two columns are called {column!r}: ask for one by position")
            if column not in names:
                raise DataError(f"there is no column {column!r}; {_existing(names)}")
            found.append(names.index(column))
        else:
            if not 0 <= column < len(names):
                raise DataError(f"there is no column at position {column}; {_existing(names)}")
            found.append(int(column))
    twice = [position for position, n in Counter(found).items() if n > 1]
    if twice:
        raise DataError(f"column {names[twice[0]]!r} is asked for twice")
    return found


def interaction_columns(
    names: Sequence[Any], user: Column | None, item: Column | None, value: Column | None
) -> list[int]:
    """Positions of the user, item and (where there is one) value column."""
    if user is not None and item is not None:
        return positions(names, [user, item] if value is None else [user, item, value])
    if user is None and item is None and value is None and len(names) in (2, 3):
        return list(range(len(names)))
    raise DataError(
        "say which columns hold users and items (user=..., item=..., and value=... for ratings); "
        + _existing(names)
    )


def triple_columns(
    names: Sequence[Any], head: Column | None, relation: Column | None, tail: Column | None
) -> list[int]:
    """Positions of the head, relation and tail column."""
    if head is not None and relation is not None and tail is not None:
        return positions(names, [head, relation, tail])
    if head is relation is tail is None and len(names) == 3:
        return [0, 1, 2]
    told = "" if len(names) == 3 else f"of {len(names)} columns "
    raise DataError(
        f"say which {told}hold heads, relations and tails (head=..., relation=..., tail=...); "
        + _existing(names)
    )


def _existing(names: Sequence[Any]) -> str:
    listed = ", ".join(repr(name) for name in names[:30])
    return f"the columns are {listed}" + (f" and {len(names) - 30} more" * (len(names) > 30))
