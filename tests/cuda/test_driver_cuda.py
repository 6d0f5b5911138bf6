"""Arrays of numba-cuda itself, over a driver that is ctypes: what memory.py asks it for.

The simulator and the emulator bring arrays of their own; here those are numba-cuda's, as used on
a GPU: their copies, views, streams, and when their memory is freed.
"""

from __future__ import annotations

import ctypes
import gc
import threading
import weakref
from types import SimpleNamespace

import numpy as np
import pytest
from backends import EMULATED, SIMULATED, why_no_cuda

from fastinfluence.errors import DeviceError, DeviceMemoryError
from fastinfluence.kernels.structures import Side, Tables

jit = pytest.importorskip("fastinfluence.kernels.cuda.jit", exc_type=ImportError)
memory = pytest.importorskip("fastinfluence.kernels.cuda.memory", exc_type=ImportError)
pages = pytest.importorskip("fastinfluence.kernels.cuda.pages", exc_type=ImportError)

pytestmark = pytest.mark.skipif(
    SIMULATED or not why_no_cuda(), reason="numba-cuda has a driver, or stands aside"
)

ROOM = 10**6
PER_THREAD = 2  # the stream that each thread has of its own


class Driver:
    """The calls of the driver's interface, by name, with memory of the CPU."""

    def __init__(self, numba_driver):
        self._of, self.held, self.pinned = numba_driver, {}, {}
        self._current = threading.local()
        self.waited = []  # for streams, and None for all

    @property
    def free(self):
        return ROOM - sum(map(len, self.held.values()))

    def _fail(self, code, call):
        code = getattr(self._of.binding.CUresult, code)
        raise self._of.CudaAPIError(code, f"Call to {call} results in {code.name}")

    def _room(self, size, of):
        block = (ctypes.c_uint8 * size)()
        of[ctypes.addressof(block)] = block
        return ctypes.addressof(block)

    def cuCtxGetCurrent(self):
        return self._of.binding.CUcontext(getattr(self._current, "handle", 0))

    def cuCtxPushCurrent(self, handle):
        self._current.handle = int(handle)

    def cuCtxGetDevice(self):
        return 0

    def cuDeviceGetCount(self):
        return 1

    def cuMemGetInfo(self):
        return self.free, ROOM

    def cuMemAlloc(self, size):
        if size > self.free:
            self._fail("CUDA_ERROR_OUT_OF_MEMORY", "cuMemAlloc")
        return self._of.binding.CUdeviceptr(self._room(size, self.held))

    def cuMemFree(self, pointer):
        del self.held[int(pointer)]

    def cuMemHostAlloc(self, size, flags):
        return self._room(size, self.pinned)

    def cuMemFreeHost(self, pointer):
        del self.pinned[int(pointer)]

    def _copy(self, to, source, size, stream):
        assert stream == PER_THREAD
        ctypes.memmove(int(to), int(source), size)

    cuMemcpyHtoDAsync = cuMemcpyDtoHAsync = cuMemcpyDtoDAsync = _copy

    def cuMemsetD8Async(self, to, value, size, stream):
        assert stream == PER_THREAD
        ctypes.memset(int(to), value, size)

    def cuStreamSynchronize(self, stream):
        self.waited.append(stream)

    def cuCtxSynchronize(self):
        self.waited.append(None)

    def cuEventCreate(self, flags):
        return 1

    def cuEventRecord(self, event, stream):
        assert stream == PER_THREAD

    def cuEventSynchronize(self, event):
        pass

    def cuEventDestroy(self, event):
        pass

    def cuPointerGetAttribute(self, kind, pointer):
        assert kind.name == "CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL"
        return int(pointer) >> 32  # by our own agreement


class Gpu:
    """The first GPU; or another one that a thread has made its own."""

    def __init__(self, numba_driver):
        self.id, self.compute_capability = 0, (9, 0)
        handle = numba_driver.binding.CUcontext(1)
        self._context = numba_driver.Context(weakref.proxy(self), handle)

    def get_primary_context(self):
        return self._context


@pytest.fixture
def driver(monkeypatch):
    if EMULATED:
        pytest.skip("the emulator has arrays of its own")
    from numba.cuda.cudadrv import devices
    from numba.cuda.cudadrv import driver as numba_driver

    found = Driver(numba_driver)
    for name in dir(Driver):
        if name.startswith("cu"):
            monkeypatch.setitem(vars(numba_driver.driver), name, getattr(found, name))
    monkeypatch.setattr(numba_driver.driver, "initialization_error", None)
    monkeypatch.setattr(numba_driver, "_logger", numba_driver.make_logger(), raising=False)
    found.gpu = Gpu(numba_driver)
    monkeypatch.setattr(numba_driver.driver, "get_device", lambda number=0: found.gpu)
    monkeypatch.setattr(devices._runtime, "gpus", devices._DeviceList())
    yield found
    gc.collect()  # what is freed later finds no driver


def test_arrays_go_there_and_back(driver):
    fixed = np.arange(6.0)
    fixed.flags.writeable = False
    arrays = (
        np.arange(12.0).reshape(3, 4), np.array([True, False]), np.arange(5, dtype=np.uint16),
        np.empty((0, 3), np.float32), fixed, np.arange(12.0).reshape(3, 4)[:, ::2],
    )  # fmt: skip
    there = memory.put(arrays)
    for given, found in zip(arrays, memory.fetch(there), strict=True):
        assert (found.dtype, found.shape) == (given.dtype, given.shape)
        assert (found == given).all()
    assert set(driver.waited) == {PER_THREAD}
    table = there[0]
    assert memory.fetch(table[1:2]).tolist() == [[4, 5, 6, 7]]
    assert memory.fetch(table.reshape(12)[3:6]).tolist() == [3, 4, 5]
    assert not memory.fetch(memory.zeros((3, 5), np.float32)).any()


@pytest.mark.parametrize("shape", [3, (3,), (3, 2), (0, 2)])
def test_sizes_that_numpy_has_computed(driver, shape):
    computed = np.int64(shape) if isinstance(shape, int) else tuple(map(np.int64, shape))
    found = memory.fetch(memory.zeros(computed, np.float32))
    assert found.shape == np.zeros(shape).shape
    assert not found.any()


def test_copies_and_overwriting(driver):
    first = Tables(*memory.put((np.ones((2, 3)), np.ones((0, 3)), np.ones(2), np.ones(0))))
    second = memory.copied(first)
    memory.store(first.user_factors, np.full((2, 3), 7.0))
    assert memory.fetch(second.user_factors).tolist() == [[1] * 3] * 2
    memory.store(second.user_factors, first.user_factors)
    assert memory.fetch(second).user_factors.tolist() == [[7] * 3] * 2


def test_large_arrays_go_through_pinned_memory(driver, monkeypatch):
    monkeypatch.setattr(pages, "LARGE", 1000)
    monkeypatch.setattr(pages, "_BUFFER", 256)
    large = np.arange(1001.0).reshape(7, 143)
    assert (memory.fetch(memory.put(large)) == large).all()
    assert len(driver.pinned) == 2


def test_threads_use_what_others_have_made(driver):
    there, found = memory.put(np.arange(3)), []
    side = Side(np.arange(4.0), np.arange(3), np.arange(2))
    thread = threading.Thread(target=lambda: found.extend([memory.fetch(there), memory.put(side)]))
    thread.start()
    thread.join()
    assert found[0].tolist() == [0, 1, 2]
    assert memory.fetch(found[1].rows).tolist() == [0, 1, 2, 3]


def test_memory_that_nobody_uses_is_free(driver):
    """numba-cuda itself waits until a fifth of the memory has come together."""
    there = memory.put(np.zeros(ROOM // 10, np.uint8))
    assert memory.free_bytes() == ROOM - ROOM // 10
    del there
    assert driver.free < ROOM
    assert memory.free_bytes() == driver.free == ROOM


@pytest.mark.parametrize("make", [memory.empty, lambda n, dtype: memory.put(np.zeros(n, dtype))])
def test_memory_that_hangs_in_a_cycle_makes_room(driver, make):
    class Holder:
        pass

    gc.disable()
    try:
        holder = Holder()
        holder.itself, holder.array = holder, make(ROOM - 100, np.uint8)
        del holder
        found = make(ROOM - 200, np.uint8)
    finally:
        gc.enable()
    assert found.size == ROOM - 200
    with pytest.raises(DeviceMemoryError, match=r"out of device memory: 201 bytes .*OUT_OF_MEM"):
        make(201, np.uint8)


def test_another_gpu_than_the_first(driver):
    driver.gpu.id = 1
    with pytest.raises(DeviceError, match=r"GPU 1 is the current .* CUDA_VISIBLE_DEVICES=1"):
        memory.put(np.arange(3))


def looked_at(tables, flag, scale, n, out):
    if flag:
        out[0] = scale * tables.user_factors[0, 0] + n


@pytest.mark.parametrize("number", [int, np.int64, np.int32])
def test_what_a_launch_hands_over(driver, monkeypatch, number):
    """Up to the call that no stand-in can take: cuda.core refuses integers of numpy in a grid."""
    from cuda.core._kernel_arg_handler import ParamHolder
    from numba.cuda import dispatcher
    from numba.cuda.codegen import CUDACodeLibrary
    from numba.cuda.cudadrv import driver as numba_driver

    calls = []
    function = SimpleNamespace(module=SimpleNamespace(initialized=True), kernel="compiled")
    monkeypatch.setattr(CUDACodeLibrary, "get_cufunc", lambda library: function)
    monkeypatch.setattr(numba_driver, "_to_core_stream", int)
    monkeypatch.setattr(dispatcher, "launch", lambda *call: calls.append(call))
    there = Tables(*memory.put((np.ones((2, 3)), np.ones((0, 3)), np.ones(2), np.ones(0))))
    out, kernel = memory.zeros(1, np.float32), jit.cuda.jit(looked_at, lto=False)
    settings = np.bool_(True), np.float32(2), number(5), out
    jit.launch(kernel, number(7), (number(8), number(4)), there, *settings, shared=number(64))
    jit.launch(kernel, (number(2), number(3)), number(32), there, *settings)
    assert [(stream, name) for stream, _, name, *_ in calls] == [(PER_THREAD, "compiled")] * 2
    sizes = [(config.grid, config.block, config.shmem_size) for _, config, *_ in calls]
    assert sizes == [((7, 1, 1), (8, 4, 1), 64), ((2, 3, 1), (32, 1, 1), 0)]
    (compiled,) = kernel.overloads.values()
    for _, _, _, *given in calls:
        assert len(given) == compiled.inspect_asm((9, 0)).partition(")")[0].count(".param")
        ParamHolder(tuple(given))


class Foreign:
    """An array of another library."""

    def __init__(self, pointer=4096, version=2, **more):
        data = {"shape": (3,), "typestr": "<f4", "data": (pointer, False), "version": version}
        self.__cuda_array_interface__ = data | more


@pytest.mark.parametrize(
    ("version", "stream", "waited"),
    [(2, {}, None), (3, {"stream": None}, 0), (3, {"stream": 7}, 7)],
)
def test_arrays_of_other_libraries_are_waited_for(driver, version, stream, waited):
    """Torch does not say on which stream it fills them, so for all; others do, or need not."""
    found = memory.put(Foreign(version=version, **stream))
    assert found.shape == (3,)
    assert driver.waited == ([] if waited == 0 else [waited])


def test_arrays_of_other_libraries_on_another_gpu(driver):
    with pytest.raises(
        DeviceError, match=r"an array \(3,\) of .* lies on GPU 1.*VISIBLE_DEVICES=1"
    ):
        memory.put(Foreign(4096 | 1 << 32))
