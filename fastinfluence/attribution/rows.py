"""The row store: for every training example, what it did to its user's and its item's row."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from fastinfluence import readout
from fastinfluence.errors import ParameterError, RunDirectoryError
from fastinfluence.kernels.structures import Record, Side
from fastinfluence.storage import read_run, write_run

if TYPE_CHECKING:
    import os

    from fastinfluence.data import Interactions

__all__ = ["ROW_DTYPES", "RowStore"]

KIND = "row-store"
ROW_DTYPES = ("float32", "float64", "bfloat16")


@dataclass(frozen=True, eq=False)
class RowStore:
    """Rows of all examples, packed twice: by user and by item.

    Attributes
    ----------
    data : Interactions
    user_side, item_side : Side
        Rows of width ``n_factors + 1`` (bias last) in user order and in item order.
    """

    data: Interactions
    user_side: Side
    item_side: Side

    @classmethod
    def build(
        cls,
        record: Record,
        visits: npt.NDArray[np.int64],
        data: Interactions,
        *,
        dtype: str | None = None,
        n_threads: int = 1,
    ) -> RowStore:
        """Sort recorded rows into both orders.

        Parameters
        ----------
        record : Record
            In the order of visits.
        visits : (n,) int64
            Visit of every training example.
        data : Interactions
        dtype : {None, "float32", "float64", "bfloat16"}
            Of the stored rows; None keeps that of the record.
        n_threads : int
        """
        if dtype is not None and dtype not in ROW_DTYPES:
            raise ParameterError(
                f"rows of dtype {dtype!r} cannot be stored: use one of {', '.join(ROW_DTYPES)}"
            )
        if dtype == "bfloat16" and record.user_rows.dtype != np.float32:
            raise ParameterError("bfloat16 rows need a model of dtype float32")
        sides = [
            readout.pack_side(
                rows, record.biases[:, column], visits[group.order], *group,
                dtype=dtype, n_threads=n_threads,
            )
            for column, (rows, group) in enumerate(
                ((record.user_rows, data.by_user), (record.item_rows, data.by_item))
            )
        ]  # fmt: skip
        return cls(data, *sides)

    @property
    def dtype(self) -> str:
        """Of the stored rows."""
        held = self.user_side.rows.dtype
        return "bfloat16" if held == np.uint16 else held.name

    @property
    def nbytes(self) -> int:
        """Size of the rows."""
        return self.user_side.rows.nbytes + self.item_side.rows.nbytes

    @cached_property
    def own_places(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Places (in user order, in item order) of the examples sorted by pair, each (n,)."""
        places = []
        for side in (self.user_side, self.item_side):
            place = np.empty(len(self.data), np.int64)
            place[side.order] = np.arange(len(self.data))
            places.append(place[self.data.by_pair])
        return places[0], places[1]

    @cached_property
    def known_items(self) -> npt.NDArray[np.int32]:
        """Items (n,) of the examples sorted by pair."""
        known: npt.NDArray[np.int32] = self.data.items[self.data.by_pair]
        return known

    def save(self, path: str | os.PathLike[str], *, meta: dict[str, Any]) -> None:
        """Write the rows as a run directory of their own."""
        arrays = {"user_rows": self.user_side.rows, "item_rows": self.item_side.rows}
        write_run(path, kind=KIND, meta=meta | {"dtype": self.dtype}, arrays=arrays)

    @classmethod
    def open(
        cls, path: str | os.PathLike[str], data: Interactions, *, meta: dict[str, Any]
    ) -> RowStore:
        """Map the rows at `path`, which must have been saved with the same `meta`."""
        run = read_run(path, kind=KIND, mmap=True)
        stored = {name: run.meta.get(name) for name in meta}
        if stored != meta:
            raise RunDirectoryError(
                f"the rows in {run.path} belong to another model or were stored otherwise "
                f"({stored}, not {meta}): give another path, or remove that folder"
            )
        return cls(
            data,
            Side(run.arrays["user_rows"], *data.by_user),
            Side(run.arrays["item_rows"], *data.by_item),
        )
