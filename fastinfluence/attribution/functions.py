"""Functions of the parameters that callers hand in: asked, and their answers checked."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar, cast

import numpy as np
import numpy.typing as npt

from fastinfluence.data.ids import freeze
from fastinfluence.errors import DataError

__all__ = ["call_function"]

Array = npt.NDArray[Any]
Arrays = TypeVar("Arrays")  # a NamedTuple of arrays


def call_function(
    function: Callable[[Any], tuple[Any, Any]], parameters: Any, tables: Arrays
) -> tuple[float, Arrays]:
    """Value and gradient of a function of the parameters.

    Parameters
    ----------
    function : callable
        Returns a finite number, and a mapping from names of some tables to arrays.
    parameters : NamedTuple
        What it is given; its arrays are made read-only.
    tables : NamedTuple of arrays
        Those it may have a gradient by.

    Returns
    -------
    float, and a NamedTuple as `tables`
        With zeros where the function gave nothing.

    Raises
    ------
    DataError
        It returned something else.
    """
    # A function that wrote to the parameters would change the model it explains.
    frozen = (freeze(p.view()) if isinstance(p, np.ndarray) else p for p in parameters)
    returned = function(type(parameters)(*frozen))
    if not isinstance(returned, tuple) or len(returned) != 2:
        raise DataError(
            f"the function must return (value, gradient), not {type(returned).__name__}"
        )
    return _checked_value(returned[0]), _checked_gradient(returned[1], tables)


def _checked_value(value: Any) -> float:
    try:
        number = np.asarray(value, np.float64)
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(f"the function's value is not a number: {error}") from error
    if number.ndim or not np.isfinite(number):
        raise DataError(f"the function's value must be one finite number, not {value!r:.60}")
    return float(number)


def _checked_gradient(gradient: Any, tables: Arrays) -> Arrays:
    """Return the gradient of every table, zeros where the function gave none."""
    if not isinstance(gradient, Mapping):
        raise DataError(
            f"the function's gradient must map names of parameters to arrays, not be a "
            f"{type(gradient).__name__}"
        )
    names = cast(Any, tables)._fields
    strange = [name for name in gradient if name not in names]
    if strange:
        raise DataError(
            f"the function's gradient has the key {strange[0]!r}: only "
            f"{', '.join(names)} are parameters"
        )
    gradients = (
        _checked_array(gradient[name], name, table) if name in gradient else np.zeros_like(table)
        for name, table in cast(Any, tables)._asdict().items()
    )
    return type(tables)(*gradients)


def _checked_array(gradient: Any, name: str, table: Array) -> Array:
    try:
        with np.errstate(over="ignore"):  # found below, as an infinity
            array = np.asarray(gradient).astype(table.dtype, casting="same_kind")
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(f"the gradient of {name} is not an array of numbers: {error}") from error
    if array.shape != table.shape:
        raise DataError(f"the gradient of {name} has shape {array.shape}, not {table.shape}")
    bad = np.count_nonzero(~np.isfinite(array))
    if bad:
        raise DataError(f"the gradient of {name} has {bad:,} entries that are not finite")
    return array
