"""Arrays on the device that is the CPU, where they are already; the twin of those elsewhere."""

from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["all_finite", "copied", "empty", "fetch", "put", "store", "zeros"]


def put(given: Any) -> Any:
    """Hand back what is given: arrays, (named) tuples of them, or what is none."""
    return given


def fetch(given: Any) -> Any:
    """Hand back what is given."""
    return given


def store(target: Any, source: Any) -> None:
    """Overwrite an array with another one."""
    target[...] = source


def empty(shape: Any, dtype: Any) -> Any:
    """Room for an array."""
    return np.empty(shape, dtype)


def zeros(shape: tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """Zeros that begin on a cache line, so that rows of whole vectors do not straddle two."""
    dtype = np.dtype(dtype)
    size = int(np.prod(shape)) * dtype.itemsize
    raw = np.zeros(size + 64, np.uint8)
    start = -raw.ctypes.data % 64
    aligned: npt.NDArray[Any] = raw[start : start + size].view(dtype).reshape(shape)
    return aligned


def copied(given: Any) -> Any:
    """Copies of arrays, or of all in a (named) tuple."""
    if isinstance(given, tuple):
        found = map(copied, given)
        return type(given)(*found) if hasattr(given, "_fields") else tuple(found)
    if not isinstance(given, np.ndarray):
        return given
    new = zeros(given.shape, given.dtype)
    new[...] = given
    return new


def all_finite(arrays: tuple[Any, ...]) -> bool:
    """Whether no array holds NaN or infinity."""
    return all(bool(np.isfinite(array).all()) for array in arrays)
