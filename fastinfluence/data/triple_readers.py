"""Reading knowledge graphs from files."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from fastinfluence.data.readers import Source, as_source, naming, read_columns, saved_parts
from fastinfluence.data.tables import Column, triple_columns
from fastinfluence.data.text import Choose, read_names
from fastinfluence.data.triples import TripleDuplicates, Triples

__all__ = ["read_triples"]

# A first line of these words names the columns; files of triples seldom have a header.
_HEADERS = (
    ("head", "relation", "tail"),
    ("subject", "predicate", "object"),
    ("source", "relation", "target"),
    ("h", "r", "t"),
    ("s", "p", "o"),
)


def read_triples(
    path: Source,
    *,
    head: Column | None = None,
    relation: Column | None = None,
    tail: Column | None = None,
    validation: Source | None = None,
    test: Source | None = None,
    sep: str | None = None,
    header: bool | None = None,
    duplicates: TripleDuplicates = "error",
) -> Triples:
    """Read (head, relation, tail) rows from a file, and held-out ones from two more.

    Parameters
    ----------
    path : path
        ``.parquet`` (needs the extra ``arrow``), ``.npz``, or delimited text, gzipped or not.
        Names in a text file stay strings as they are written, numbers too (``"00260881"``).
        An ``.npz`` written by `Triples.to_npz` needs no further word.
    head, relation, tail : str or int, optional
        Columns by name or position. May all be left out for a file of exactly three columns in
        this order.
    validation, test : path, optional
        Files of the same columns. What they hold and training does not is kept and counted.
    sep : str, optional
        Separator of a text file; found in the first line (tab, ``::``, comma, semicolon, bar).
    header : bool, optional
        Whether the first line of a text file names the columns. If not told, it does where
        columns are asked for by name, and where it reads "head, relation, tail" or the like.
    duplicates : {"error", "first", "keep"}
        See `Triples.from_arrays`.

    Raises
    ------
    DataError
        A file that cannot be read, is damaged, truncated, ragged (a tab inside a name) or
        empty, a missing column, rows that cannot be used: the file is named, and the line or
        row.
    MissingExtraError
        A Parquet file without pyarrow.
    """

    source = as_source(path)
    if head is relation is tail is validation is test is None:
        with naming(source):
            if (parts := saved_parts(source, "entity_ids", "relation_ids")) is not None:
                return Triples.from_parts(parts)

    def choose(names: Sequence[str]) -> list[int]:
        return triple_columns(names, head, relation, tail)

    by_name = any(isinstance(column, str) for column in (head, relation, tail))
    read = partial(_read, choose=choose, by_name=by_name, sep=sep, header=header)
    heads, relations, tails = read(source)
    held_out = {
        split: None if path is None else read(as_source(path))
        for split, path in (("validation", validation), ("test", test))
    }
    with naming(source):
        return Triples.from_arrays(heads, relations, tails, **held_out, duplicates=duplicates)


def _read(source: Path | zipfile.Path, choose: Choose, **options: Any) -> tuple[Any, ...]:
    parse = partial(read_names, is_header=_is_header, **options)
    with naming(source):
        return tuple(read_columns(source, choose, parse).values())


def _is_header(cells: list[str]) -> bool:
    return tuple(cell.lower() for cell in cells) in _HEADERS
