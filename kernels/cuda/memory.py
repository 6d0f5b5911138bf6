"""Arrays on the device: there, back, and room for new ones."""

import gc
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from ..errors import DeviceError, DeviceMemoryError
from . import pages
from .jit import SIMULATED, cuda, kernel, launch, processors, reported, stream, whole

__all__ = ["all_finite", "copied", "empty", "fetch", "free_bytes", "put", "store", "zeros"]

_THREADS = 32 if SIMULATED else 256
_PER_PROCESSOR = 1 if SIMULATED else 8  # blocks


def put(given: Any) -> Any:
    """Move arrays to the device; those that are there stay where they are.

    Parameters
    ----------
    given
        An array (numpy, or anything with ``__cuda_array_interface__``), a (named) tuple of
        arrays, or what is none: None and numbers are handed back.

    Raises
    ------
    DeviceError
        An array of another library lies on another GPU.
    DeviceMemoryError
        There is no room for it.
    """
    if isinstance(given, tuple):
        return _each(put, given)
    if isinstance(given, np.ndarray):
        return _with_room(
            lambda: _copied_there(np.ascontiguousarray(given)), given.shape, given.nbytes
        )
    if hasattr(given, "__cuda_array_interface__") and not hasattr(given, "copy_to_host"):
        with reported(f"taking over an array of {type(given).__module__}"):
            return _taken_over(given)
    return given


def _copied_there(given: Any) -> Any:
    if given.nbytes >= pages.LARGE:
        return pages.staged(given)
    found = cuda.to_device(given, stream=stream())
    stream().synchronize()
    return found


def _with_room(make: Callable[[], Any], shape: Any, size: int) -> Any:
    """What `make` makes; if there is no room, once more without what nobody can use any longer.

    Arrays that hang in a cycle of references are freed by Python's own collector alone, which
    does not know that memory on the device is short.
    """
    what = f"{size:,} bytes for an array {shape}"
    try:
        with reported(what):
            return make()
    except DeviceMemoryError:
        pass
    gc.collect()
    with reported(what):
        return make()


def _taken_over(given: Any) -> Any:
    """An array of torch, cupy, ...: the same memory, once all that fills it is done."""
    interface = given.__cuda_array_interface__
    pointer = interface["data"][0]
    if pointer and (number := _gpu_of(pointer)):
        raise DeviceError(
            f"an array {tuple(interface['shape'])} of {type(given).__module__} lies on GPU "
            f"{number}, and CUDA kernels run on GPU 0: move it there, or start Python with "
            f"CUDA_VISIBLE_DEVICES={number}"
        )
    if interface["version"] < 3:  # does not say on which stream it is filled: torch's is of 2
        cuda.synchronize()
    return cuda.as_cuda_array(given)


def _gpu_of(pointer: int) -> int:
    """Number of the GPU that memory belongs to."""
    if SIMULATED:
        return 0
    driver = cuda.cudadrv.driver
    kind = driver.binding.CUpointer_attribute.CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL
    cuda.current_context()  # the driver answers only where there is one
    return int(driver.driver.cuPointerGetAttribute(kind, driver.binding.CUdeviceptr(pointer)))


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
    shape = whole(shape)
    size = math.prod(shape) * np.dtype(dtype).itemsize
    return _with_room(lambda: cuda.device_array(shape, dtype), shape, size)


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


@kernel
def look_for_nan(numbers, found):
    for i in range(cuda.grid(1), numbers.shape[0], cuda.gridsize(1)):
        if not math.isfinite(numbers[i]):
            found[0] = 1


def all_finite(arrays: tuple[Any, ...]) -> bool:
    """Whether no array on the device, without gaps, holds NaN or infinity; a flag comes back."""
    found = zeros(1, np.int32)
    for array in arrays:
        blocks = min(-(-array.size // _THREADS), processors() * _PER_PROCESSOR)
        launch(look_for_nan, blocks, _THREADS, array.reshape(array.size), found)
    return int(fetch(found)[0]) == 0


def free_bytes() -> int:
    """Memory that is left on the device."""
    if SIMULATED:
        return 2**30
    context = cuda.current_context()
    # numba-cuda puts off freeing until ten arrays, or a fifth of the memory, have come together.
    context.memory_manager.deallocations.clear()
    return int(context.get_memory_info().free)


def _each(function: Any, parts: tuple[Any, ...]) -> Any:
    found = map(function, parts)
    return type(parts)(*found) if hasattr(parts, "_fields") else tuple(found)
