"""Readers of files: delimited text, Parquet, NPZ."""

from __future__ import annotations

import gzip
import os
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import IO, Any, TypeAlias, cast

import numpy as np
import numpy.typing as npt

from fastinfluence.data.interactions import Duplicates, Interactions
from fastinfluence.data.tables import Column, interaction_columns, positions
from fastinfluence.data.text import Choose, read_text
from fastinfluence.errors import DataError, MissingExtraError

__all__ = [
    "Source",
    "as_source",
    "naming",
    "read_columns",
    "read_interactions",
    "read_table",
    "saved_parts",
]

Array: TypeAlias = npt.NDArray[Any]
Source: TypeAlias = str | os.PathLike[str] | zipfile.Path


def read_interactions(
    path: Source,
    *,
    user: Column | None = None,
    item: Column | None = None,
    value: Column | None = None,
    sep: str | None = None,
    header: bool | None = None,
    duplicates: Duplicates = "error",
) -> Interactions:
    """Read (user, item, value) rows from a file.

    Parameters
    ----------
    path : path
        ``.parquet`` (needs the extra ``arrow``), ``.npz``, or delimited text, gzipped or not.
        An ``.npz`` written by `Interactions.to_npz` needs no further word.
    user, item, value : str or int, optional
        Columns by name or position. May all be left out for a file of exactly two columns
        (user, item) or three (user, item, value).
    sep : str, optional
        Separator of a text file; found in the first line (tab, ``::``, comma, semicolon, bar).
    header : bool, optional
        Whether the first line of a text file names the columns; found out if not told.
    duplicates : {"error", "last", "sum", "keep"}
        See `Interactions.from_arrays`.

    Raises
    ------
    DataError
        A file that cannot be read, is damaged, truncated, ragged or empty, a missing column,
        rows that cannot be used: the file is named, and the line or row.
    MissingExtraError
        A Parquet file without pyarrow.
    """
    source = as_source(path)
    by_name = any(isinstance(column, str) for column in (user, item, value))

    def choose(names: Sequence[str]) -> list[int]:
        return interaction_columns(names, user, item, value)

    with naming(source):
        if (
            user is item is value is None
            and (parts := saved_parts(source, "user_ids", "item_ids")) is not None
        ):
            return Interactions.from_parts(parts)
        parse = partial(read_text, by_name=by_name, sep=sep, header=header, encoding="utf-8")
        table = read_columns(source, choose, parse)
        return Interactions.from_arrays(*table.values(), duplicates=duplicates)


def read_table(
    path: Source,
    columns: Sequence[Column] | None = None,
    *,
    sep: str | None = None,
    header: bool | None = None,
    encoding: str = "utf-8",
) -> dict[str, Array]:
    """Read columns (n,) of a file: int64, float64 or str, in the order asked for.

    Parameters
    ----------
    path : path
        As in `read_interactions`.
    columns : sequence of str or int, optional
        Columns by name or position; all of them by default. Without a header the columns are
        called ``"0"``, ``"1"``, ...
    sep, header
        As in `read_interactions`.
    encoding : str
        Of a text file.

    Raises
    ------
    DataError, MissingExtraError
        As in `read_interactions`.
    """
    source = as_source(path)

    def choose(names: Sequence[str]) -> list[int]:
        return list(range(len(names))) if columns is None else positions(names, columns)

    by_name = columns is not None and any(isinstance(column, str) for column in columns)
    parse = partial(read_text, by_name=by_name, sep=sep, header=header, encoding=encoding)
    with naming(source):
        return read_columns(source, choose, parse)


def as_source(path: Source) -> Path | zipfile.Path:
    """A path to a file, or to one inside a zip."""
    return path if isinstance(path, zipfile.Path) else Path(path)


@contextmanager
def naming(source: Path | zipfile.Path) -> Iterator[None]:
    """Turn what can go wrong with a file into a DataError that names it."""
    try:
        yield
    except DataError as error:
        raise DataError(f"{source}: {error}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{source}: not {error.encoding} text ({error.reason})") from error
    except FileNotFoundError as error:
        raise DataError(f"{source}: there is no such file") from error
    except (EOFError, zlib.error, zipfile.BadZipFile, gzip.BadGzipFile) as error:
        raise DataError(f"{source}: truncated or damaged ({error})") from error
    except OSError as error:
        raise DataError(f"{source}: cannot be read ({error.strerror or error})") from error


def read_columns(
    source: Path | zipfile.Path, choose: Choose, parse: Callable[[Any, Choose], Mapping[str, Any]]
) -> dict[str, Any]:
    """Read the columns that `choose` picks from the names; `parse` does so for a text file."""

    def choose_distinct(names: Sequence[str]) -> list[int]:
        chosen = choose(names)
        held = [names[j] for j in chosen]
        repeated = next((name for name in held if held.count(name) > 1), None)
        if repeated is not None:
            raise DataError(f"two columns are called {repeated!r}")
        return chosen

    if source.suffix == ".parquet":
        return _read_parquet(source, choose_distinct)
    with cast(Any, source.open("rb")) as raw:
        if source.suffix == ".npz":
            return _read_npz(raw, choose_distinct)
        packed = raw.peek(2)[:2] == b"\x1f\x8b"
        return dict(parse(gzip.open(raw) if packed else raw, choose_distinct))


def _read_parquet(source: Path | zipfile.Path, choose: Choose) -> dict[str, Array]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise MissingExtraError("reading Parquet", "pyarrow", "arrow") from None
    try:
        with source.open("rb") as raw, parquet.ParquetFile(raw) as file:
            names = file.schema_arrow.names
            wanted = [names[j] for j in choose(names)]
            table = file.read(columns=wanted)
            return {name: _plain(table.column(name).to_numpy()) for name in wanted}
    except pyarrow.ArrowException as error:
        raise DataError(f"truncated or damaged Parquet ({error})") from error


def _read_npz(raw: IO[bytes], choose: Choose) -> dict[str, Array]:
    file = _open_npz(raw)
    names = list(file)
    return {names[j]: _plain(_load(file, names[j])) for j in choose(names)}


def saved_parts(source: Path | zipfile.Path, *needed: str) -> dict[str, Array] | None:
    """The arrays of an NPZ written by ``to_npz``, told by some it must hold; None for any other."""
    if source.suffix != ".npz":
        return None
    with source.open("rb") as raw:
        file = _open_npz(raw)
        return {name: _load(file, name) for name in file} if set(needed) <= set(file) else None


def _open_npz(raw: IO[bytes]) -> Mapping[str, Array]:
    try:
        file = np.load(raw, allow_pickle=False)
    except ValueError as error:
        raise DataError("not an NPZ file") from error
    if not isinstance(file, Mapping):
        raise DataError("a single array, not an NPZ file of several")
    return file


def _load(file: Mapping[str, Array], name: str) -> Array:
    try:
        return file[name]
    except ValueError as error:
        raise DataError(f"array {name!r} cannot be read ({error})") from error


def _plain(array: Array) -> Array:
    """Any column as int64, float64 or str; a missing string becomes the empty one."""
    kind = array.dtype.kind
    if kind in "ib" or (kind == "u" and array.max(initial=0) <= np.iinfo(np.int64).max):
        return array.astype(np.int64)
    if kind == "f":
        return array.astype(np.float64)
    if kind == "O":
        return np.array([_as_str(cell) for cell in array], dtype=np.str_)
    return array.astype(np.str_)


def _as_str(cell: object) -> str:
    if isinstance(cell, bytes):
        return cell.decode()
    return "" if cell is None else str(cell)
