"""Arrays on a device of torch, and its errors as ours."""

from __future__ import annotations

import numpy as np
import pytest
from influence_cases import make_case

from fastinfluence import dispatch
from fastinfluence.errors import DeviceError, DeviceMemoryError
from fastinfluence.kernels.structures import Top

torch = pytest.importorskip("torch")


@pytest.fixture
def memory():
    return dispatch.memory("torch:cpu")


@pytest.mark.parametrize("dtype", ["float32", "float64", "int32", "int64", "bool", "uint16"])
def test_there_and_back(memory, dtype):
    array = np.arange(12).reshape(3, 4).astype(dtype)
    back = memory.fetch(memory.put(array))
    assert back.dtype == array.dtype
    np.testing.assert_array_equal(back, array)


def test_structures_numbers_and_none(memory):
    top = Top(np.zeros((2, 3)), np.zeros((2, 3), np.int32), np.zeros(2))
    there = memory.put((top, None, 3, 0.5))
    assert isinstance(there[0], Top)
    assert all(isinstance(part, torch.Tensor) for part in there[0])
    assert there[1:] == (None, 3, 0.5)
    assert memory.put(there[0].values) is there[0].values
    assert isinstance(memory.fetch(there)[0].totals, np.ndarray)


def test_bfloat16_is_uint16_in_numpy(memory):
    case = make_case(store=np.uint16, n_train=5, n_queries=0, kind="constant")
    rows = memory.put(case.user_side.rows)
    assert rows.dtype == torch.bfloat16
    assert (rows == 1).all()
    assert memory.fetch(rows).tolist() == case.user_side.rows.tolist()
    assert memory.empty((2,), np.uint16).dtype == torch.bfloat16


def test_read_only_and_strided_arrays(memory):
    """torch has neither: they are copied, and without a warning."""
    array = np.arange(12.0)
    array.flags.writeable = False
    there = memory.put(array)
    there += 1
    assert array.tolist() == list(range(12))
    assert memory.put(array[::-3]).tolist() == [11.0, 8.0, 5.0, 2.0]
    assert memory.put(array.copy()[::-3]).tolist() == [11.0, 8.0, 5.0, 2.0]


def test_room_copies_and_overwriting(memory):
    zeros = memory.zeros((2, 3), np.float32)
    assert zeros.dtype == torch.float32
    assert not zeros.any()
    memory.store(zeros, np.arange(6, dtype=np.float32).reshape(2, 3))
    copied = memory.copied((zeros, None))
    memory.store(zeros, memory.zeros((2, 3), np.float32))
    assert copied[0].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert copied[1] is None
    assert memory.free_bytes() > 0


@pytest.mark.parametrize("bad", [np.nan, -np.inf])
def test_whether_all_is_finite(memory, bad):
    there = memory.put((np.ones((2, 3), np.float32), np.zeros(0), np.ones(4)))
    assert memory.all_finite(there)
    there[2][3] = bad
    assert not memory.all_finite(there)


def test_a_tensor_on_another_device(memory):
    with pytest.raises(DeviceError, match=r"a tensor of shape \(2, 3\) is on meta.*on cpu"):
        memory.put(torch.zeros(2, 3, device="meta"))


def test_a_dtype_the_device_has_not(memory, monkeypatch):
    def refuse(*arguments, **options):
        raise TypeError("Cannot convert a MPS Tensor to float64 dtype")

    monkeypatch.setattr(torch, "zeros", refuse)
    with pytest.raises(DeviceError, match=r"float64: Cannot convert"):
        memory.zeros((2,), np.float64)


def test_no_memory_left(memory, monkeypatch):
    with pytest.raises(DeviceMemoryError, match=r"an array \(1000000000000, 1000\) of float64"):
        memory.empty((10**12, 1000), np.float64)

    def refuse(*arguments, **options):
        raise torch.OutOfMemoryError("tried to allocate 3 GiB")

    from fastinfluence.kernels.torch import conjugate_gradients

    panel = memory.zeros((2, 3, 16), np.float32)
    monkeypatch.setattr(torch, "cholesky_solve", refuse)
    with pytest.raises(DeviceMemoryError, match="preconditioning: tried to allocate 3 GiB"):
        conjugate_gradients.precondition_rows(panel, None, panel, 0, 2, panel)


@pytest.mark.parametrize("device", ["torch:meta", "torch:nowhere", "torch:cuda:99"])
def test_devices_that_cannot_be_used(device):
    with pytest.raises(DeviceError, match=f"device='{device}' cannot be used"):
        dispatch.choose(device, ("cpu", "torch"))
