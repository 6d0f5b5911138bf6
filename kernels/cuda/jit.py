"""The one place that loads numba-cuda, says how CUDA kernels are compiled, and launches them.

Kernels are strict IEEE arithmetic as on the CPU (no fastmath), but for one thing that no option
of numba-cuda turns off: the compiler may contract a product and a sum. Where bits matter use
`simd.fma` and `simd.product`.

Every host function of this package returns when its work is done: a fault is reported by the
call that made it, and `dispatch.run_parts` may call it from several threads, each of which has
a stream of its own. All is done on the first GPU that CUDA shows.
"""

import functools
import os
import threading
from collections.abc import Callable
from typing import Any

import numpy as np

from ..errors import DeviceError, DeviceMemoryError

__all__ = ["SIMULATED", "cuda", "inner_kernel", "kernel", "launch", "stream", "whole"]

SIMULATED = os.environ.get("NUMBA_ENABLE_CUDASIM", "0") not in ("", "0")
"""Whether kernels run in numba-cuda's simulator: so slow that blocks must be small."""


_GONE = "row_stack"
"""A name that numba-cuda <= 0.30.4 asks numpy for, which from 2.5 on no longer has it."""


def _load() -> Any:
    """numba.cuda as numba-cuda makes it, not the deprecated one that numba brings."""
    patched = not hasattr(np, _GONE)
    if patched:
        setattr(np, _GONE, np.vstack)
    try:
        import _numba_cuda_redirector  # noqa: F401  (its .pth is not read with pip --target)
        from numba import cuda

        if getattr(cuda, "implementation", None) != "NVIDIA":
            raise ImportError("numba.cuda is the one built into numba, not numba-cuda")
        if not SIMULATED:
            import numba.cuda.np.arrayobj  # noqa: F401  (the module that asks)
            from numba.cuda.core import config

            # A stratum has few blocks, and streams run side by side: no reason to warn at each
            # launch, which where warnings are errors would be the end of it.
            config.CUDA_LOW_OCCUPANCY_WARNINGS = 0
    finally:
        if patched:
            delattr(np, _GONE)
    return cuda


if SIMULATED:
    _load()
    from .simulator import Cuda, Kernel

    cuda: Any = Cuda()
else:
    cuda = _load()


def kernel(function: Callable[..., Any] | None = None, **options: Any) -> Any:
    """Compile `function` lazily as a kernel, cached on disk where that is possible."""
    if function is None:
        return lambda f: kernel(f, **options)
    # Without link-time optimisation what is launched is what the tests hand to ptxas.
    flags = {"lto": False, **options}
    if SIMULATED:
        return Kernel(function)
    # A function in a closure has another name in every process: the cache would grow, never serve.
    cached = not any(_holds_function(cell.cell_contents) for cell in function.__closure__ or ())
    try:
        return cuda.jit(function, cache=cached, **flags)
    except RuntimeError:  # neither __pycache__ nor the user's cache folder is writable
        return cuda.jit(function, **flags)


def _holds_function(held: Any) -> bool:
    if isinstance(held, tuple):
        return any(map(_holds_function, held))
    return hasattr(held, "py_func")


def inner_kernel(function: Callable[..., Any] | None = None, **options: Any) -> Any:
    """Compile a function that kernels call."""
    if function is None:
        return lambda f: inner_kernel(f, **options)
    return function if SIMULATED else cuda.jit(function, device=True, **options)


def stream() -> Any:
    """The stream of this thread, which the driver keeps for it.

    It waits for the default stream, on which other libraries work, and that one for it.

    Raises
    ------
    DeviceError
        This thread is on another GPU than the first: those that `dispatch.run_parts` starts are
        not, and what is in the memory of one GPU is none of another's.
    """
    if not SIMULATED and (number := cuda.get_current_device().id):
        raise DeviceError(
            f"GPU {number} is the current one of this thread, and CUDA kernels run on GPU 0: make "
            f"that current, or start Python with CUDA_VISIBLE_DEVICES={number}"
        )
    return _stream_of_each_thread()


@functools.cache
def _stream_of_each_thread() -> Any:
    return cuda.per_thread_default_stream()


def launch(
    kernel: Any, blocks: Any, threads: Any, *arguments: Any, shared: int = 0, wait: bool = True
) -> None:
    """Run a kernel on the stream of this thread.

    Parameters
    ----------
    kernel
        From `kernel`.
    blocks, threads : int or tuple of int
        Of the grid, and of a block; nothing is done for a grid without blocks.
    *arguments
        Arrays on the device, numbers, and (named) tuples of them. None is no argument of a kernel:
        use an array without elements.
    shared : int, default 0
        Bytes of dynamic shared memory.
    wait : bool, default True
        False: another launch follows on this stream, the last of which waits.

    Raises
    ------
    DeviceError
        An array is in CPU memory; the launch failed, or a kernel before it on this stream.
    DeviceMemoryError
    """
    grid, block, shared = whole(blocks), whole(threads), int(shared)
    if min(grid) == 0:
        return
    name = kernel.py_func.__qualname__
    for number, argument in enumerate(arguments):
        _check_on_device(name, number, argument)
    if SIMULATED:
        with _one_at_a_time, reported(name):
            kernel[grid, block, 0, shared](*map(_bare, arguments))
        return
    with reported(f"kernel {name} (grid {grid}, block {block}, {shared} bytes shared)"):
        kernel[grid, block, stream(), shared](*arguments)
        if wait:
            stream().synchronize()


_one_at_a_time = threading.RLock()


def whole(numbers: Any) -> tuple[int, ...]:
    """A tuple of Python's own integers: numpy's are no sizes to numba-cuda."""
    return tuple(map(int, numbers if isinstance(numbers, tuple) else (numbers,)))


def _bare(given: Any) -> Any:
    """The numpy arrays in what the simulator has for arrays on a device."""
    if isinstance(given, tuple):
        bare = map(_bare, given)
        return type(given)(*bare) if hasattr(given, "_fields") else tuple(bare)
    return getattr(given, "_ary", given)


def _check_on_device(name: str, number: int, given: Any) -> None:
    if isinstance(given, tuple):
        for part in given:
            _check_on_device(name, number, part)
    elif isinstance(given, np.ndarray):
        raise DeviceError(
            f"argument {number} of the CUDA kernel {name} holds an array {given.shape} in CPU "
            "memory: move it to the device first (fastinfluence.kernels.cuda.memory.put)"
        )


class reported:
    """Turn errors of the driver into ours, with what was being done."""

    def __init__(self, what: str) -> None:
        self.what = what

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if not isinstance(error, Exception) or isinstance(error, DeviceError):
            return
        words = f"{type(error).__name__}: {error}"
        if "OUT_OF_MEMORY" in words:  # a MemoryError is one of CPU memory
            raise DeviceMemoryError(f"out of device memory: {self.what}: {error}") from error
        if kind.__module__.startswith(("numba.cuda", "cuda.")) or "CUDA" in words:
            raise DeviceError(f"{self.what} failed: {words}") from error


@functools.cache
def processors() -> int:
    """Number of multiprocessors of the device; 2 in the simulator."""
    return 2 if SIMULATED else cuda.get_current_device().MULTIPROCESSOR_COUNT


def device_name() -> str:
    """The device, its memory and compute capability."""
    if SIMULATED:
        return "simulator of numba-cuda"
    with reported("asking the GPU what it is"):
        device = cuda.get_current_device()
        total = cuda.current_context().get_memory_info().total
        major, minor = device.compute_capability
        name = device.name.decode() if isinstance(device.name, bytes) else device.name
    return f"{name}, {total / 2**30:.0f} GiB, compute capability {major}.{minor}"


def driver_problem() -> str | None:
    """Why kernels cannot be compiled and run here, which is tried out; None if they can."""
    if cuda.cudadrv.driver.driver.pid not in (None, os.getpid()):
        return "CUDA was used before this process was forked: start processes with 'spawn'"
    if not cuda.is_available():
        if cuda.cuda_error() is None:
            return "libNVVM, which compiles kernels, was not found: " + _INSTALL
        why = _first_line(cuda.cuda_error()).rstrip(".")
        return f"no NVIDIA GPU with a driver was found ({why}): install NVIDIA's driver for the GPU"
    try:
        driver, toolkit = driver_version(), toolkit_version()
    except Exception as error:  # of a library that is not there, or not whole
        return f"NVRTC, which kernels need, was not found ({_first_line(error)}): {_INSTALL}"
    versions = (
        f"the NVIDIA driver knows CUDA {driver[0]}.{driver[1]}, the toolkit installed is "
        f"{toolkit[0]}.{toolkit[1]}: "
    )
    if driver[0] < toolkit[0]:
        return f"{versions}pip install 'fastinfluence[cuda{driver[0]}]', or update the driver"
    try:
        _run_a_kernel()
    except Exception as error:  # a GPU that is too old or too new, full, another's, broken
        problem = f"kernels do not run on the GPU: {_first_line(error)}"
        if driver >= toolkit:
            return problem
        wanted = f"'cuda-toolkit=={driver[0]}.{driver[1]}.*'"
        return f"{problem}; {versions}pip install {wanted}, or update the driver"
    return None


_INSTALL = "pip install 'fastinfluence[cuda13]' (or [cuda12], for older drivers)"


def _run_a_kernel() -> None:
    """Have a small kernel compiled and run."""
    from . import memory

    memory.all_finite((memory.zeros(1, np.float32),))


def driver_version() -> tuple[int, int]:
    """CUDA version of the driver."""
    return tuple(cuda.cudadrv.driver.driver.get_version())


def toolkit_version() -> tuple[int, int]:
    """CUDA version of the compiler libraries that make the kernels."""
    from numba.cuda.cudadrv.runtime import runtime

    return tuple(runtime.get_version())


def _first_line(error: Any) -> str:
    lines = [line for line in str(error).splitlines() if line.strip(" :")]
    return next((line.strip() for line in lines if "driver init" not in line), "no reason given")
