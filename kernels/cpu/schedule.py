"""Balanced groups of rows for the stratified training schedule."""

import numpy as np

from .jit import kernel

__all__ = ["balance"]


@kernel
def balance(degrees, descending, n_groups):
    """Deal rows to groups so that their total degrees come out equal.

    Rows are taken by falling degree, each to the group with the least so far (the
    longest-processing-time rule).

    Parameters
    ----------
    degrees : (n_rows,) int64
    descending : (n_rows,) int64
        Row numbers by falling degree.
    n_groups : int

    Returns
    -------
    (n_rows,) int32
        Group of every row.
    """
    groups = np.empty(degrees.shape[0], np.int32)
    loads = np.zeros(n_groups, np.int64)
    for position in range(descending.shape[0]):
        row = descending[position]
        lightest = 0
        for g in range(1, n_groups):
            if loads[g] < loads[lightest]:
                lightest = g
        groups[row] = lightest
        # A row without examples still takes a place, or all of them would share one group.
        loads[lightest] += degrees[row] + 1
    return groups
