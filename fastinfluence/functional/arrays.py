"""Arrays of other libraries, checked."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from fastinfluence import dispatch
from fastinfluence.errors import DataError
from fastinfluence.functional.homes import is_tensor, taken_over
from fastinfluence.kernels.structures import Tables

__all__ = ["as_array", "as_codes", "as_tables", "as_vector"]

Array = npt.NDArray[Any]


def as_array(given: Any) -> Array:
    """As a numpy array, sharing memory wherever the other side allows it; copied from a GPU."""
    given = taken_over(given)
    if is_tensor(given) and given.device.type != "cpu":
        given = given.cpu()
    elif hasattr(given, "copy_to_host"):
        return dispatch.memory("cuda").fetch(given)  # type: ignore[no-any-return]
    elif hasattr(given, "__cuda_array_interface__"):
        memory = dispatch.memory("cuda")
        return memory.fetch(memory.put(given))  # type: ignore[no-any-return]
    if hasattr(given, "__dlpack__") and not hasattr(given, "__array__"):
        return np.from_dlpack(given)
    try:
        return np.asarray(given)
    except (TypeError, RuntimeError) as error:  # an array of another device, say
        raise DataError(
            f"an array in CPU memory is needed, {type(given).__name__} cannot give one: {error}"
        ) from error


def as_vector(given: Any, dtype: npt.DTypeLike, name: str, n: int | None = None) -> Array:
    """As a contiguous vector of a dtype, of a length, with finite numbers."""
    vector = np.ascontiguousarray(as_array(given), dtype=dtype)
    if vector.ndim != 1 or (n is not None and len(vector) != n):
        raise DataError(f"{name} has shape {vector.shape}, a vector of {n} is needed")
    if vector.dtype.kind == "f" and not np.isfinite(vector).all():
        row = int((~np.isfinite(vector)).argmax())
        raise DataError(f"{name} must be finite, but row {row} is {vector[row]}")
    return vector


def as_codes(given: Any, n: int, name: str) -> npt.NDArray[np.int32]:
    """As codes from 0 to n - 1."""
    array = as_array(given)
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
        raise DataError(
            f"{name} must be a vector of integer codes, not {array.dtype} {array.shape}"
        )
    if array.size and (array.min() < 0 or array.max() >= n):
        raise DataError(f"{name} holds codes from {array.min()} to {array.max()}; 0 to {n - 1} fit")
    return np.ascontiguousarray(array, dtype=np.int32)


def as_tables(
    user_factors: Any,
    item_factors: Any,
    user_biases: Any,
    item_biases: Any,
    *,
    writable: bool,
    backend: str = "cpu",
) -> Tables:
    """As tables that fit together, where the kernels of a backend look for them."""
    given = user_factors, item_factors, user_biases, item_biases
    if backend == "cpu":
        tables = Tables(*map(as_array, given))
    else:
        tables = Tables(*dispatch.memory(backend).put(tuple(map(taken_over, given))))
    p, q, b, c = tables
    shapes = " ".join(str(table.shape) for table in tables)
    if p.ndim != 2 or q.ndim != 2 or p.shape[1] != q.shape[1]:
        raise DataError(f"factors must be (n_users, k) and (n_items, k); the tables are {shapes}")
    if b.shape != p.shape[:1] or c.shape != q.shape[:1]:
        raise DataError(f"biases must be (n_users,) and (n_items,); the tables are {shapes}")
    if len({table.dtype for table in tables}) > 1 or p.dtype not in (np.float32, np.float64):
        dtypes = ", ".join(str(table.dtype) for table in tables)
        raise DataError(f"tables must all be float32 or all float64, not {dtypes}")
    for name, table in tables._asdict().items():
        if writable and not _in_place(table):
            raise DataError(
                f"{name} is changed in place and must be C-contiguous and writable: pass a copy"
            )
    return tables


def _in_place(table: Any) -> bool:
    """Whether a kernel may write to a table where it lies."""
    if isinstance(table, np.ndarray):
        return bool(table.flags.c_contiguous and table.flags.writeable)
    return bool(table.is_c_contiguous())
