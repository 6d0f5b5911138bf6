"""What stands in for CUDA with ``NUMBA_ENABLE_CUDASIM=1``: kernels run as Python.

Memory is numba-cuda's simulator's. Its threads are not: it has no warps, rounds `fma` twice, and
polls the threads of a block. `Cuda` stands in for the module ``numba.cuda`` in the kernels'
files, `Kernel` for a compiled kernel; see `simulated_blocks` for the threads, `simulated_memory`
for the arrays that they are given.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numba import cuda, types
from numba.cuda.simulator.kernelapi import FakeCUDAAtomic
from numba.np.numpy_support import as_dtype

from . import simulated_blocks
from .simulated_blocks import running

__all__ = ["Cuda", "Kernel", "fma", "load4", "product", "store4"]


class Kernel:
    """A kernel: ``kernel[blocks, threads, stream, shared](*arguments)`` runs it."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.py_func = function

    def __getitem__(self, configuration: Any) -> Callable[..., None]:
        blocks, threads, _, shared = configuration
        blocks, threads = (n if isinstance(n, tuple) else (n,) for n in (blocks, threads))
        return partial(self._run, blocks, threads, shared)

    def _run(self, blocks: Any, threads: Any, shared: int, *arguments: Any) -> None:
        simulated_blocks.run(self.py_func, blocks, threads, shared, arguments)


def _exchange(what: str, mask: int, value: Any, orders: bool = False) -> tuple[dict[int, Any], int]:
    """Values of all lanes of a mask that do the same, by lane, and the number of one's own."""
    thread = running()
    warp, lane = divmod(thread.number, 32)
    here = min(32, thread.block.size - warp * 32)
    mask = int(mask) & (1 << here) - 1
    if not mask >> lane & 1:
        raise RuntimeError(f"lane {lane} takes part in an exchange of the lanes {mask:#x}")
    who = f"{what} of warp {warp}, lanes {mask:#x}"
    met = thread.block.meet(who, value, mask.bit_count(), orders)
    return {other.number % 32: its for other, its in met.items()}, lane


def _shuffle(what: str, source: Callable[[int, int], int]) -> Callable[..., Any]:
    def shuffle(mask: int, value: Any, number: int) -> Any:
        values, lane = _exchange(what, mask, value)
        return values.get(source(lane, int(number)), value)

    return staticmethod(shuffle)


def _poisoned(shape: Any, dtype: Any) -> Any:
    """An array of NaN, or of -1."""
    kind = np.dtype(as_dtype(dtype) if isinstance(dtype, types.Type) else dtype)
    return np.full(int(np.prod(shape)) * kind.itemsize, 0xFF, np.uint8).view(kind).reshape(shape)


class _Local:
    array = staticmethod(_poisoned)


class _Shared:
    """Shared memory of the block."""

    @staticmethod
    def array(shape: Any, dtype: Any, alignment: int | None = None) -> Any:
        block = running().block
        frame = sys._getframe(1)  # an array is known by the line that asks for it
        asked = ("dynamic", dtype) if shape == 0 else (frame.f_code.co_filename, frame.f_lineno)
        if asked not in block.arrays:
            name = f"shared memory of {Path(frame.f_code.co_filename).name}:{frame.f_lineno}"
            if shape == 0:  # dynamic
                kind = np.dtype(dtype)
                whole = block.dynamic.size // kind.itemsize * kind.itemsize
                values, address = block.dynamic[:whole].view(kind), block.address
            else:
                values = _poisoned(shape, dtype)
                address = block.memory.room(values.nbytes)
            block.arrays[asked] = block.memory.watched(values, address, name)
        return block.arrays[asked]


class _Atomic:
    def __getattr__(self, name: str) -> Any:
        change = getattr(FakeCUDAAtomic, name)
        return lambda array, index, *given: change(self, array.atomically(index), index, *given)


class Cuda:
    """``numba.cuda`` for the host, and what a kernel sees of it."""

    atomic, local, shared = _Atomic(), _Local(), _Shared()

    threadIdx = property(lambda self: running().threadIdx)
    blockIdx = property(lambda self: running().block.blockIdx)
    blockDim = property(lambda self: running().block.blockDim)
    gridDim = property(lambda self: running().block.gridDim)

    @staticmethod
    def grid(n: int) -> Any:
        thread = running()
        mine, block, shape = thread.threadIdx, thread.block.blockIdx, thread.block.blockDim
        places = tuple(getattr(block, a) * getattr(shape, a) + getattr(mine, a) for a in "xyz")
        return places[0] if n == 1 else places[:n]

    @staticmethod
    def gridsize(n: int) -> Any:
        block = running().block
        sizes = tuple(getattr(block.gridDim, a) * getattr(block.blockDim, a) for a in "xyz")
        return sizes[0] if n == 1 else sizes[:n]

    @staticmethod
    def syncthreads() -> None:
        running().block.meet("block", None)

    shfl_sync = _shuffle("shfl_sync", lambda lane, number: number % 32)
    shfl_up_sync = _shuffle("shfl_up_sync", lambda lane, number: lane - number)
    shfl_down_sync = _shuffle("shfl_down_sync", lambda lane, number: lane + number)
    shfl_xor_sync = _shuffle("shfl_xor_sync", lambda lane, number: lane ^ number)

    @staticmethod
    def ballot_sync(mask: int, predicate: Any) -> Any:
        values, _ = _exchange("ballot_sync", mask, bool(predicate))
        return np.uint32(sum(1 << lane for lane, value in values.items() if value))

    @staticmethod
    def any_sync(mask: int, predicate: Any) -> bool:
        return any(_exchange("any_sync", mask, bool(predicate))[0].values())

    @staticmethod
    def all_sync(mask: int, predicate: Any) -> bool:
        return all(_exchange("all_sync", mask, bool(predicate))[0].values())

    @staticmethod
    def syncwarp(mask: int = 0xFFFFFFFF) -> None:
        _exchange("syncwarp", mask, None, orders=True)

    @staticmethod
    def ffs(value: Any) -> int:
        number = int(value)
        return (number & -number).bit_length()

    @staticmethod
    def clz(value: Any) -> int:
        return 32 - (int(value) & 0xFFFFFFFF).bit_length()

    @staticmethod
    def popc(value: Any) -> int:
        return int(value).bit_count()

    def __getattr__(self, name: str) -> Any:
        return getattr(cuda, name)


def fma(x: Any, y: Any, z: Any) -> Any:
    """``x * y + z`` rounded once; of float32 as far as float64 tells."""
    if isinstance(x, np.float32):
        return np.float32(np.float64(x) * np.float64(y) + np.float64(z))
    try:
        (a, b), (c, d), (e, f) = (number.as_integer_ratio() for number in (x, y, z))
        total = a * c * f + e * b * d
        # Python rounds the quotient of two whole numbers once.
        return np.float64(total / (b * d * f)) if total else x * y + z
    except (OverflowError, ValueError):  # infinite, or not a number
        return x * y + z


def product(x: Any, y: Any) -> Any:
    return x * y


def load4(array: Any, index: int) -> Any:
    if index % 4:
        raise IndexError(f"place {index} is no multiple of four")
    return tuple(array[index + n] for n in range(4))


def store4(array: Any, index: int, a: Any, b: Any, c: Any, d: Any) -> None:
    if index % 4:
        raise IndexError(f"place {index} is no multiple of four")
    for n, value in enumerate((a, b, c, d)):
        array[index + n] = value
