"""Values of rows, rows chosen, and rows that repeat others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from fastinfluence.data.ids import Codes, freeze
from fastinfluence.errors import DataError, ParameterError

__all__ = [
    "as_values",
    "check_policy",
    "checked_codes",
    "first_of_each",
    "last_of_each",
    "repeated",
    "selected",
    "sum_of_each",
]


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


def selected(rows: object, n: int) -> npt.NDArray[np.integer[Any]]:
    """Training indices (m,) out of a boolean mask (n,) or a list of them; none is an error."""
    index = np.asarray(rows)
    if index.dtype == bool:
        if index.shape != (n,):
            raise DataError(f"the mask has shape {index.shape}, the data {n:,} rows")
        index = np.flatnonzero(index)
    if index.size == 0:
        raise DataError("the selection is empty: at least one row must be chosen")
    if index.ndim != 1 or index.dtype.kind not in "iu":
        raise DataError("select takes a boolean mask or a list of training indices")
    if index.min() < 0 or index.max() >= n:
        raise DataError(f"training indices go from 0 to {n - 1:,}")
    return index


def check_policy(duplicates: str, policies: Sequence[str]) -> None:
    """Refuse a word for what to do with repeated rows that is none of `policies`."""
    if duplicates not in policies:
        raise ParameterError(f"duplicates={duplicates!r} is none of {', '.join(policies)}")


def repeated(*columns: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """Whether each row of some key columns, sorted by them all, repeats the row before it."""
    repeats = np.zeros(len(columns[0]), bool)
    repeats[1:] = True
    for column in columns:
        repeats[1:] &= column[1:] == column[:-1]
    return repeats


def first_of_each(
    order: npt.NDArray[np.int64], repeats: npt.NDArray[np.bool_]
) -> npt.NDArray[np.int64]:
    """The first index of every run of repeats in `order`, ascending."""
    return np.sort(order[~repeats])


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
