"""What numba-cuda's simulator lacks, or does otherwise than a GPU.

With ``NUMBA_ENABLE_CUDASIM=1`` kernels run as Python, a thread for each thread of a block. The
simulator has no warps and rounds `fma` twice. `Cuda` stands in for the module ``numba.cuda``
in the kernels' files: inside of a kernel it has the exchanges of a warp as well.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
from numba import cuda, types
from numba.cuda.simulator import kernel as contexts
from numba.np.numpy_support import as_dtype

__all__ = ["Cuda", "fma", "load4", "product", "store4"]

PATIENCE = 30.0
"""Seconds the lanes of a warp wait for one another: on a GPU they would wait for ever."""

_lock = threading.Lock()


def _exchange(mask: int, value: Any) -> tuple[dict[int, Any], int]:
    """Values of all lanes of a mask, by lane, and the number of one's own."""
    thread: Any = threading.current_thread()
    manager = thread._manager
    lane, warp = thread.thread_id % 32, thread.thread_id // 32
    here = min(32, int(np.prod(manager._block_dim)) - warp * 32)
    mask = int(mask) & (1 << here) - 1
    if not mask >> lane & 1:
        raise RuntimeError(f"lane {lane} takes part in an exchange of the lanes {mask:#x}")
    with _lock:
        rooms = manager.__dict__.setdefault("_warps", {})
        if (warp, mask) not in rooms:
            rooms[warp, mask] = threading.Barrier(mask.bit_count()), {}
        barrier, values = rooms[warp, mask]
    values[lane] = value
    barrier.wait(PATIENCE)
    found = dict(values)
    barrier.wait(PATIENCE)
    return found, lane


def _shuffle(source: Callable[[int, int], int]) -> Callable[..., Any]:
    def shuffle(mask: int, value: Any, number: int) -> Any:
        values, lane = _exchange(mask, value)
        return values.get(source(lane, int(number)), value)

    return shuffle


class _Shared:
    """Shared memory of the block: the simulator's refuses to hear of an alignment."""

    def array(self, shape: Any, dtype: Any, alignment: int | None = None) -> Any:
        room = contexts._kernel_context.shared
        kind = np.dtype(as_dtype(dtype) if isinstance(dtype, types.Type) else dtype)
        if shape == 0:  # dynamic
            return room.array(0, kind)
        frame = sys._getframe(1)  # an array is known by the line that asks for it
        caller = frame.f_code.co_filename, frame.f_lineno
        with _lock:
            if caller not in room._allocations:
                room._allocations[caller] = np.empty(shape, kind)
            return room._allocations[caller]


def _inside() -> bool:
    """Whether a simulated thread asks: others may copy arrays while a kernel runs."""
    return hasattr(threading.current_thread(), "_manager")


class Cuda:
    """``numba.cuda`` outside of simulated kernels, and what a kernel sees of it inside."""

    shfl_sync = staticmethod(_shuffle(lambda lane, number: number % 32))
    shfl_up_sync = staticmethod(_shuffle(lambda lane, number: lane - number))
    shfl_down_sync = staticmethod(_shuffle(lambda lane, number: lane + number))
    shfl_xor_sync = staticmethod(_shuffle(lambda lane, number: lane ^ number))

    @staticmethod
    def ballot_sync(mask: int, predicate: Any) -> Any:
        values, _ = _exchange(mask, bool(predicate))
        return np.uint32(sum(1 << lane for lane, value in values.items() if value))

    @staticmethod
    def any_sync(mask: int, predicate: Any) -> bool:
        return any(_exchange(mask, bool(predicate))[0].values())

    @staticmethod
    def all_sync(mask: int, predicate: Any) -> bool:
        return all(_exchange(mask, bool(predicate))[0].values())

    @staticmethod
    def syncwarp(mask: int = 0xFFFFFFFF) -> None:
        _exchange(mask, None)

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

    @property
    def shared(self) -> Any:
        return _Shared() if _inside() else cuda.shared

    def __getattr__(self, name: str) -> Any:
        return getattr(contexts._kernel_context if _inside() else cuda, name)


def fma(x: Any, y: Any, z: Any) -> Any:
    """``x * y + z`` of float32 rounded once, as far as float64 tells; of float64 as it is."""
    if isinstance(x, np.float32):
        return np.float32(np.float64(x) * np.float64(y) + np.float64(z))
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
