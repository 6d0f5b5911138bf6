"""numba-cuda without a driver: its arrays are here, its kernels are compiled to PTX and emulated."""

from __future__ import annotations

import threading
import weakref
from functools import cache
from types import SimpleNamespace
from typing import Any

import numba
import numpy as np
import pytest
from numba import cuda
from toolchain import ptx_of

from . import machine, ptx

__all__ = ["Array", "install"]

_memory = machine.Memory()
_one_at_a_time = threading.Lock()


class Array:
    """An array on the emulated device."""

    def __init__(self, shape: Any, dtype: Any, strides: Any = None, held: Any = None, base: int = 0) -> None:
        if held is None:
            shape = tuple(int(n) for n in np.atleast_1d(shape)) if np.ndim(shape) else (int(shape),)
            kind = np.dtype(dtype)
            base, room = _memory.allocate(int(np.prod(shape, dtype=np.int64)) * kind.itemsize)
            held = room.view(kind).reshape(shape)
            weakref.finalize(self, _memory.free, base)
        self._held, self._base, self._owner = held, base, None

    def _part(self, held: Any) -> Array:
        offset = held.__array_interface__["data"][0] - self._held.__array_interface__["data"][0]
        part = Array(None, None, held=held, base=self._base + offset)
        part._owner = self
        return part

    shape = property(lambda self: self._held.shape)
    dtype = property(lambda self: self._held.dtype)
    size = property(lambda self: self._held.size)
    ndim = property(lambda self: self._held.ndim)
    nbytes = property(lambda self: self._held.nbytes)
    strides = property(lambda self: self._held.strides)

    def __len__(self) -> int:
        return len(self._held)

    def __getitem__(self, key: Any) -> Any:
        found = self._held[key]
        return self._part(found) if isinstance(found, np.ndarray) else found

    def __setitem__(self, key: Any, value: Any) -> None:
        self._held[key] = getattr(value, "_held", value)

    def reshape(self, *shape: Any) -> Array:
        return self._part(self._held.reshape(*shape))

    def ravel(self) -> Array:
        return self._part(self._held.reshape(-1))

    def view(self, dtype: Any) -> Array:
        return self._part(self._held.view(dtype))

    def copy_to_host(self, ary: Any = None, stream: Any = 0) -> Any:
        if ary is None:
            return self._held.copy()
        ary[...] = self._held
        return ary

    def copy_to_device(self, source: Any, stream: Any = 0) -> None:
        self._held[...] = getattr(source, "_held", source)

    def is_c_contiguous(self) -> bool:
        return bool(self._held.flags.c_contiguous)


def _to_device(given: Any, stream: Any = 0, copy: bool = True, to: Any = None) -> Array:
    found = Array(given.shape, given.dtype)
    found.copy_to_device(given)
    return found


class _Stream:
    def synchronize(self) -> None:
        pass


class _Event:
    def record(self, stream: Any = None) -> None:
        pass

    def synchronize(self) -> None:
        pass


def _memset(target: Any, value: int, size: int, stream: Any = 0) -> None:
    target._held.reshape(-1).view("u1")[:size] = value


_programs: dict[Any, Any] = {}


def _program(kernel: Any, signature: Any) -> Any:
    key = kernel.py_func, kernel.py_func.__closure__ and tuple(id(c.cell_contents) for c in kernel.py_func.__closure__), signature
    if key not in _programs:
        _programs[key] = kernel, ptx.parse(ptx_of(kernel, signature, (9, 0)))
    return _programs[key][1]


def _host(given: Any) -> Any:
    """What numba would see: arrays of numpy in the place of ours."""
    if isinstance(given, tuple):
        parts = [_host(part) for part in given]
        return type(given)(*parts) if hasattr(given, "_fields") else tuple(parts)
    return getattr(given, "_held", given)


def _flat(given: Any) -> list[Any]:
    """Arguments as numba hands them over."""
    if isinstance(given, tuple):
        return [value for part in given for value in _flat(part)]
    if isinstance(given, Array):
        return [0, 0, given.size, given.dtype.itemsize, given._base, *given.shape, *given.strides]
    return [given]


def _launcher(kernel: Any, configuration: Any) -> Any:
    grid, block, _, shared = (*configuration, 0, 0)[:4]
    three = lambda n: tuple(map(int, ((*n, 1, 1) if isinstance(n, tuple) else (n, 1, 1))[:3]))  # noqa: E731

    def launch(*arguments: Any) -> None:
        signature = tuple(map(numba.typeof, map(_host, arguments)))
        with _one_at_a_time:
            program = _program(kernel, signature)
        given = [value for argument in arguments for value in _flat(argument)]
        assert len(given) == len(program.parameters), (kernel, len(given), len(program.parameters))
        kinds = {"u64": "i8", "u32": "i4", "u16": "i2", "u8": "u1", "f32": "f4", "f64": "f8"}
        packed = []
        for value, kind in zip(given, program.parameters, strict=True):
            number = np.asarray(value)
            to = np.dtype(kinds[kind])
            packed.append(number.astype(to)[()] if number.dtype.itemsize != to.itemsize else number.view(to)[()])
        with _one_at_a_time:
            machine.run(program, _memory, three(grid), three(block), int(shared), packed)

    return launch


def install(patch: pytest.MonkeyPatch) -> None:
    """Let the kernels of this process run here."""
    from numba.cuda.dispatcher import CUDADispatcher

    from fastinfluence.kernels.cuda import jit

    patch.setattr(CUDADispatcher, "__getitem__", _launcher)
    patch.setattr(cuda, "to_device", _to_device)
    patch.setattr(cuda, "device_array", lambda shape, dtype: Array(shape, dtype))
    patch.setattr(cuda, "pinned_array", lambda shape, dtype: np.empty(shape, dtype))
    patch.setattr(cuda, "per_thread_default_stream", _Stream)
    patch.setattr(cuda, "event", _Event)
    patch.setattr(cuda, "is_available", lambda: True)
    patch.setattr(cuda.cudadrv.driver, "device_memset", _memset)
    info = SimpleNamespace(
        get_memory_info=lambda: SimpleNamespace(free=2**30, total=2**30),
        memory_manager=SimpleNamespace(deallocations=[]),  # nothing is put off
    )
    patch.setattr(cuda, "current_context", lambda: info)
    device = SimpleNamespace(id=0, MULTIPROCESSOR_COUNT=4, name=b"emulated", compute_capability=(9, 0))
    patch.setattr(cuda, "get_current_device", lambda: device)
    patch.setattr(jit, "driver_problem", lambda: None)
