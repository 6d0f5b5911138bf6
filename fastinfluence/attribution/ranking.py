"""The k best of every row of a matrix of influences."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from scipy.sparse import csr_array

__all__ = ["top_of_rows"]

Array = npt.NDArray[Any]

_CELLS_AT_ONCE = 2**20  # of float64: 8 MiB, of which a few copies are made


def top_of_rows(
    matrix: csr_array | Array, k: int, proponents: bool = True
) -> tuple[npt.NDArray[np.int32], Array, npt.NDArray[np.float64]]:
    """Find the k most influential examples of every query in the matrix of all influences.

    Parameters
    ----------
    matrix : (n, n_train) float array or csr_array
        Zeros and NaN are no candidates.
    k : int
        At least 1.
    proponents : bool, default True
        The largest influences; False: the smallest.

    Returns
    -------
    train_index : (n, k) int32
        Best first, ties by training index; -1 where a row has fewer candidates.
    influence : (n, k), dtype of the matrix
        NaN where a row has fewer candidates.
    total : (n,) float64
        Sum of the absolute influence of all candidates; NaN where a row holds NaN.

    Notes
    -----
    O(n_train + k log k) a row, of the order of one `numpy.argpartition` with or without ties.
    """
    n = matrix.shape[0]
    train_index = np.full((n, k), -1, np.int32)
    influence = np.full((n, k), np.nan, matrix.dtype)
    total = np.zeros(n)
    for rows, block, columns in _blocks(matrix):
        size = np.abs(block)
        total[rows] = size.sum(axis=1, dtype=np.float64)
        candidate = size > 0  # neither 0 nor NaN
        signed = np.where(candidate, block if proponents else -block, -np.inf)
        row, place, rank = _best(signed, k)
        train_index[rows[row], rank] = place if columns is None else columns[row, place]
        influence[rows[row], rank] = block[row, place]
    return train_index, influence, total


def _best(values: Array, k: int) -> tuple[Array, Array, Array]:
    """Row, column and rank of the k largest entries above -inf of every row, ties by column."""
    # At least k entries reach the bound, so those below it do not count, and of those that
    # equal it, perhaps the whole row, the first k suffice.
    n, width = values.shape
    bound = _bound(values, k)
    row, place = np.divmod(np.flatnonzero(values > bound), width)
    with_bound = np.where(bound > -np.inf, bound, np.nan)
    tied_row, tied_place = np.divmod(np.flatnonzero(values == with_bound), width)
    first = _rank_in_group(tied_row, n) < k
    row, place = np.append(row, tied_row[first]), np.append(place, tied_place[first])
    order = np.lexsort((place, -values[row, place], row))
    row, place = row[order], place[order]
    rank = _rank_in_group(row, n)
    return row[rank < k], place[rank < k], rank[rank < k]


def _bound(values: Array, k: int) -> Array:
    """Bounds (n, 1) that at least k entries of every row reach, and not many exceed.

    The k-th best of the maxima of 4 k stretches of the row: k stretches reach it, and less than
    k stretches hold anything above it. Of values in random order some 1.15 k reach it. Finding
    the k-th best value itself takes numpy twenty times as long where many are tied.
    """
    n, width = values.shape
    length = width // (4 * k)
    if length < 2:
        return np.full((n, 1), -np.inf, values.dtype)
    maxima = values[:, : 4 * k * length].reshape(n, 4 * k, length).max(axis=2)
    return np.partition(maxima, -k, axis=1)[:, -k, None]


def _rank_in_group(groups: Array, n_groups: int) -> Array:
    """How many entries of the same group stand before each one; groups are ascending."""
    counts = np.bincount(groups, minlength=n_groups)
    return np.arange(len(groups)) - (np.cumsum(counts) - counts)[groups]


def _blocks(matrix: csr_array | Array) -> Iterator[tuple[Array, Array, Array | None]]:
    """Rows of the matrix, some at a time, as dense blocks.

    Yields their numbers (m,), the values (m, w), and for a sparse matrix the column (m, w) of
    every value, ascending; shorter rows are filled up with zeros.
    """
    if isinstance(matrix, np.ndarray):
        step = max(1, _CELLS_AT_ONCE // max(matrix.shape[1], 1))
        for start in range(0, len(matrix), step):
            rows = np.arange(start, min(start + step, len(matrix)))
            yield rows, matrix[start : start + step], None
        return
    if not matrix.has_canonical_format:
        matrix = matrix.copy()
        matrix.sum_duplicates()
    lengths = np.diff(matrix.indptr)
    # Rows of like length go together, so that little is filled up.
    order = np.argsort(-lengths, kind="stable")
    start = 0
    while start < len(order) and (width := int(lengths[order[start]])):
        rows = order[start : start + max(1, _CELLS_AT_ONCE // width)]
        start += len(rows)
        filled = np.arange(width) < lengths[rows][:, None]
        source = np.where(filled, matrix.indptr[rows][:, None] + np.arange(width), 0)
        yield rows, np.where(filled, matrix.data[source], 0), matrix.indices[source]
