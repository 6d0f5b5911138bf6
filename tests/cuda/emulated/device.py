"""What stands in for numba-cuda's device: arrays, streams, and launches of emulated kernels."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from types import SimpleNamespace
from typing import Any

import numba
import numpy as np
import pytest
from numba import cuda
from numba.cuda.dispatcher import CUDADispatcher
from toolchain import ptx_of

from . import machine
from .counters import Counter, InOrder
from .memory import Memory
from .ptx import Program, parse

__all__ = ["Array", "counted", "install"]

_ARCHITECTURE = (9, 0)

_memory = Memory()
_draw: np.random.Generator | InOrder = np.random.default_rng(0)
_one_at_a_time = threading.Lock()


class Array:
    """An array on the emulated device, or a part of one."""

    def __init__(self, held: Any, address: int, owner: Array | None = None) -> None:
        self.held, self.address, self._owner = held, address, owner

    @classmethod
    def empty(cls, shape: Any, dtype: Any) -> Array:
        kind = np.dtype(dtype)
        size = int(np.prod(shape, dtype=np.int64)) * kind.itemsize
        with _one_at_a_time:
            address, room = _memory.allocate(size)
        found = cls(room.view(kind).reshape(shape), address)
        weakref.finalize(found, _memory.free, address)
        return found

    shape = property(lambda self: self.held.shape)
    dtype = property(lambda self: self.held.dtype)
    size = property(lambda self: self.held.size)
    ndim = property(lambda self: self.held.ndim)
    nbytes = property(lambda self: self.held.nbytes)

    def is_c_contiguous(self) -> bool:
        return bool(self.held.flags.c_contiguous)

    def __len__(self) -> int:
        return len(self.held)

    def __getitem__(self, key: Any) -> Any:
        found = self.held[key]
        return self._part(found) if isinstance(found, np.ndarray) else found

    def reshape(self, *shape: Any) -> Array:
        return self._part(self.held.reshape(*shape))

    def ravel(self) -> Array:
        return self._part(self.held.reshape(-1))

    def view(self, dtype: Any) -> Array:
        return self._part(self.held.view(dtype))

    def copy_to_host(self, ary: Any = None, stream: Any = 0) -> Any:
        target = np.empty(self.shape, self.dtype) if ary is None else ary
        np.copyto(target, self.held)
        return target

    def copy_to_device(self, source: Any, stream: Any = 0) -> None:
        np.copyto(self.held, getattr(source, "held", source))

    def _part(self, held: Any) -> Array:
        first, mine = (a.__array_interface__["data"][0] for a in (self.held, held))
        return Array(held, self.address + mine - first, self)


class _Done:
    """A stream or an event on which nothing is ever under way."""

    def synchronize(self) -> None:
        pass

    def record(self, stream: Any = 0) -> None:
        pass


def install(patch: pytest.MonkeyPatch) -> None:
    """Let this process have an emulated device, and no other."""
    from fastinfluence.kernels.cuda import jit

    def to_device(given: Any, stream: Any = 0) -> Array:
        found = Array.empty(given.shape, given.dtype)
        found.copy_to_device(given)
        return found

    def clear(target: Any, value: int, size: int, stream: Any = 0) -> None:
        target.held.reshape(-1).view("uint8")[:size] = value

    context = SimpleNamespace(
        get_memory_info=lambda: SimpleNamespace(free=2**30, total=2**30),
        memory_manager=SimpleNamespace(deallocations=[]),
    )
    device = SimpleNamespace(
        id=0, MULTIPROCESSOR_COUNT=4, name="emulated", compute_capability=_ARCHITECTURE
    )
    for name, stand_in in {
        "to_device": to_device,
        "device_array": Array.empty,
        "pinned_array": np.empty,
        "stream": _Done,
        "per_thread_default_stream": _Done,
        "event": _Done,
        "is_available": lambda: True,
        "current_context": lambda: context,
        "get_current_device": lambda: device,
    }.items():
        patch.setattr(cuda, name, stand_in)
    patch.setattr(cuda.cudadrv.driver, "device_memset", clear)
    patch.setattr(CUDADispatcher, "__getitem__", _launcher)
    patch.setattr(jit, "driver_problem", lambda: None)


@contextmanager
def counted() -> Iterator[Counter]:
    """Count what kernels do meanwhile."""
    global _draw
    before, _draw = _draw, InOrder()
    _memory.watch = Counter()
    try:
        yield _memory.watch
    finally:
        _memory.watch, _draw = None, before


def _launcher(kernel: Any, configuration: Any) -> Any:
    blocks, threads, _, shared = configuration
    grid, block = (
        (*shape, 1, 1)[:3] if isinstance(shape, tuple) else (shape, 1, 1)
        for shape in (blocks, threads)
    )

    def launch(*arguments: Any) -> None:
        with _one_at_a_time:
            program = _program(kernel, tuple(map(numba.typeof, map(_seen, arguments))))
            flat = [number for argument in arguments for number in _flat(argument)]
            parameters = [
                _parameter(number, kind)
                for number, kind in zip(flat, program.parameters, strict=True)
            ]
            machine.run(program, _memory, grid, block, shared, parameters, _draw)

    return launch


@cache
def _program(kernel: Any, signature: Any) -> Program:
    name = f"{kernel.py_func.__module__.rpartition('.')[2]}.{kernel.py_func.__name__}"
    return replace(parse(ptx_of(kernel, signature, _ARCHITECTURE)), name=name)


def _seen(given: Any) -> Any:
    """An argument as numba types it."""
    if isinstance(given, tuple):
        parts = map(_seen, given)
        return type(given)(*parts) if hasattr(given, "_fields") else tuple(parts)
    return given.held if isinstance(given, Array) else given


def _flat(given: Any) -> list[Any]:
    """An argument as numba hands it over."""
    if isinstance(given, tuple):
        return [number for part in given for number in _flat(part)]
    if isinstance(given, Array):
        held = given.held
        return [0, 0, held.size, held.itemsize, given.address, *held.shape, *held.strides]
    return [given]


def _parameter(number: Any, kind: str) -> Any:
    """A number with the bits and the type of a parameter: u64 is int64, as in registers."""
    wanted = np.dtype(f"{kind[0].replace('u', 'i')}{int(kind[1:]) // 8}")
    given = np.asarray(number)
    return (given.view if given.itemsize == wanted.itemsize else given.astype)(wanted)[()]
