"""Arrays on the device: there, back, and room for new ones."""

from typing import Any

import numpy as np

from . import pages
from .jit import SIMULATED, cuda, reported, stream

__all__ = ["copied", "empty", "fetch", "free_bytes", "put", "store", "zeros"]


def put(given: Any) -> Any:
    """Move arrays to the device; those that are there stay where they are.

    Parameters
    ----------
    given
        An array (numpy, or anything with ``__cuda_array_interface__``), a (named) tuple of
        arrays, or what is none: None and numbers are handed back.

    Raises
    ------
    DeviceMemoryError
        There is no room for it.
    """
    if isinstance(given, tuple):
        return _each(put, given)
    if isinstance(given, np.ndarray):
        with reported(f"{given.nbytes:,} bytes for an array {given.shape}"):
            if given.nbytes >= pages.LARGE:
                return pages.staged(np.ascontiguousarray(given))
            found = cuda.to_device(np.ascontiguousarray(given), stream=stream())
            stream().synchronize()
        return found
    if hasattr(given, "__cuda_array_interface__") and not hasattr(given, "copy_to_host"):
        return cuda.as_cuda_array(given)  # torch's, cupy's: the same memory
    return given


def fetch(given: Any) -> Any:
    """Copy arrays back into CPU memory, as numpy arrays."""
    if isinstance(given, tuple):
        return _each(fetch, given)
    if not hasattr(given, "copy_to_host"):
        return given
    with reported("copying to the CPU"):
        found = given.copy_to_host(stream=stream())
        stream().synchronize()
    return found


def store(target: Any, source: Any) -> None:
    """Overwrite an array on the device with another one, from either side."""
    if target.size == 0:
        return
    with reported("copying to the device"):
        if isinstance(source, np.ndarray):
            source = np.ascontiguousarray(source)
        target.copy_to_device(source, stream=stream())
        stream().synchronize()


def empty(shape: Any, dtype: Any) -> Any:
    """Room for an array."""
    size = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
    with reported(f"{size:,} bytes for an array {shape}"):
        return cuda.device_array(shape, dtype)


def zeros(shape: Any, dtype: Any) -> Any:
    """An array of zeros."""
    found = empty(shape, dtype)
    if SIMULATED:
        found[...] = 0
    elif found.size:
        with reported(f"clearing an array {shape}"):
            cuda.cudadrv.driver.device_memset(found, 0, found.nbytes, stream=stream())
            stream().synchronize()
    return found


def copied(given: Any) -> Any:
    """Copies on the device of arrays that are there."""
    if isinstance(given, tuple):
        return _each(copied, given)
    if not hasattr(given, "copy_to_device"):
        return given
    found = empty(given.shape, given.dtype)
    store(found, given)
    return found


def free_bytes() -> int:
    """Memory that is left on the device."""
    if SIMULATED:
        return 2**30
    return int(cuda.current_context().get_memory_info().free)


def _each(function: Any, parts: tuple[Any, ...]) -> Any:
    found = map(function, parts)
    return type(parts)(*found) if hasattr(parts, "_fields") else tuple(found)
