"""The parts of a knowledge graph, training and held-out triples, brought to codes together."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from fastinfluence.data.ids import MAX_CODES, Codes, IdMap, encode_together
from fastinfluence.data.rows import checked_codes
from fastinfluence.errors import DataError

__all__ = [
    "COLUMNS",
    "SPLITS",
    "TRAINING",
    "Columns",
    "Rows",
    "encode_parts",
    "saved_rows",
    "three_columns",
]

Columns: TypeAlias = tuple[object, object, object]  # raw heads, relations, tails
Rows: TypeAlias = tuple[Codes, Codes, Codes]
Given: TypeAlias = tuple[object, object]  # ids and labels that the caller gives, or None

TRAINING = "training"
SPLITS = ("validation", "test")
COLUMNS = ("heads", "relations", "tails")


def three_columns(given: object, split: str) -> Columns:
    """Heads, relations and tails of a split: a tuple of three columns, or rows (m, 3)."""
    if isinstance(given, tuple) and len(given) == 3:
        return given
    # as objects: numpy would turn a row of strings and integers into strings
    rows = np.array(given, dtype=None if isinstance(given, np.ndarray) else object)
    if rows.size == 0:
        _refuse_empty(split)
    if rows.ndim != 2 or rows.shape[1] != 3:
        raise DataError(
            f"{split} must be a tuple of heads, relations and tails, or triples (n, 3), not of "
            f"shape {rows.shape}"
        )
    return rows[:, 0], rows[:, 1], rows[:, 2]


def encode_parts(
    parts: Mapping[str, Columns], entities: Given, relations: Given
) -> tuple[dict[str, Rows], IdMap, IdMap]:
    """Codes of every part over one map of entities and one of relations, training's ids first."""
    columns = {
        part: dict(zip(_column_names(part), given, strict=True)) for part, given in parts.items()
    }
    ends, links = [], []
    for held in columns.values():
        (head, heads), (relation, named), (tail, tails) = held.items()
        ends.append({head: heads, tail: tails})
        links.append({relation: named})
    codes, entity_map = encode_together(ends, "entity", *entities)
    relation_codes, relation_map = encode_together(links, "relation", *relations)
    codes |= relation_codes
    rows = {part: _checked_rows(part, codes) for part in parts}
    return rows, entity_map, relation_map


def saved_rows(
    parts: Mapping[str, npt.NDArray[Any]], prefix: str, sizes: tuple[int, int, int]
) -> Rows | None:
    """The columns saved under a prefix, checked against the number of codes; None without any."""
    names = [prefix + column for column in COLUMNS]
    held = [name for name in names if name in parts]
    if not held:
        return None
    if len(held) < len(names):
        raise DataError(f"saved triples hold {held[0]} but not all of {', '.join(names)}")
    heads, relations, tails = (
        checked_codes(parts[name], name, n) for name, n in zip(names, sizes, strict=True)
    )
    if not heads.shape == relations.shape == tails.shape:
        raise DataError(f"saved {', '.join(names)} differ in length")
    return heads, relations, tails


def _column_names(part: str) -> list[str]:
    """What error messages call the columns of a part."""
    return list(COLUMNS) if part == TRAINING else [f"{part} {column}" for column in COLUMNS]


def _checked_rows(part: str, codes: Mapping[str, Codes]) -> Rows:
    names = _column_names(part)
    heads, relations, tails = rows = [codes[name] for name in names]
    n = len(heads)
    for name, column in zip(names[1:], rows[1:], strict=True):
        if len(column) != n:
            raise DataError(f"{names[0]} has {n:,} rows but {name} has {len(column):,}")
    if n == 0:
        _refuse_empty(part)
    if n > MAX_CODES:
        raise DataError(f"{n:,} {part} triples are more than {MAX_CODES:,}, the most that fit")
    return heads, relations, tails


def _refuse_empty(part: str) -> None:
    if part == TRAINING:
        raise DataError("there are no triples: the data are empty")
    raise DataError(f"{part} is empty: give it a triple, or leave it out")
