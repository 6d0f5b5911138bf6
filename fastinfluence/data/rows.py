"""Values of rows, and rows that repeat a pair."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from fastinfluence.data.ids import Codes, freeze
from fastinfluence.errors import DataError

__all__ = ["as_values", "checked_codes", "last_of_each", "repeated", "sum_of_each"]


def as_values(values: object, n: int) -> npt.NDArray[np.float32]:
    """Bring values to finite float32 (n,), a new array; DataError names the first bad row."""
    try:
        array = np.asarray(values)
    except (ValueError, TypeError) as error:
        raise DataError(f"values is not an array of numbers: {error}") from error
    if array.ndim != 1:
        raise DataError(f"values must be one-dimensional, not of shape {array.shape}")
    if len(array) != n:
        raise DataError(f"users and items have {n:,} rows but values has {len(array):,}")
    if array.dtype.kind not in "biuf":
        array = _parse_numbers(array)
    with np.errstate(over="ignore"):
        numbers = array.astype(np.float32)
    bad = ~np.isfinite(numbers)
    if bad.any():
        row = int(np.argmax(bad))
        raise DataError(
            f"values[{row}] = {array[row]} is not a finite float32 number "
            f"({np.count_nonzero(bad):,} such values)"
        )
    return numbers


def checked_codes(array: npt.NDArray[Any], name: str, n: int) -> Codes:
    """Saved codes as a read-only view; DataError where they could not be codes below `n`."""
    # Kernels index by these unchecked: a code out of range would read foreign memory.
    if array.dtype != np.int32 or array.ndim != 1 or array.size == 0:
        raise DataError(f"saved {name} must be int32 codes (n,), not {array.dtype} {array.shape}")
    if array.min() < 0 or array.max() >= n:
        raise DataError(f"saved {name} holds codes outside 0 to {n - 1:,}")
    return freeze(array.view())


def repeated(first: npt.NDArray[Any], second: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """Whether each row of two key columns, sorted by both, repeats the row before it."""
    repeats = np.zeros(len(first), bool)
    repeats[1:] = (first[1:] == first[:-1]) & (second[1:] == second[:-1])
    return repeats


def last_of_each(
    order: npt.NDArray[np.int64], repeats: npt.NDArray[np.bool_]
) -> npt.NDArray[np.int64]:
    """The last index of every run of repeats in `order`, ascending."""
    return np.sort(order[~np.append(repeats[1:], False)])


def sum_of_each(
    order: npt.NDArray[np.int64], repeats: npt.NDArray[np.bool_], values: npt.NDArray[np.float32]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """The first index of every run of repeats, ascending, and the run's total."""
    starts = np.flatnonzero(~repeats)
    first = order[starts]
    totals = np.add.reduceat(values[order].astype(np.float64), starts)
    ascending = np.argsort(first)
    return first[ascending], totals[ascending]


def _parse_numbers(array: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    numbers = np.empty(len(array))
    for row, value in enumerate(array.tolist()):
        try:
            numbers[row] = float(value)
        except (TypeError, ValueError):
            raise DataError(f"values[{row}] = {value!r} is not a number") from None
    return numbers
