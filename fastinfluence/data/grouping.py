"""Rows sorted and grouped by their codes, in O(n)."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from fastinfluence.data.ids import Codes, freeze

__all__ = ["Grouping", "KeyedGrouping", "group", "group_by_pair", "sort_rows"]


class Grouping(NamedTuple):
    """Training indices grouped by a code: group g is ``order[pointers[g]:pointers[g + 1]]``.

    Attributes
    ----------
    pointers : (n_groups + 1,) int64
    order : (n,) int64
        Ascending inside a group.
    """

    pointers: npt.NDArray[np.int64]
    order: npt.NDArray[np.int64]


class KeyedGrouping(NamedTuple):
    """Training indices grouped by a pair of codes, only pairs that occur.

    Attributes
    ----------
    keys : (n_groups,) int64
        ``first * n_second + second`` of each group's pair, ascending.
    pointers : (n_groups + 1,) int64
        Group g is ``order[pointers[g]:pointers[g + 1]]``.
    order : (n,) int64
        Ascending inside a group.
    """

    keys: npt.NDArray[np.int64]
    pointers: npt.NDArray[np.int64]
    order: npt.NDArray[np.int64]


def group(codes: Codes, n_groups: int, order: npt.NDArray[np.int64] | None = None) -> Grouping:
    """Positions grouped by code; inside a group as in `order`, ascending without one."""
    from fastinfluence.kernels.cpu.grouping import count_sort  # numba: not at import

    pointers, order = count_sort(codes, n_groups, order)
    return Grouping(freeze(pointers), freeze(order))


def sort_rows(*columns: tuple[Codes, int]) -> npt.NDArray[np.int64]:
    """Positions (n,) sorted by columns of (codes, number of codes), the first counting most."""
    order = None
    for codes, n_codes in reversed(columns):
        order = group(codes, n_codes, order).order
    assert order is not None
    return order


def group_by_pair(first: Codes, n_first: int, second: Codes, n_second: int) -> KeyedGrouping:
    """Positions grouped by the pair of two codes."""
    order = sort_rows((first, n_first), (second, n_second))
    keys = first[order].astype(np.int64) * n_second + second[order]
    starts = np.flatnonzero(np.diff(keys, prepend=-1))
    pointers = np.append(starts, len(keys))
    return KeyedGrouping(freeze(keys[starts]), freeze(pointers), order)
