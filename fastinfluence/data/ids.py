"""Raw ids, strings or integers as the user's file has them, and their codes 0, 1, 2, ..."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from numbers import Integral, Real
from typing import Any, NamedTuple, TypeAlias, cast

import numpy as np
import numpy.typing as npt

from fastinfluence.errors import DataError, UnknownIdError, plural

__all__ = ["Coded", "Codes", "IdMap", "Ids", "as_ids", "encode", "encode_together", "freeze"]

Codes: TypeAlias = npt.NDArray[np.int32]
Ids: TypeAlias = npt.NDArray[Any]  # int64 or str

MAX_CODES = np.iinfo(np.int32).max

# Beyond this difflib would take longer than a person waits for an error message.
_MAX_COMPARED = 20_000

_MISSING = "is missing: an id cannot be empty"


class Coded(NamedTuple):
    """A column of names by its distinct ones: row i holds ``ids[codes[i]]``.

    The names of a knowledge graph are long and few: as an array of strings, every row as wide
    as the longest name, they would take many times the memory.
    """

    codes: Codes
    ids: Ids

    @classmethod
    def of(cls, codes: npt.NDArray[np.integer[Any]], names: Sequence[str]) -> Coded:
        """Names (n_names,) that rows hold by their position; those that no row holds go."""
        used, ranks = np.unique(codes, return_inverse=True)
        return cls(ranks.astype(np.int32), np.array(names, np.str_)[used])


def freeze(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The same array, marked read-only."""
    array.flags.writeable = False
    return array


def as_ids(raw: object, name: str) -> Ids:
    """Bring raw ids to int64 or str.

    Parameters
    ----------
    raw : array_like, (n,)
        Integers, strings, or floats that are whole numbers (a table column with a missing
        value arrives as floats).
    name : str
        What error messages call the array: ``"users"``, ...

    Returns
    -------
    (n,) int64 or str

    Raises
    ------
    DataError
        Not one-dimensional, of another type, of mixed types, or a missing id (the first is
        named).
    """
    array = _as_array(raw, name)
    if array.ndim != 1:
        raise DataError(f"{name} must be one-dimensional, not of shape {array.shape}")
    kind = array.dtype.kind
    if array.size == 0:
        return np.empty(0, np.int64)
    if kind == "i":
        return array.astype(np.int64)
    if kind == "u":
        if array.max() > np.iinfo(np.int64).max:
            raise DataError(f"{name} holds integers too large for int64: pass them as strings")
        return array.astype(np.int64)
    if kind == "f":
        return _whole_numbers(array, name)
    if kind == "U":
        _refuse(array == "", array, name, _MISSING)
        return array
    if kind in "OT":
        return _from_objects(array.tolist(), name)
    raise DataError(f"{name} must be integers or strings, not {array.dtype}")


def encode(
    raw: object, kind: str, ids: object = None, labels: object = None
) -> tuple[Codes, IdMap]:
    """Codes of raw ids, and the map between the two.

    Without `ids` the distinct raw ids in sorted order are the map, so that it does not depend
    on the order of the rows. With `ids`, `raw` holds codes already.
    """
    name = plural(kind)
    codes, id_map = encode_together([{name: raw}], kind, ids, labels)
    return codes[name], id_map


def encode_together(
    groups: Sequence[Mapping[str, object]], kind: str, ids: object = None, labels: object = None
) -> tuple[dict[str, Codes], IdMap]:
    """Codes of several columns of raw ids over one map.

    Parameters
    ----------
    groups : sequence of mappings
        Columns (n,), raw or `Coded`, by the names that error messages call them. The map holds
        the ids of the first group in sorted order, and behind them those that only later
        groups hold.
    kind, ids, labels
        As in `encode`.

    Returns
    -------
    dict of (n,) int32, IdMap
        Codes by column name, read-only.
    """
    if ids is not None:
        id_map = IdMap.build(kind, ids, labels)
        raw_columns = {name: raw for group in groups for name, raw in group.items()}
        return {name: _as_codes(raw, name, id_map) for name, raw in raw_columns.items()}, id_map
    coded = [{name: _coded(raw, name) for name, raw in group.items()} for group in groups]
    columns = {name: column for group in coded for name, column in group.items()}
    _refuse_two_types(columns, kind)
    known, *later = ([column.ids for column in group.values()] for group in coded)
    distinct = _distinct(known)
    if later:
        rest = _distinct([ids for group in later for ids in group])
        unseen = rest[IdMap(kind, distinct)._find(rest) < 0]
        distinct = np.concatenate([distinct, unseen]) if unseen.size else distinct
    id_map = IdMap.build(kind, distinct, labels)
    codes = {name: id_map._find(held)[rows] for name, (rows, held) in columns.items()}
    return {name: freeze(column) for name, column in codes.items()}, id_map


@dataclass(frozen=True, eq=False, repr=False)
class IdMap:
    """Raw ids of one kind of thing, in code order, with optional labels for people to read.

    Attributes
    ----------
    kind : str
        What the ids name: ``"user"``, ``"item"``, ...
    ids : (n,) int64 or str
        Raw ids; the position is the code.
    labels : (n,) str or None
        Titles or names.
    """

    kind: str
    ids: Ids
    labels: npt.NDArray[np.str_] | None = None

    @classmethod
    def build(cls, kind: str, ids: object, labels: object = None) -> IdMap:
        """Check ids and labels; labels are a sequence in code order or a mapping by raw id."""
        known = as_ids(ids, f"{kind}_ids")
        if len(known) > MAX_CODES:
            raise DataError(f"{len(known):,} {plural(kind)} are more than int32 codes can number")
        if not _ascending(known):
            values, counts = np.unique(known, return_counts=True)
            if counts.max() > 1:
                raise DataError(f"{kind}_ids holds {values[counts.argmax()].item()!r} repeatedly")
        aligned = None if labels is None else _aligned_labels(kind, known, labels)
        return cls(kind, freeze(known.copy()), aligned)

    def __len__(self) -> int:
        return len(self.ids)

    def index(self, raw: object) -> Codes:
        """Codes (n,) int32 of raw ids: a scalar or an array of (n,).

        Raises
        ------
        UnknownIdError
            Some id is not in the map: the first is named, the others counted, the nearest
            known ones listed.
        """
        scalar = isinstance(raw, str | Integral) or np.ndim(cast(Any, raw)) == 0
        wanted = as_ids([raw] if scalar else raw, plural(self.kind))
        if wanted.size == 0:
            return np.empty(0, np.int32)
        if wanted.dtype.kind != self.ids.dtype.kind:
            self._raise_unknown(wanted)
        codes = self._find(wanted)
        if (codes < 0).any():
            self._raise_unknown(wanted[codes < 0])
        return codes

    def name(self, code: int) -> str:
        """The label of a code, or its raw id where there is no label."""
        label = "" if self.labels is None else str(self.labels[code])
        return label or str(self.ids[code])

    @cached_property
    def _position(self) -> dict[str, int]:
        return {raw: code for code, raw in enumerate(self.ids.tolist())}

    @cached_property
    def _sorter(self) -> npt.NDArray[np.int64]:
        return np.argsort(self.ids)

    @cached_property
    def _table(self) -> tuple[int, Codes] | None:
        """Code of every integer from the smallest id on, where the ids lie close together."""
        first, last = int(self.ids.min()), int(self.ids.max())
        if last - first > 4 * len(self) + 1024:
            return None
        table = np.full(last - first + 2, -1, np.int32)
        table[self.ids - first] = np.arange(len(self), dtype=np.int32)
        return first, table

    def _find(self, wanted: Ids) -> Codes:
        """Codes of ids of the right type, -1 for unknown ones."""
        if wanted.size == 0 or len(self) == 0:
            return np.full(len(wanted), -1, np.int32)
        if wanted.dtype.kind == "U":
            get = self._position.get
            return np.fromiter((get(raw, -1) for raw in wanted.tolist()), np.int32, len(wanted))
        if self._table is not None:
            first, table = self._table
            # Ids outside the table are sent to its last entry, which stands for no id.
            place = np.where(wanted < first, len(table) - 1, wanted - first)
            return table[np.minimum(place, len(table) - 1)]
        slot = np.searchsorted(self.ids, wanted, sorter=self._sorter)
        codes = self._sorter[np.minimum(slot, len(self) - 1)]
        return np.where(self.ids[codes] == wanted, codes, -1).astype(np.int32)

    def _raise_unknown(self, unknown: Ids) -> None:
        distinct = list(dict.fromkeys(unknown.tolist()))
        raise UnknownIdError(self.kind, distinct, self._nearest(distinct[0]))

    def _nearest(self, raw: object) -> list[str]:
        """Up to three known ids like `raw`; first of all the one that differs in type only."""
        if self.ids.dtype.kind == "i":
            if isinstance(raw, str):
                known = raw.isdecimal() and (self.ids == int(raw)).any()
                return [f"{int(raw)} (an integer, not a string)"] if known else []
            distance = np.abs(self.ids.astype(np.float64) - float(cast(int, raw)))
            return [str(self.ids[code]) for code in np.argsort(distance, kind="stable")[:3]]
        if not isinstance(raw, str) and str(raw) in self._position:
            return [f"{str(raw)!r} (a string, not an integer)"]
        text = str(raw).lower()
        candidates = {known.lower(): known for known in self.ids.tolist()}
        if len(candidates) > _MAX_COMPARED:
            alike = [lower for lower in candidates if lower[:1] == text[:1]][:_MAX_COMPARED]
            candidates = {lower: candidates[lower] for lower in alike}
        return [repr(candidates[m]) for m in difflib.get_close_matches(text, candidates, n=3)]


def _coded(raw: object, name: str) -> Coded:
    if not isinstance(raw, Coded):
        return Coded(*_factorize(_not_negative(raw, name)))
    missing = raw.ids == ""
    if missing.any():
        cells = np.where(missing, "", "?")[raw.codes]
        _refuse(cells == "", cells, name, _MISSING)
    return raw


def _not_negative(raw: object, name: str) -> Ids:
    given = as_ids(raw, name)
    if given.dtype.kind == "i":
        _refuse(given < 0, given, name, "is negative: integer ids start at 0")
    return given


def _as_codes(raw: object, name: str, id_map: IdMap) -> Codes:
    given, held = _not_negative(raw, name), f"{id_map.kind}_ids"
    if given.dtype.kind != "i":
        raise DataError(f"{name} must be codes, positions in {held}, when {held} is given")
    _refuse(given >= len(id_map), given, name, f"is no position in {held} ({len(id_map)} ids)")
    return freeze(given.astype(np.int32))


def _distinct(columns: list[Ids]) -> Ids:
    return _factorize(np.concatenate([ids for ids in columns if ids.size] or columns))[1]


def _refuse_two_types(columns: Mapping[str, Coded], kind: str) -> None:
    """Raise a DataError where one column holds integers, another strings."""
    held = {column.ids.dtype.kind: name for name, column in columns.items() if len(column.ids)}
    if len(held) > 1:
        raise DataError(
            f"{held['i']} are integers but {held['U']} are strings: {plural(kind)} must be all "
            "integers or all strings"
        )


def _as_array(raw: object, name: str) -> npt.NDArray[Any]:
    try:
        array = np.asarray(raw)
    except (ValueError, TypeError) as error:
        raise DataError(f"{name} is not an array of ids: {error}") from error
    # numpy turns [1, "a"] silently into strings
    if (
        array.dtype.kind == "U"
        and isinstance(raw, Sequence)
        and not isinstance(raw, str)
        and not all(isinstance(value, str) for value in raw)
    ):
        return np.array(raw, dtype=object)
    return array


def _whole_numbers(array: npt.NDArray[Any], name: str) -> Ids:
    _refuse(np.isnan(array), array, name, "is missing: every row needs an id")
    exact = (np.abs(array) < 2.0**53) & (array == np.trunc(array))
    _refuse(~exact, array, name, "is no whole number: ids are integers or strings")
    return array.astype(np.int64)


def _from_objects(values: list[Any], name: str) -> Ids:
    if all(isinstance(value, str) for value in values):
        return as_ids(np.array(values, dtype=np.str_), name)
    for position, value in enumerate(values):
        if value is None or type(value).__name__ in ("NAType", "NaTType") or value != value:
            raise DataError(f"{name}[{position}] is missing: every row needs an id")
    numbers = [isinstance(value, Real) and not isinstance(value, bool) for value in values]
    if not all(numbers):
        odd = numbers.index(False)
        if any(numbers):
            first, second = sorted([odd, numbers.index(True)])
            raise DataError(
                f"{name} mixes types: {name}[{first}] = {values[first]!r}, "
                f"{name}[{second}] = {values[second]!r}; make them all integers or all strings"
            )
        raise DataError(f"{name} must be integers or strings, but {name}[{odd}] = {values[odd]!r}")
    if all(isinstance(value, Integral) for value in values):
        try:
            return np.array(values, dtype=np.int64)
        except OverflowError as error:
            raise DataError(f"{name} holds integers too large for int64: use strings") from error
    return as_ids(np.array(values, dtype=np.float64), name)


def _ascending(ids: Ids) -> bool:
    return bool((ids[1:] > ids[:-1]).all())


def _factorize(ids: Ids) -> tuple[Codes, Ids]:
    """Codes by rank among the distinct ids, and the distinct ids in ascending order."""
    if ids.dtype.kind != "i":
        # A dictionary is 6 times as fast as np.unique here: 0.15 s for a million short strings.
        raw = ids.tolist()
        distinct = sorted(set(raw))
        position = {value: code for code, value in enumerate(distinct)}
        return (
            np.fromiter(map(position.__getitem__, raw), np.int32, len(raw)),
            np.array(distinct, dtype=np.str_),
        )
    if ids.size and ids.max() < 4 * ids.size + 65_536:  # dense: a lookup table, in O(n)
        seen = np.zeros(int(ids.max()) + 1, bool)
        seen[ids] = True
        rank = np.cumsum(seen, dtype=np.int64) - 1
        return rank[ids].astype(np.int32), np.flatnonzero(seen).astype(np.int64)
    distinct_ids, codes = np.unique(ids, return_inverse=True)
    return codes.astype(np.int32), distinct_ids


def _aligned_labels(kind: str, ids: Ids, labels: object) -> npt.NDArray[np.str_]:
    if isinstance(labels, Mapping):
        labels = [str(labels.get(raw, "")) for raw in ids.tolist()]
    array = np.asarray(labels, dtype=np.str_)
    if array.shape != ids.shape:
        raise DataError(
            f"{kind}_labels has shape {array.shape}, but there are {len(ids)} {plural(kind)}: "
            f"give one label for each of {kind}_ids, or a mapping from raw id to label"
        )
    return freeze(array.copy())


def _refuse(bad: npt.NDArray[np.bool_], array: npt.NDArray[Any], name: str, why: str) -> None:
    """Raise a DataError that names the first position where `bad` holds."""
    if bad.any():
        position = int(np.argmax(bad))
        others = int(np.count_nonzero(bad)) - 1
        more = f" ({others} more like it)" if others else ""
        raise DataError(f"{name}[{position}] = {array[position].item()!r} {why}{more}")
