import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import grouping as oracle

from fastinfluence.kernels.cpu.grouping import count_sort


@st.composite
def coded(draw):
    n_groups = draw(st.integers(1, 12))
    codes = draw(st.lists(st.integers(0, n_groups - 1), max_size=60))
    return np.array(codes, draw(st.sampled_from([np.int32, np.int64]))), n_groups


def assert_same(got, expected):
    for a, b in zip(got, expected, strict=True):
        assert a.dtype == np.int64
        np.testing.assert_array_equal(a, b)


@settings(deadline=None)
@given(coded())
def test_groups_like_a_stable_sort(case):
    codes, n_groups = case
    assert_same(count_sort(codes, n_groups), oracle.count_sort(codes, n_groups))


@settings(deadline=None)
@given(coded(), st.randoms(use_true_random=False))
def test_two_passes_sort_by_pair(case, random):
    minor, n_minor = case
    major = np.array([random.randrange(5) for _ in minor], np.int32)
    _, by_minor = count_sort(minor, n_minor)
    pointers, by_pair = count_sort(major, 5, by_minor)
    assert_same((pointers, by_pair), oracle.count_sort(major, 5, by_minor))
    np.testing.assert_array_equal(by_pair, np.lexsort((minor, major)))


@pytest.mark.parametrize("n_groups", [0, 1, 4])
def test_no_positions(n_groups):
    pointers, order = count_sort(np.empty(0, np.int32), n_groups)
    np.testing.assert_array_equal(pointers, np.zeros(n_groups + 1))
    assert order.size == 0


def test_one_group_keeps_positions():
    pointers, order = count_sort(np.zeros(5, np.int64), 1)
    np.testing.assert_array_equal(pointers, [0, 5])
    np.testing.assert_array_equal(order, np.arange(5))


@pytest.mark.parametrize("dtype", [np.int32, np.int64])
def test_read_only_and_memory_mapped_arrays(tmp_path, dtype):
    codes = np.array([2, 0, 2, 1, 0], dtype)
    np.save(tmp_path / "codes.npy", codes)
    np.save(tmp_path / "order.npy", np.arange(5)[::-1].copy())
    mapped = np.load(tmp_path / "codes.npy", mmap_mode="r")
    order = np.load(tmp_path / "order.npy", mmap_mode="r")
    frozen = codes.copy()
    frozen.flags.writeable = False
    for held in (mapped, frozen):
        assert_same(count_sort(held, 3), oracle.count_sort(codes, 3))
        assert_same(count_sort(held, 3, order), oracle.count_sort(codes, 3, order))
