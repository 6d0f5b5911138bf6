"""Driving the read-out kernels: packing rows, grouping queries, tiles, threads."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from fastinfluence import dispatch
from fastinfluence.errors import ParameterError
from fastinfluence.kernels.structures import Exclusions, Queries, Side, Top
from fastinfluence.pages import pages

__all__ = [
    "check_k",
    "in_sign_of_scores",
    "none_excluded",
    "pack_side",
    "read_only",
    "read_side",
    "start_lists",
    "with_ones",
]

Array = npt.NDArray[Any]

_PARTS_PER_THREAD = 4
_SELECTION = 6000.0  # work of one selection, in multiply-adds: 300 ns at 20 GFLOP/s


def check_k(k: int) -> None:
    """Raise ParameterError unless k is a number of examples or items one can ask for."""
    if isinstance(k, bool) or not isinstance(k, int | np.integer) or k < 1:
        raise ParameterError(f"k must be an integer >= 1, not {k!r}")


def with_ones(factors: Array) -> Array:
    """``(factors, 1)``: what the row of a pair's other half is multiplied with, (n, k + 1)."""
    vectors = np.ones((factors.shape[0], factors.shape[1] + 1), factors.dtype)
    vectors[:, :-1] = factors
    return vectors


def pack_side(
    factors: Array,
    biases: Array,
    sources: npt.NDArray[np.int64],
    pointers: npt.NDArray[np.int64],
    order: npt.NDArray[np.int64],
    *,
    dtype: str | None = None,
    n_threads: int = 1,
    device: str = "cpu",
) -> Side:
    """Pack rows, grouped, for the read-out.

    Parameters
    ----------
    factors : (m, k) float
    biases : (m,) float
    sources : (n,) int64
        Row of `factors` that stands at each place.
    pointers : (n_groups + 1,) int64
        Places of each group.
    order : (n,) int64
        Training index at each place.
    dtype : {None, "float32", "float64", "bfloat16"}
        Of the packed rows; None keeps that of `factors`.
    n_threads : int
    device : str
        The backend that does it, whose memory the rows are then in.
    """
    element: Any = np.dtype(str(factors.dtype).removeprefix("torch."))
    if dtype is not None:
        element = np.uint16 if dtype == "bfloat16" else np.dtype(dtype)
    pointers = read_only(pointers)
    pack_rows, memory = dispatch.kernels("panels", device).pack_rows, dispatch.memory(device)
    rows = memory.empty(len(sources) * (factors.shape[1] + 1), element)
    there = memory.put((factors, biases, sources, pointers))

    def part(start: int, stop: int) -> None:
        pack_rows(*there, start, stop, rows)

    n_parts = n_threads * _PARTS_PER_THREAD if device == "cpu" else 1
    sizes = np.diff(pointers).astype(np.float64)
    dispatch.run_parts(part, dispatch.even_parts(sizes, n_parts), n_threads)
    return Side(rows, pointers, read_only(order))


def read_only(array: Array) -> Array:
    """A view that is not written to.

    Arrays of the data, and rows that are mapped from files, are so: kernels that are always given
    such are not compiled for both kinds.
    """
    view = array.view()
    view.flags.writeable = False
    return view


def start_lists(n_queries: int, k: int, dtype: Any, *, totals: bool) -> Top:
    """Empty lists of the best k."""
    return Top(
        np.full((n_queries, k), -np.inf, dtype),
        np.full((n_queries, k), -1, np.int32),
        np.zeros(n_queries if totals else 0),
    )


def none_excluded(n_queries: int) -> Exclusions:
    """Exclusions for queries that may see every row."""
    zeros = np.zeros(n_queries, np.int64)
    return Exclusions(zeros, zeros, np.zeros(0, np.int64))


def read_side(
    side: Side,
    groups: npt.NDArray[np.int32],
    columns: npt.NDArray[np.int32],
    vectors: Array,
    exclusions: Exclusions,
    top: Top,
    *,
    sign: float = 1.0,
    n_threads: int = 1,
    device: str = "cpu",
) -> None:
    """Merge every query's scores over the rows of its group into its list.

    Parameters
    ----------
    side : Side
        Larger than the memory of a device, it goes there page by page.
    groups : (n_queries,) int32
        Group each query reads.
    columns : (n_queries,) int32
        Row of `vectors` that is multiplied with the rows of the group.
    vectors : (m, d) float
    exclusions : Exclusions
    top : Top
        Changed in place.
    sign : {1.0, -1.0}
        -1 looks for the most negative; the lists then hold negated scores.
    n_threads : int
    device : str
        The backend that does it. `groups` and `columns` are in CPU memory; what else is there
        is moved, and lists are brought back.

    Raises
    ------
    DeviceMemoryError
    """
    n_groups = len(side.pointers) - 1
    query_pointers, ids = dispatch.kernels("grouping").count_sort(groups, n_groups)
    queries = Queries(ids, columns[ids], vectors)
    if device != "cpu":
        _read_pages(device, side, query_pointers, queries, exclusions, top, sign)
        return
    kernels = dispatch.kernels("readout")
    units = kernels.tile_units(side.pointers, query_pointers)
    signed = vectors.dtype.type(sign)
    side = side._replace(rows=read_only(side.rows))

    def part(start: int, stop: int) -> None:
        kernels.read_side(signed, side, queries, exclusions, units, start, stop, top)

    rows = np.diff(side.pointers)[units[:, 0]]
    work = (units[:, 2] - units[:, 1]) * (rows * vectors.shape[1] + _SELECTION)
    dispatch.run_parts(part, dispatch.even_parts(work, n_threads * _PARTS_PER_THREAD), n_threads)


def _read_pages(
    device: str,
    side: Side,
    query_pointers: npt.NDArray[np.int64],
    queries: Queries,
    exclusions: Exclusions,
    top: Top,
    sign: float,
) -> None:
    """Read a side on a device other than the CPU."""
    kernels, memory = dispatch.kernels("readout", device), dispatch.memory(device)
    lists, vectors, there = memory.put(top), memory.put(queries.vectors), memory.put(exclusions)
    places: npt.NDArray[np.int64] | None = None  # in CPU memory, once there is a second page
    for page in pages(side, query_pointers, device):
        if page.place:  # the places of a page are counted from its own first row
            places = memory.fetch(exclusions.places) if places is None else places
            there = there._replace(places=memory.put(places - page.place))
        bounds = query_pointers[page.first : page.last + 1]
        some = slice(bounds[0], bounds[-1])
        asked = memory.put(Queries(queries.ids[some], queries.columns[some], vectors))
        units = kernels.tile_units(page.side.pointers, memory.put(bounds - bounds[0]))
        kernels.read_side(sign, page.side, asked, there, units, 0, len(units), lists)
    for mine, its in zip(top, lists, strict=True):
        if mine is not its:
            mine[...] = memory.fetch(its)


def in_sign_of_scores(top: Top, sign: float) -> Top:
    """Finish lists: NaN where empty, and scores as they were before `sign`; in place."""
    if (top.indices[:, -1] < 0).any():
        top.values[top.indices < 0] = np.nan
    if sign < 0:
        np.negative(top.values, out=top.values)
    return top
