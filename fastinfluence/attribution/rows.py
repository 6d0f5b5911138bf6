"""The row store: for every training example, what it did to its user's and its item's row."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fastinfluence import dispatch, readout
from fastinfluence.attribution.placed_rows import placed
from fastinfluence.errors import ParameterError, RunDirectoryError
from fastinfluence.kernels.structures import Exclusions, Record, Side, Top
from fastinfluence.storage import read_run, write_run

if TYPE_CHECKING:
    import os

    from fastinfluence.training import Trajectory

__all__ = ["ROW_DTYPES", "Changes", "Grouping", "RowStore", "only_groups", "recorded"]

KIND = "row-store"
ROW_DTYPES = ("float32", "float64", "bfloat16")

Array = npt.NDArray[Any]
Codes = npt.NDArray[np.int32]
Grouping = tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]


class Changes(NamedTuple):
    """What the examples changed in their users' rows, or in their items'."""

    rows: Array  # (m, k)
    biases: Array  # (m,)
    places: npt.NDArray[np.int64]  # (n,): of every training example in the others


def recorded(record: Record, visits: npt.NDArray[np.int64]) -> tuple[Changes, Changes]:
    """Make a record of row changes, in the order of visits, one of changes for either side."""
    return (
        Changes(record.user_rows, record.biases[:, 0], visits),
        Changes(record.item_rows, record.biases[:, 1], visits),
    )


@dataclass(frozen=True, eq=False)
class RowStore:
    """Rows of all examples, packed twice: by user and by item.

    Attributes
    ----------
    user_side, item_side : Side
        Rows of width ``n_factors + 1`` (bias last) in user order and in item order.
    """

    user_side: Side
    item_side: Side

    @classmethod
    def build(
        cls,
        changes: tuple[Changes, Changes],
        orders: tuple[Grouping, Grouping],
        *,
        dtype: str | None = None,
        n_threads: int = 1,
        device: str = "cpu",
    ) -> RowStore:
        """Sort recorded rows into both orders.

        Parameters
        ----------
        changes : (Changes, Changes)
            Of the users' rows and of the items' rows, in any order of the examples.
        orders : (by_user, by_item)
            Training indices grouped by user and by item, ascending in a group.
        dtype : {None, "float32", "float64", "bfloat16"}
            Of the stored rows; None keeps that of the changes.
        n_threads : int
        """
        if dtype is not None and dtype not in ROW_DTYPES:
            raise ParameterError(
                f"rows of dtype {dtype!r} cannot be stored: use one of {', '.join(ROW_DTYPES)}"
            )
        if dtype == "bfloat16" and str(changes[0].rows.dtype) not in (
            "float32",
            "torch.float32",
        ):
            raise ParameterError("bfloat16 rows need a model of dtype float32")
        sides = []
        for (rows, biases, places), (pointers, order) in zip(changes, orders, strict=True):
            side = readout.pack_side(
                rows, biases, places[order], pointers, order,
                dtype=dtype, n_threads=n_threads, device=device,
            )  # fmt: skip
            sides.append(side)
        return cls(*sides)

    @classmethod
    def obtain(
        cls,
        trajectory: Trajectory,
        changes: Callable[[], tuple[Changes, Changes]],
        orders: tuple[Grouping, Grouping],
        *,
        meta: dict[str, Any],
        dtype: str | None,
        path: str | os.PathLike[str] | None,
        n_threads: int,
    ) -> RowStore:
        """Build the store of a model; with a path, write it there, or use what was written.

        Parameters
        ----------
        trajectory : Trajectory
            Of the model.
        changes : callable
            Makes what is stored, see `build`.
        orders : (by_user, by_item)
        meta : dict
            What else the rows depend on.
        dtype, path, n_threads
            See `build` and `open`.

        Raises
        ------
        ParameterError
            A dtype that rows of this model cannot have.
        RunDirectoryError
            `path` holds the rows of another model or method.
        """
        own = trajectory.recipe.dtype
        allowed = ("float32", "bfloat16") if own == "float32" else (own,)
        if dtype is not None and dtype not in allowed:
            raise ParameterError(
                f"row_dtype={dtype!r}: the rows of a {own} model are stored as "
                f"{' or '.join(allowed)}"
            )
        meta = meta | {"dtype": dtype or own}
        if path is not None:
            meta["model"] = trajectory.fingerprint()
            if Path(path).exists():
                return cls.open(path, *orders, meta=meta)
        store = cls.build(changes(), orders, dtype=dtype, n_threads=n_threads)
        if path is None:
            return store
        store.save(path, meta=meta)
        return cls.open(path, *orders, meta=meta)

    @property
    def dtype(self) -> str:
        """Of the stored rows."""
        held = self.user_side.rows.dtype
        return "bfloat16" if held == np.uint16 else held.name

    @property
    def nbytes(self) -> int:
        """Size of the rows."""
        return self.user_side.rows.nbytes + self.item_side.rows.nbytes

    # ---------------------------------------------------------------- examples by pair

    @cached_property
    def by_pair(self) -> npt.NDArray[np.int64]:
        """Training indices of the examples in user order, sorted by (user, item, index)."""
        count_sort = dispatch.kernels("grouping").count_sort
        members = self.user_side.order
        items = _group_of(self.item_side, self._n_examples)[members] + 1  # 0: of no known item
        users = _group_of(self.user_side, self._n_examples)[members]
        by_item = count_sort(items, len(self.item_side.pointers))[1]
        order: npt.NDArray[np.int64] = members[
            count_sort(users, len(self.user_side.pointers) - 1, by_item)[1]
        ]
        return order

    @cached_property
    def _n_examples(self) -> int:
        sides = (self.user_side, self.item_side)
        return max((int(side.order.max()) + 1 for side in sides if len(side.order)), default=0)

    @cached_property
    def known_items(self) -> Codes:
        """Items of the examples sorted by pair; -1 where the store does not hold them."""
        return _group_of(self.item_side, self._n_examples)[self.by_pair]

    @cached_property
    def own_places(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Places (in user order, in item order) of the examples sorted by pair."""
        places = []
        for side in (self.user_side, self.item_side):
            place = np.full(self._n_examples, -1)
            place[side.order] = np.arange(len(side.order))
            places.append(place[self.by_pair])
        return places[0], places[1]

    def find_pairs(
        self, users: Codes, items: Codes, n_threads: int = 1, device: str = "cpu"
    ) -> tuple[Array, Array]:
        """Bounds (starts, stops) of each query's own pair among the examples sorted by pair."""
        find, memory = dispatch.kernels("readout", device).find_pairs, dispatch.memory(device)
        there = placed(self, device)
        known = memory.put(there.user_side.pointers), there.known_items
        pairs = memory.put((users, items))
        starts, stops = (memory.empty(len(users), np.int64) for _ in range(2))

        def part(start: int, stop: int) -> None:
            find(*known, *pairs, start, stop, starts, stops)

        n_parts = n_threads if device == "cpu" else 1
        dispatch.run_parts(part, dispatch.equal_parts(len(users), n_parts), n_threads)
        return starts, stops

    # ---------------------------------------------------------------- reading out

    def top(
        self,
        item_vectors: Array,
        user_vectors: Array,
        users: Codes,
        items: Codes,
        k: int,
        *,
        proponents: bool = True,
        totals: bool = True,
        n_threads: int = 1,
        device: str = "cpu",
    ) -> Top:
        """Find the k most influential examples of every query.

        Parameters
        ----------
        item_vectors, user_vectors : (n_items, d), (n_users, d)
            ``(q_i, 1)`` and ``(p_u, 1)``; in CPU memory, or on the device already.
        users, items : (n_queries,) int32
        k : int
        proponents : bool
            The most positive influences, or the most negative.
        totals : bool
            Also add up the absolute influence of all candidates.
        n_threads : int
        device : str
            The backend that does it. Rows that fit stay there for the next call.

        Returns
        -------
        Top
            Values (n_queries, k), NaN where there are fewer examples, indices, totals.

        Raises
        ------
        ParameterError
            Factors of a dtype that the rows cannot be multiplied with.
        DeviceMemoryError
        """
        dtype = np.dtype(str(item_vectors.dtype).removeprefix("torch."))
        if self.dtype not in (dtype.name, "bfloat16") or (
            self.dtype == "bfloat16" and dtype != np.float32
        ):
            raise ParameterError(
                f"rows of {self.dtype} cannot be multiplied with {dtype} factors: "
                "store the rows in the dtype of the factors, or as bfloat16 beside float32"
            )
        sign = 1.0 if proponents else -1.0
        memory, there = dispatch.memory(device), placed(self, device)
        starts, stops = self.find_pairs(users, items, n_threads, device)
        top, vectors = memory.put(
            (readout.start_lists(len(users), k, dtype, totals=totals), (item_vectors, user_vectors))
        )
        for side, groups, columns, of_columns, places in (
            (there.user_side, users, items, vectors[0], there.own_places[0]),
            (there.item_side, items, users, vectors[1], there.own_places[1]),
        ):
            own = Exclusions(starts, stops, places)
            readout.read_side(
                side, groups, columns, of_columns, own, top,
                sign=sign, n_threads=n_threads, device=device,
            )  # fmt: skip
        if not there.whole(device):  # own pairs need the rows of both sides at once
            top, vectors, starts, stops = memory.fetch((top, vectors, starts, stops))
            device, memory, there = "cpu", dispatch.memory(), placed(self, "cpu")
        dispatch.kernels("readout", device).read_own(
            dtype.type(sign),
            there.user_side,
            there.item_side,
            Exclusions(starts, stops, there.own_places[0]),
            there.own_places[1],
            vectors,
            *memory.put((users, items)),
            top,
        )
        return readout.in_sign_of_scores(memory.fetch(top), sign)

    def self_influence(
        self,
        item_vectors: Array,
        user_vectors: Array,
        users: Codes,
        items: Codes,
        *,
        n_threads: int = 1,
        device: str = "cpu",
    ) -> Array:
        """Influence (n_train,) of every example on the score of its own pair.

        Parameters
        ----------
        item_vectors, user_vectors : (n_items, d), (n_users, d)
            As for `top`.
        users, items : (n_train,) int32
            Of the training examples, all of which the store holds.
        n_threads : int
        device : str
            Rows that do not fit there are read on the CPU.
        """
        if not placed(self, device).whole(device):
            device = "cpu"
        kernels, memory = dispatch.kernels("rows", device), dispatch.memory(device)
        there = placed(self, device)
        vectors, pairs, by_pair = memory.put(
            ((item_vectors, user_vectors), (users, items), self.by_pair)
        )
        result = memory.empty(len(users), item_vectors.dtype)

        def part(start: int, stop: int) -> None:
            kernels.self_influence(
                there.user_side, there.item_side, there.own_places, *vectors, *pairs,
                by_pair[start:stop], start, result,
            )  # fmt: skip

        n_parts = 4 * n_threads if device == "cpu" else 1
        dispatch.run_parts(part, dispatch.even_parts(np.ones(len(users)), n_parts), n_threads)
        found: Array = memory.fetch(result)
        return found

    # ---------------------------------------------------------------- files

    def save(self, path: str | os.PathLike[str], *, meta: dict[str, Any]) -> None:
        """Write the rows as a run directory of their own."""
        arrays = {"user_rows": self.user_side.rows, "item_rows": self.item_side.rows}
        write_run(path, kind=KIND, meta=meta | {"dtype": self.dtype}, arrays=arrays)

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        by_user: Grouping,
        by_item: Grouping,
        *,
        meta: dict[str, Any],
    ) -> RowStore:
        """Map the rows at `path`, which must have been saved with the same `meta`."""
        run = read_run(path, kind=KIND, mmap=True)
        stored = {name: run.meta.get(name) for name in meta}
        if stored != meta:
            raise RunDirectoryError(
                f"the rows in {run.path} belong to another model or were stored otherwise "
                f"({stored}, not {meta}): give another path, or remove that folder"
            )
        return cls(Side(run.arrays["user_rows"], *by_user), Side(run.arrays["item_rows"], *by_item))


def _group_of(side: Side, n_examples: int) -> Codes:
    """Group (n_examples,) of every training example, -1 for those that are not held."""
    groups = np.full(n_examples, -1, np.int32)
    numbers = np.arange(len(side.pointers) - 1, dtype=np.int32)
    groups[side.order] = np.repeat(numbers, np.diff(side.pointers))
    return groups


def only_groups(grouping: Grouping, held: npt.NDArray[np.int64]) -> Grouping:
    """Leave the examples of some groups in a grouping; the others become empty."""
    pointers, order = grouping
    sizes = np.zeros(len(pointers) - 1, np.int64)
    sizes[held] = np.diff(pointers)[held]
    kept = np.repeat(sizes > 0, np.diff(pointers))
    return np.concatenate([[0], np.cumsum(sizes)]), order[kept]
