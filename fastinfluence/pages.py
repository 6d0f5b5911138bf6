"""Packed rows on a device: all of a side, or a page of its groups at a time."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fastinfluence import dispatch
from fastinfluence.errors import DeviceMemoryError
from fastinfluence.kernels.structures import Side

__all__ = ["Page", "is_placed", "pages", "place"]

Counts = npt.NDArray[np.int64]

_SHARE = 0.75
"""Of the free memory that the rows of a whole side may take: queries and lists need some too."""


class Page(NamedTuple):
    """Consecutive groups of a side, on a device."""

    first: int  # group
    last: int  # group behind the last
    place: int  # of the first row in the whole side
    side: Side


def is_placed(side: Side, device: str) -> bool:
    """Whether the rows of a side are where the kernels of a device look for them."""
    return device == "cpu" or not isinstance(side.rows, np.ndarray)


def place(side: Side, device: str) -> Side:
    """Move a side to a device; hand it back as it is where that has not memory enough."""
    memory = dispatch.memory(device)
    if is_placed(side, device):
        held: Side = memory.put(side)  # bounds and order may not be there
        return held
    if side.rows.nbytes + side.order.nbytes > _SHARE * memory.free_bytes():
        return side
    try:
        placed: Side = memory.put(side)
    except DeviceMemoryError:
        return side
    return placed


def pages(side: Side, query_pointers: Counts, device: str) -> Iterator[Page]:
    """Yield the groups that queries ask for, on a device: in one page if they fit.

    While a page is worked with, a thread copies the next one; three are on the device at most.

    Parameters
    ----------
    side : Side
    query_pointers : (n_groups + 1,) int64
        Queries of each group.
    device : str

    Raises
    ------
    DeviceMemoryError
        There is no room for the rows of a single group; says how large they are.
    """
    side = place(side, device)
    if is_placed(side, device):
        yield Page(0, len(query_pointers) - 1, 0, side)
        return
    asked = np.flatnonzero((np.diff(query_pointers) > 0) & (np.diff(side.pointers) > 0))
    loader = _Loader(side, asked, device)
    with ThreadPoolExecutor(1) as pool:
        upcoming = pool.submit(loader.load)
        while (page := upcoming.result()) is not None:
            upcoming = pool.submit(loader.load)
            yield page


class _Loader:
    """Copies one page after the other."""

    def __init__(self, side: Side, asked: Counts, device: str) -> None:
        self._side, self._asked, self._device = side, asked, device
        self._memory = dispatch.memory(device)
        self._width = len(side.rows) // max(len(side.order), 1)
        self._row_bytes = self._width * side.rows.itemsize + side.order.itemsize
        self._most = int(self._memory.free_bytes() // 4 // self._row_bytes)  # rows of a page
        self._next = 0  # number in `asked`

    def load(self) -> Page | None:
        """Copy as many groups as there is room for; None behind the last."""
        if self._next == len(self._asked):
            return None
        pointers, first = self._side.pointers, self._asked[self._next]
        ends = pointers[self._asked + 1]
        while True:
            fitting = int(np.searchsorted(ends, pointers[first] + self._most, "right"))
            behind = max(fitting, self._next + 1)
            last = self._asked[behind - 1] + 1
            n_rows = int(pointers[last] - pointers[first])
            try:
                page = self._memory.put(self._part(first, last))
            except DeviceMemoryError as error:
                if behind == self._next + 1:
                    raise self._too_large(n_rows) from error
                self._most = n_rows // 2
            else:
                self._next = behind
                return Page(int(first), int(last), int(pointers[first]), page)

    def _part(self, first: Any, last: Any) -> Side:
        rows, pointers, order = self._side
        start, stop = pointers[first], pointers[last]
        return Side(
            rows[start * self._width : stop * self._width],
            pointers[first : last + 1] - start,
            order[start:stop],
        )

    def _too_large(self, n_rows: int) -> DeviceMemoryError:
        needed, free = n_rows * self._row_bytes / 2**20, self._memory.free_bytes() / 2**20
        return DeviceMemoryError(
            f"the rows of {n_rows:,} examples of one user or item take {needed:,.1f} MiB, and "
            f"{free:,.1f} MiB are free on {self._device}: ask for fewer queries at a time "
            "(batch_size), store the rows as bfloat16, or use device='cpu'"
        )
