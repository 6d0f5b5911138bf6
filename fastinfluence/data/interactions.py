"""`Interactions`: who interacted with what, and how much."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

import numpy as np
import numpy.typing as npt

from fastinfluence.data.display import show_interactions
from fastinfluence.data.grouping import Grouping, group
from fastinfluence.data.ids import MAX_CODES, Codes, IdMap, Ids, encode, freeze
from fastinfluence.data.npz import write_npz
from fastinfluence.data.rows import (
    as_values,
    check_policy,
    checked_codes,
    last_of_each,
    repeated,
    selected,
    sum_of_each,
)
from fastinfluence.data.tables import Column, interaction_columns, table_columns
from fastinfluence.errors import DataError, ParameterError

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

__all__ = ["Duplicates", "Interactions"]

Duplicates: TypeAlias = Literal["error", "last", "sum", "keep"]
Rng: TypeAlias = int | np.random.Generator | None


@dataclass(frozen=True, eq=False, repr=False)
class Interactions:
    """Training examples of a recommender: (user, item, value) rows over two maps of raw ids.

    Immutable, and its arrays are read-only. Built by `from_arrays`, `from_csr`, `from_table`
    or `fastinfluence.read_interactions`; never empty. A row's position is its *training
    index*, the number every explanation refers to.

    Attributes
    ----------
    users, items : (n,) int32
        Codes: positions in `user_ids` and `item_ids`.
    values : (n,) float32
        Ratings or weights; ones when the data have none.
    has_values : bool
        Whether the data had values of their own.
    user_map, item_map : IdMap
        Raw ids and labels by code.
    """

    users: Codes
    items: Codes
    values: npt.NDArray[np.float32]
    has_values: bool
    user_map: IdMap
    item_map: IdMap

    # ---------------------------------------------------------------- constructors

    @classmethod
    def from_arrays(
        cls,
        users: object,
        items: object,
        values: object = None,
        *,
        user_ids: object = None,
        item_ids: object = None,
        user_labels: object = None,
        item_labels: object = None,
        duplicates: Duplicates = "error",
    ) -> Interactions:
        """Build from parallel arrays.

        Parameters
        ----------
        users, items : array_like, (n,)
            Raw ids, integers from 0 up or strings. Codes follow the sorted order of the ids,
            whatever the order of the rows. With `user_ids` or `item_ids` given, codes.
        values : array_like, (n,), optional
            Finite numbers.
        user_ids, item_ids : array_like, optional
            All raw ids in code order; may hold users and items without a row.
        user_labels, item_labels : sequence of str or mapping, optional
            Names for people: one for each id in code order, or a mapping from raw id.
        duplicates : {"error", "last", "sum", "keep"}
            What to do with a repeated (user, item) pair: refuse it, keep its last row, add up
            its values (in its first row; ones count up), or keep every row.

        Raises
        ------
        DataError
            Empty or mismatched arrays, a missing or negative id, a value that is NaN or
            infinite, a repeated pair.
        """
        check_policy(duplicates, get_args(Duplicates))
        user_codes, user_map = encode(users, "user", user_ids, user_labels)
        item_codes, item_map = encode(items, "item", item_ids, item_labels)
        n = len(user_codes)
        if len(item_codes) != n:
            raise DataError(f"users has {n:,} rows but items has {len(item_codes):,}")
        if n == 0:
            raise DataError("there are no interactions: the data are empty")
        if n > MAX_CODES:
            raise DataError(f"{n:,} rows are more than {MAX_CODES:,}, the most that fit")
        numbers = np.ones(n, np.float32) if values is None else as_values(values, n)
        data = cls(user_codes, item_codes, freeze(numbers), values is not None, user_map, item_map)
        return data if duplicates == "keep" else data._settle_repeats(duplicates)

    @classmethod
    def from_csr(
        cls,
        matrix: Any,
        *,
        user_ids: object = None,
        item_ids: object = None,
        user_labels: object = None,
        item_labels: object = None,
        duplicates: Duplicates = "error",
    ) -> Interactions:
        """Build from a scipy sparse matrix (n_users, n_items), CSR or any other format.

        Every stored entry is an example, a stored zero too. Row and column numbers are the
        raw ids unless `user_ids` and `item_ids` name them; rows and columns without an entry
        stay. The other parameters and the errors are those of `from_arrays`.
        """
        if not hasattr(matrix, "tocoo") or len(matrix.shape) != 2:
            raise DataError(f"a {type(matrix).__name__} is no scipy sparse matrix")
        entries = matrix.tocoo()  # unlike tocsr this leaves repeated entries apart
        return cls.from_arrays(
            entries.row,
            entries.col,
            entries.data,
            user_ids=np.arange(matrix.shape[0]) if user_ids is None else user_ids,
            item_ids=np.arange(matrix.shape[1]) if item_ids is None else item_ids,
            user_labels=user_labels,
            item_labels=item_labels,
            duplicates=duplicates,
        )

    @classmethod
    def from_table(
        cls,
        table: Any,
        *,
        user: Column | None = None,
        item: Column | None = None,
        value: Column | None = None,
        user_labels: object = None,
        item_labels: object = None,
        duplicates: Duplicates = "error",
    ) -> Interactions:
        """Build from a pandas or polars frame, an Arrow table, or a dict of arrays.

        Parameters
        ----------
        table : table
            Anything with ``__arrow_c_stream__`` will do.
        user, item, value : str or int, optional
            Columns by name or position. May all be left out for a table of exactly two columns
            (user, item) or three (user, item, value); a larger one must be told.
        user_labels, item_labels, duplicates
            As in `from_arrays`, whose errors apply.

        Raises
        ------
        DataError
            A column that does not exist; those that do are listed.
        """
        names, column_at = table_columns(table)
        columns = [column_at(j) for j in interaction_columns(names, user, item, value)]
        return cls.from_arrays(
            *columns, user_labels=user_labels, item_labels=item_labels, duplicates=duplicates
        )

    @classmethod
    def from_parts(cls, parts: Mapping[str, npt.NDArray[Any]]) -> Interactions:
        """Rebuild from what `arrays` returned, without a copy of the rows (memory maps stay)."""
        missing = {"users", "items", "user_ids", "item_ids"} - set(parts)
        if missing:
            raise DataError(f"saved interactions lack {', '.join(sorted(missing))}")
        user_map = IdMap.build("user", parts["user_ids"], parts.get("user_labels"))
        item_map = IdMap.build("item", parts["item_ids"], parts.get("item_labels"))
        users = checked_codes(parts["users"], "users", len(user_map))
        items = checked_codes(parts["items"], "items", len(item_map))
        has_values = "values" in parts
        values = parts["values"] if has_values else np.ones(len(users), np.float32)
        if not users.shape == items.shape == values.shape or values.dtype != np.float32:
            raise DataError("saved users, items and float32 values differ in length or dtype")
        return cls(users, items, freeze(values.view()), has_values, user_map, item_map)

    # ---------------------------------------------------------------- sizes, ids and names

    def __len__(self) -> int:
        return len(self.users)

    @property
    def n_users(self) -> int:
        """Number of users, those without a row included."""
        return len(self.user_map)

    @property
    def n_items(self) -> int:
        """Number of items, those without a row included."""
        return len(self.item_map)

    @property
    def user_ids(self) -> Ids:
        """(n_users,) int64 or str: raw ids by code."""
        return self.user_map.ids

    @property
    def item_ids(self) -> Ids:
        """(n_items,) int64 or str: raw ids by code."""
        return self.item_map.ids

    @property
    def user_labels(self) -> npt.NDArray[np.str_] | None:
        """(n_users,) str or None: names by code, empty where there is none."""
        return self.user_map.labels

    @property
    def item_labels(self) -> npt.NDArray[np.str_] | None:
        """(n_items,) str or None: titles by code, empty where there is none."""
        return self.item_map.labels

    def user_index(self, raw_ids: object) -> Codes:
        """Codes (n,) int32 of raw user ids, a scalar or (n,); UnknownIdError names strangers."""
        return self.user_map.index(raw_ids)

    def item_index(self, raw_ids: object) -> Codes:
        """Codes (n,) int32 of raw item ids, a scalar or (n,); UnknownIdError names strangers."""
        return self.item_map.index(raw_ids)

    def user_name(self, code: int) -> str:
        """The user's label, or the raw id where there is none."""
        return self.user_map.name(code)

    def item_name(self, code: int) -> str:
        """The item's label, or the raw id where there is none."""
        return self.item_map.name(code)

    def columns(self, index: object = None) -> dict[str, npt.NDArray[Any]]:
        """Raw ids and values by ``"user"``, ``"item"``, ``"value"``: of all rows or of some."""
        rows = slice(None) if index is None else np.asarray(index)
        return {
            "user": self.user_ids[self.users[rows]],
            "item": self.item_ids[self.items[rows]],
            "value": self.values[rows],
        }

    # ---------------------------------------------------------------- orders

    @cached_property
    def by_user(self) -> Grouping:
        """Training indices grouped by user; built once, in O(n)."""
        return group(self.users, self.n_users)

    @cached_property
    def by_item(self) -> Grouping:
        """Training indices grouped by item; built once, in O(n)."""
        return group(self.items, self.n_items)

    @cached_property
    def by_pair(self) -> npt.NDArray[np.int64]:
        """(n,) int64: training indices sorted by (user, item, index).

        A user's stretch is bounded by ``by_user.pointers``, and the items in it ascend, so
        that one bisection tells whether a pair was trained on.
        """
        return group(self.users, self.n_users, self.by_item.order).order

    # ---------------------------------------------------------------- parts of the data

    def select(self, rows: object) -> Interactions:
        """The rows of a boolean mask (n,) or of training indices, over the same id maps."""
        index = selected(rows, len(self))
        return self._with_rows(index, self.values[index], self.has_values)

    def split(self, fraction: float, rng: Rng = None) -> tuple[Interactions, Interactions]:
        """A random (train, test) pair over the same id maps; rows keep their succession.

        Parameters
        ----------
        fraction : float
            Share of the rows that goes to test, between 0 and 1.
        rng : int, Generator or None
        """
        n_test = round(len(self) * fraction) if 0 < fraction < 1 else 0
        if not 0 < n_test < len(self):
            raise ParameterError(
                f"fraction={fraction} of {len(self):,} rows leaves train or test empty: choose "
                "the share of the rows to be held out, between 0 and 1"
            )
        held_out = np.zeros(len(self), bool)
        held_out[np.random.default_rng(rng).permutation(len(self))[:n_test]] = True
        return self.select(~held_out), self.select(held_out)

    def leave_one_out(self, rng: Rng = None) -> tuple[Interactions, Interactions]:
        """(train, test): one random row of every user who has at least two goes to test."""
        pointers, order = self.by_user
        sizes = np.diff(pointers)
        able = sizes >= 2
        if not able.any():
            raise DataError("no user has two rows: there is nothing to leave out")
        chosen = np.random.default_rng(rng).integers(0, sizes[able])
        held_out = np.zeros(len(self), bool)
        held_out[order[pointers[:-1][able] + chosen]] = True
        return self.select(~held_out), self.select(held_out)

    # ---------------------------------------------------------------- out again

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Plain arrays from which `from_parts` rebuilds the same object, codes and all."""
        parts: dict[str, npt.NDArray[Any] | None] = {
            "users": self.users,
            "items": self.items,
            "values": self.values if self.has_values else None,
            "user_ids": self.user_ids,
            "item_ids": self.item_ids,
            "user_labels": self.user_labels,
            "item_labels": self.item_labels,
        }
        return {name: array for name, array in parts.items() if array is not None}

    def to_npz(self, path: str | os.PathLike[str]) -> None:
        """Write one ``.npz`` file, whole or not at all; `read_interactions` reads it back."""
        write_npz(path, self.arrays())

    def to_csr(self) -> csr_matrix:
        """scipy CSR (n_users, n_items) float32, columns ascending; repeated pairs stay apart."""
        from scipy.sparse import csr_matrix

        order = self.by_pair
        shape = (self.n_users, self.n_items)
        return csr_matrix((self.values[order], self.items[order], self.by_user.pointers), shape)

    def __repr__(self) -> str:
        return show_interactions(self).text()

    def _repr_html_(self) -> str:
        return show_interactions(self).html()

    # ---------------------------------------------------------------- inner

    def _settle_repeats(self, policy: str) -> Interactions:
        order = self.by_pair
        repeats = repeated(self.users[order], self.items[order])
        if not repeats.any():
            return self
        if policy == "error":
            row = int(order[repeats].min())
            user, item = self.user_ids[self.users[row]], self.item_ids[self.items[row]]
            raise DataError(
                f"{np.count_nonzero(repeats):,} of {len(self):,} rows repeat an earlier (user, "
                f"item) pair, first ({user.item()!r}, {item.item()!r}) in row {row}: pass "
                "duplicates='last' to keep the last row of a pair, 'sum' to add up its values, "
                "or 'keep' to keep every row"
            )
        if policy == "last":
            kept = last_of_each(order, repeats)
            return self._with_rows(kept, self.values[kept], self.has_values)
        kept, totals = sum_of_each(order, repeats, self.values)
        return self._with_rows(kept, as_values(totals, len(kept)), True)

    def _with_rows(
        self, index: npt.NDArray[Any], values: npt.NDArray[np.float32], has_values: bool
    ) -> Interactions:
        users = freeze(self.users[index])
        items = freeze(self.items[index])
        return Interactions(users, items, freeze(values), has_values, self.user_map, self.item_map)
