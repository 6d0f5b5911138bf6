"""Counting sort: positions grouped by an integer code, in O(n) and stable."""

import numpy as np

from fastinfluence.kernels.cpu.jit import kernel

__all__ = ["count_sort"]


@kernel
def count_sort(codes, n_groups, order=None):
    """Group positions by code.

    Parameters
    ----------
    codes : (n,) int32 or int64
        Group of each position, in [0, n_groups). Not checked: the caller has done so.
    n_groups : int
        Number of groups, empty ones included.
    order : (n,) int64, optional
        A permutation to be refined: inside a group positions keep the succession they have
        in it. Sorting by the minor key first and handing that order to the sort by the major
        key sorts by pair.

    Returns
    -------
    pointers : (n_groups + 1,) int64
        Group g occupies ``order[pointers[g]:pointers[g + 1]]``.
    order : (n,) int64
        The positions, group after group; ascending inside a group when no `order` was given.
    """
    n = codes.shape[0]
    pointers = np.zeros(n_groups + 1, np.int64)
    for i in range(n):
        pointers[codes[i] + 1] += 1
    for g in range(n_groups):
        pointers[g + 1] += pointers[g]
    cursor = pointers[:n_groups].copy()
    grouped = np.empty(n, np.int64)
    for i in range(n):
        position = i if order is None else order[i]
        g = codes[position]
        grouped[cursor[g]] = position
        cursor[g] += 1
    return pointers, grouped
