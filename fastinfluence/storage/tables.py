"""Named columns as the tables of other libraries, and as files.

Text columns repeat few names over many rows: they come as `Encoded` and are spread out only
where the other library knows nothing better.
"""

from __future__ import annotations

import importlib
import io
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from fastinfluence.errors import MissingExtraError, ParameterError
from fastinfluence.storage.atomic import atomic_file

_NEEDS_QUOTES = re.compile('[,"\r\n]')

Array: TypeAlias = npt.NDArray[Any]


class Encoded(NamedTuple):
    """A text column: ``names[codes]``."""

    codes: npt.NDArray[np.integer[Any]]
    names: Array


Table: TypeAlias = Mapping[str, Array | Encoded]


def encoded(names: Array, codes: npt.NDArray[np.integer[Any]]) -> Encoded:
    """Encode ``names[codes]``, keeping only the names that occur."""
    used = np.zeros(len(names), dtype=bool)
    used[codes] = True
    position = np.cumsum(used, dtype=np.int32) - 1
    return Encoded(position[codes], names[used])


def to_dict(table: Table) -> dict[str, Array]:
    """Return plain numpy columns."""
    return {
        name: column.names[column.codes] if isinstance(column, Encoded) else column
        for name, column in table.items()
    }


def to_pandas(table: Table) -> Any:
    """Return a `pandas.DataFrame`."""
    pd = import_extra("pandas", "a pandas.DataFrame")
    return pd.DataFrame(
        {
            name: pd.Series(column.names).array.take(column.codes)
            if isinstance(column, Encoded)
            else column
            for name, column in table.items()
        }
    )


def to_polars(table: Table) -> Any:
    """Return a `polars.DataFrame`."""
    pl = import_extra("polars", "a polars.DataFrame")
    return pl.DataFrame(
        {
            name: pl.Series(column.names, dtype=pl.String).gather(column.codes)
            if isinstance(column, Encoded)
            else column
            for name, column in table.items()
        }
    )


def to_arrow(table: Table) -> Any:
    """Return a `pyarrow.Table`, text columns dictionary-encoded."""
    pa = import_extra("pyarrow", "an Arrow table", extra="arrow")
    return pa.table(
        {
            name: pa.DictionaryArray.from_arrays(
                pa.array(column.codes), pa.array(column.names, pa.string())
            )
            if isinstance(column, Encoded)
            else pa.array(column)
            for name, column in table.items()
        }
    )


def write_parquet(table: Table, path: Path) -> None:
    """Write a Parquet file, whole or not at all."""
    arrow = to_arrow(table)
    parquet = importlib.import_module("pyarrow.parquet")
    with atomic_file(path) as file:
        parquet.write_table(arrow, file)


def write_csv(table: Table, path: Path) -> None:
    """Write a CSV file in UTF-8 with a header, whole or not at all."""
    cells = [_csv_cells(column) for column in table.values()]
    with atomic_file(path) as file:
        text = io.TextIOWrapper(file, encoding="utf-8", newline="")
        text.write(",".join(table) + "\n")
        text.writelines(",".join(row) + "\n" for row in zip(*cells, strict=True))
        text.detach()  # flushes, and leaves the file open


def _csv_cells(column: Array | Encoded) -> list[str]:
    """Return the cells of a column, each distinct value formatted and quoted once."""
    if isinstance(column, Encoded):
        codes, words = column.codes, [_quoted(name) for name in column.names.tolist()]
    else:
        values, codes = np.unique(column, return_inverse=True)
        # astype(str) gives float32 its own shortest digits, where tolist() would widen it.
        words = values.astype(str).tolist()
    cells: list[str] = np.array(words, dtype=object)[codes].tolist()
    return cells


def _quoted(text: str) -> str:
    return '"' + text.replace('"', '""') + '"' if _NEEDS_QUOTES.search(text) else text


def import_extra(package: str, feature: str, *, extra: str | None = None) -> Any:
    """Import an optional dependency, or say how to install it."""
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise MissingExtraError(feature, package.partition(".")[0], extra) from error


def suffix_of(path: Path, known: tuple[str, ...]) -> str:
    """Return the suffix of a file to write, which must be one of `known`."""
    suffix = path.suffix.lower()
    if suffix not in known:
        raise ParameterError(
            f"cannot save to {path.name!r}: its suffix must be one of {', '.join(known)}"
        )
    return suffix
