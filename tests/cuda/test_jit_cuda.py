"""What stands between kernels and the device: launches, arrays, errors, the simulator's parts."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from backends import SIMULATED

from fastinfluence.errors import DeviceError, DeviceMemoryError
from fastinfluence.kernels.structures import Tables

jit = pytest.importorskip("fastinfluence.kernels.cuda.jit", exc_type=ImportError)
memory = pytest.importorskip("fastinfluence.kernels.cuda.memory", exc_type=ImportError)
simd = pytest.importorskip("fastinfluence.kernels.cuda.simd", exc_type=ImportError)
cuda = jit.cuda

WHOLE = 0xFFFFFFFF


@jit.kernel
def exchange(source, out):
    t = cuda.threadIdx.x
    x = source[t]
    out[0, t] = cuda.shfl_xor_sync(WHOLE, x, 5)
    out[1, t] = cuda.shfl_down_sync(WHOLE, x, 3)
    out[2, t] = cuda.shfl_up_sync(WHOLE, x, 3)
    out[3, t] = cuda.shfl_sync(WHOLE, x, 7)
    out[4, t] = cuda.ballot_sync(WHOLE, x > 20)
    out[5, t] = cuda.any_sync(WHOLE, x > 20)
    out[6, t] = cuda.all_sync(WHOLE, x > 20)
    out[7, t] = cuda.popc(t) + cuda.ffs(t) + cuda.clz(t)


def test_lanes_of_a_warp_exchange_what_they_hold():
    x = np.random.default_rng(0).permutation(32).astype(np.int64)
    out = memory.put(np.full((8, 32), -1))
    jit.launch(exchange, 1, 32, memory.put(x), out)
    out, t = memory.fetch(out), np.arange(32)
    assert (out[0] == x[t ^ 5]).all()
    assert (out[1] == x[np.where(t + 3 < 32, t + 3, t)]).all()
    assert (out[2] == x[np.where(t >= 3, t - 3, t)]).all()
    assert (out[3] == x[7]).all()
    assert (out[4].astype(np.uint32) == np.packbits(x > 20, bitorder="little").view("<u4")).all()
    assert (out[5] == 1).all()
    assert (out[6] == 0).all()
    bits = [n.bit_count() + (n & -n).bit_length() + 32 - n.bit_length() for n in range(32)]
    assert out[7].tolist() == bits


@jit.kernel
def turned_round(x, out):
    mine = cuda.shared.array(32, np.float64, alignment=16)
    again = cuda.shared.array(32, np.float64, alignment=16)
    rest = cuda.shared.array(0, np.float64, alignment=16)
    t = cuda.threadIdx.x
    mine[t], again[t], rest[t] = x[t], 2 * x[t], 3 * x[t]
    cuda.syncthreads()
    out[0, t], out[1, t], out[2, t] = mine[31 - t], again[31 - t], rest[31 - t]


def test_aligned_shared_memory_static_and_dynamic():
    x, out = np.arange(32.0), memory.put(np.full((3, 32), np.nan))
    jit.launch(turned_round, 1, 32, memory.put(x), out, shared=32 * 8)
    assert (memory.fetch(out) == np.arange(1, 4)[:, None] * x[::-1]).all()


@jit.kernel
def arithmetic(x, y, z, out):
    t = cuda.threadIdx.x
    out[t] = simd.fma(x[t], y[t], z[t])
    out[32 + t] = simd.product(x[t], y[t]) + z[t]
    mask = 0xFFFF if t < 16 else 0xFFFF0000
    out[64 + t] = simd.tree_sum(np.uint32(mask), x[t])
    if t < 8:
        a, b, c, d = simd.load4(x, 4 * t)
        simd.store4(out, 96 + 4 * t, d, c, b, a)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_one_rounding_or_two(dtype):
    """``x y + z`` where the product nearly cancels: rounding it first shows."""
    rng = np.random.default_rng(1)
    x, y = rng.standard_normal((2, 32)).astype(dtype)
    z = -(x * y)
    out = memory.put(np.full(128, np.nan, dtype))
    jit.launch(arithmetic, 1, 32, *map(memory.put, (x, y, z)), out)
    out = memory.fetch(out)
    exact = [
        dtype(float(Fraction(float(a)) * Fraction(float(b)) + Fraction(float(c))))
        for a, b, c in zip(x, y, z, strict=True)
    ]
    assert any(exact)
    assert out[:32].tolist() == exact
    assert (out[32:64] == 0).all()
    for half in (0, 16):
        sums = x[half : half + 16]
        while len(sums) > 1:
            sums = sums[: len(sums) // 2] + sums[len(sums) // 2 :]
        assert (out[64 + half : 80 + half] == sums[0]).all()
    assert (out[96:].reshape(8, 4) == x.reshape(8, 4)[:, ::-1]).all()


@pytest.mark.skipif(not SIMULATED, reason="the simulator's own arithmetic")
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_what_is_not_finite_or_zero_is_as_ieee_says(dtype):
    """Beside: what overflows, and what only the product overflows."""
    most, least = np.finfo(dtype).max, np.finfo(dtype).smallest_subnormal
    cases = [
        (np.inf, 2, 1, np.inf), (np.inf, 0, 1, np.nan), (np.nan, 1, 1, np.nan),
        (1, 1, -np.inf, -np.inf),
        (0, -1, -0.0, -0.0), (0, 1, -0.0, 0.0), (2, 3, -6, 0.0), (most, 2, 0, np.inf),
        (most, 2, -most, most), (least, 0.5, least, 2 * least), (-least, 0.25, 0, -0.0),
    ]  # fmt: skip
    with np.errstate(all="ignore"):
        for x, y, z, right in cases:
            found = simd.fma(dtype(x), dtype(y), dtype(z))
            assert found.dtype == dtype
            assert found.tobytes() == dtype(right).tobytes() or np.isnan([found, right]).all()


@jit.kernel
def summed(x, out):
    given = cuda.shared.array(8, np.int64)
    t = cuda.threadIdx.x + 4 * cuda.threadIdx.y
    given[t] = x[t]
    if x[t] < 0:
        return
    cuda.syncthreads()
    for n in range(8):
        if x[n] >= 0:
            out[t] += given[n]


def test_threads_that_have_ended_are_not_waited_for():
    x, out = np.array([0, 1, 2, 3, -1, 5, -1, 7]), memory.put(np.zeros(8, np.int64))
    jit.launch(summed, 1, (4, 2), memory.put(x), out)
    assert memory.fetch(out).tolist() == [0 if v < 0 else 18 for v in x]


@jit.kernel
def places(out):
    x, y = cuda.grid(2)
    width, height = cuda.gridsize(2)
    out[x, y] = width * 1000 + height * 100 + cuda.blockIdx.y * 10 + cuda.threadIdx.y


def test_blocks_of_two_dimensions():
    out = memory.put(np.full((6, 4), -1))
    jit.launch(places, (2, 2), (3, 2), out)
    assert memory.fetch(out).tolist() == [[6400, 6401, 6410, 6411]] * 6


@jit.kernel
def through_a_structure(tables, factor, out):
    t = cuda.threadIdx.x
    row = tables.user_factors[t]
    for f in range(row.shape[0]):
        out[t] += factor * row[f]
    out[t] += tables.item_factors.shape[0]


def structure(dtype=np.float32):
    rng = np.random.default_rng(0)
    return Tables(rng.random((4, 3), dtype), np.empty((0, 3), dtype), *np.zeros((2, 4), dtype))


def test_structures_go_there_and_back():
    tables = structure()
    there = memory.put(tables)
    out = memory.zeros(4, np.float32)
    jit.launch(through_a_structure, 1, 4, there, np.float32(2), out)
    np.testing.assert_allclose(memory.fetch(out), 2 * tables.user_factors.sum(1), rtol=1e-6)
    back = memory.fetch(there)
    assert isinstance(back, Tables)
    for mine, its in zip(tables, back, strict=True):
        assert its.dtype == mine.dtype
        assert (its == mine).all()
        assert its.shape == mine.shape
    assert memory.put((None, 3)) == (None, 3)
    assert memory.put(there).user_factors is there.user_factors


def test_arrays_that_may_not_be_written_or_have_gaps_are_copied():
    fixed = np.arange(6.0)
    fixed.flags.writeable = False
    assert (memory.fetch(memory.put(fixed)) == fixed).all()
    gaps = np.arange(12.0).reshape(3, 4)[:, ::2]
    assert (memory.fetch(memory.put(gaps)) == gaps).all()


def test_copies_and_overwriting():
    first = memory.put(np.arange(5.0))
    second = memory.copied((first, None))[0]
    memory.store(first, np.full(5, 7.0))
    assert memory.fetch(second).tolist() == [0, 1, 2, 3, 4]
    memory.store(second, first)
    assert memory.fetch(second).tolist() == [7.0] * 5
    memory.store(memory.empty((0, 3), np.float64), np.empty((0, 3)))
    assert memory.free_bytes() > 0


@pytest.mark.parametrize("bad", [np.nan, -np.inf])
@pytest.mark.parametrize("place", [0, 99])
def test_whether_all_is_finite(place, bad):
    arrays = np.ones((2, 3), np.float32), np.zeros((0, 3)), np.full((50, 2), 1e308)
    assert memory.all_finite(memory.put(arrays)) is True
    arrays[2].flat[place] = bad
    assert memory.all_finite(memory.put(arrays)) is False


# ---------------------------------------------------------------- errors


def test_an_array_in_cpu_memory_is_no_argument():
    out = memory.zeros(4, np.float32)
    with pytest.raises(DeviceError, match=r"argument 0 .*through_a_structure.*\(4, 3\) in CPU mem"):
        jit.launch(through_a_structure, 1, 4, structure(), np.float32(1), out)


def test_a_grid_without_blocks_is_no_work():
    out = memory.zeros(4, np.float32)
    jit.launch(through_a_structure, 0, 4, memory.put(structure()), np.float32(1), out)
    assert not memory.fetch(out).any()


def driver_error(words):
    """What numba-cuda raises for an error of the driver."""
    if SIMULATED:
        raised = type("CudaAPIError", (Exception,), {"__module__": "numba.cuda.cudadrv.driver"})
        return raised(words)
    from numba.cuda.cudadrv.driver import CudaAPIError

    return CudaAPIError(1, words)


class Failing:
    """A kernel whose launch fails."""

    def __init__(self, error):
        self.error, self.py_func = error, through_a_structure.py_func

    def __getitem__(self, configuration):
        return self

    def __call__(self, *arguments):
        raise self.error


def test_a_launch_that_fails_is_reported_by_the_call():
    failing = Failing(driver_error("CUDA_ERROR_INVALID_VALUE"))
    with pytest.raises(DeviceError, match=r"through_a_structure.*CUDA_ERROR_INVALID_VALUE"):
        jit.launch(failing, 1, 4, memory.zeros(4, np.float32))


def test_a_launch_without_memory():
    failing = Failing(driver_error("CUDA_ERROR_OUT_OF_MEMORY"))
    with pytest.raises(DeviceMemoryError, match=r"out of device memory: .*through_a_structure"):
        jit.launch(failing, 1, 4, memory.zeros(4, np.float32))


def test_no_memory_for_an_array(monkeypatch):
    def refuse(*arguments, **keywords):
        raise driver_error("CUDA_ERROR_OUT_OF_MEMORY")

    monkeypatch.setattr(jit.cuda, "device_array", refuse, raising=False)
    monkeypatch.setattr(jit.cuda, "to_device", refuse, raising=False)
    with pytest.raises(DeviceMemoryError, match=r"8,000 bytes for an array \(10, 100\)"):
        memory.empty((10, 100), np.float64)
    with pytest.raises(DeviceMemoryError, match=r"800 bytes for an array \(100,\)"):
        memory.put(np.zeros(100))


@pytest.mark.skipif(not SIMULATED, reason="the simulator's own check")
def test_lanes_outside_their_own_mask_are_told():
    @jit.kernel
    def wrong(out):
        out[cuda.threadIdx.x] = cuda.shfl_xor_sync(0xF, cuda.threadIdx.x, 1)

    with pytest.raises(RuntimeError, match="takes part in an exchange of the lanes 0xf"):
        jit.launch(wrong, 1, 8, memory.zeros(8, np.int64))


@pytest.mark.skipif(not SIMULATED, reason="on a GPU these threads wait for ever")
def test_threads_that_wait_in_vain_are_told():
    @jit.kernel
    def divided(out):
        if cuda.threadIdx.x < 3:
            cuda.syncthreads()
        else:
            cuda.syncwarp()
        out[cuda.threadIdx.x] = 1

    out = memory.zeros(8, np.int64)
    with pytest.raises(RuntimeError, match="wait for others that do not come") as caught:
        jit.launch(divided, 1, 8, out)
    assert "3 (block)" in str(caught.value)
    assert "5 (syncwarp of warp 0, lanes 0xff)" in str(caught.value)
    assert not memory.fetch(out).any()


@pytest.mark.skipif(not SIMULATED, reason="on a GPU these threads wait for ever")
def test_different_exchanges_do_not_meet():
    @jit.kernel
    def divided(out):
        if cuda.threadIdx.x < 3:
            out[cuda.threadIdx.x] = cuda.ballot_sync(WHOLE, True)
        else:
            out[cuda.threadIdx.x] = cuda.shfl_sync(WHOLE, 1, 0)

    with pytest.raises(RuntimeError, match="wait for others that do not come"):
        jit.launch(divided, 1, 32, memory.zeros(32, np.int64))


@pytest.mark.skipif(not SIMULATED, reason="on a GPU nothing is raised")
def test_a_thread_that_fails_ends_its_block_and_is_named():
    @jit.kernel
    def failing(out):
        out[0, cuda.grid(1)] = 1
        if cuda.grid(1) == 6:
            out[9, 9] = 0
        cuda.syncthreads()
        out[1, cuda.grid(1)] = 1

    out = memory.zeros((2, 12), np.int64)
    with pytest.raises(IndexError, match="out of bounds") as caught:
        jit.launch(failing, 3, 4, out)
    thread, block = "{'x': 2, 'y': 0, 'z': 0}", "{'x': 1, 'y': 0, 'z': 0}"
    assert caught.value.__notes__[0] == f"in thread {thread} of block {block}"
    assert memory.fetch(out)[0, 6] == 1
    assert not memory.fetch(out)[1, 4:8].any()
    jit.launch(places, (2, 2), (3, 2), memory.put(np.full((6, 4), -1)))  # and others go on


@pytest.mark.skipif(not SIMULATED, reason="the simulator's own check")
def test_memory_of_a_block_holds_nothing_to_begin_with():
    @jit.kernel
    def read(out):
        shared = cuda.shared.array(2, np.float64)
        mine = cuda.local.array(2, np.float32)
        out[cuda.blockIdx.x, 0], out[cuda.blockIdx.x, 1] = shared[1], mine[1]
        shared[1] = 1

    out = memory.zeros((2, 2), np.float64)
    jit.launch(read, 2, 1, out)
    assert np.isnan(memory.fetch(out)).all()


def test_errors_in_python_are_passed_on():
    with pytest.raises(ZeroDivisionError), jit.reported("dividing"):
        1 / 0  # noqa: B018
    with pytest.raises(MemoryError) as caught, jit.reported("copying to the CPU"):
        raise MemoryError
    assert not isinstance(caught.value, DeviceError)  # it was no memory of a device


def test_loading_lends_numpy_a_name_and_takes_it_back(monkeypatch):
    """As on numpy 2.5, which has lost it."""
    monkeypatch.delattr(np, jit._GONE, raising=False)
    before = set(vars(np))
    assert jit._load().implementation == "NVIDIA"
    assert set(vars(np)) == before
    assert not hasattr(np, jit._GONE)
    assert np.vstack(([1], [2])).shape == (2, 1)
