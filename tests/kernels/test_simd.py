from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import simd as oracle

from fastinfluence.kernels.cpu import lanes, scan, simd
from fastinfluence.kernels.cpu.jit import kernel

DTYPES = [np.float32, np.float64]
GUARD = 32  # entries around a row that nobody may read or write


@kernel
def dot(x, y):
    return simd.dot(x, y)


@kernel
def dots_of_rows(p, q, out):
    """The same intrinsic inlined into a loop over row views, with other arithmetic around it."""
    for r in range(p.shape[0]):
        out[r] = out[r] * 2 + simd.dot(p[r], q[r]) - out[r] * 2


@kernel
def moments(row):
    return scan.moments(row, 0, row.shape[0])


@kernel
def count_at_least(row, threshold):
    return scan.count_at_least(row, 0, row.shape[0], threshold)


@kernel
def compress_at_least(row, threshold, values, positions):
    return scan.compress_at_least(row, 0, row.shape[0], threshold, values, positions)


@kernel
def move_pair(p, q, keep, step):
    simd.move_pair(p, q, keep, step)


@kernel
def move_pair_recorded(p, q, p_change, q_change, keep, step):
    simd.move_pair_recorded(p, q, p_change, q_change, keep, step)


@kernel
def prefetch(array, index):
    simd.prefetch(array, index)


def guarded(values):
    """A contiguous view of a copy of `values` with NaN on both sides, and the whole buffer."""
    buffer = np.full(len(values) + 2 * GUARD, np.nan, values.dtype)
    row = buffer[GUARD : GUARD + len(values)]
    row[:] = values
    return row, buffer


def assert_guards_untouched(buffer):
    assert np.isnan(buffer[:GUARD]).all()
    assert np.isnan(buffer[-GUARD:]).all()


def random_rows(length, n, dtype, seed=0):
    rng = np.random.default_rng([seed, length])
    scale = 10.0 ** rng.integers(-3, 4, (n, length))
    return (rng.standard_normal((n, length)) * scale).astype(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_dot_of_every_length(dtype):
    for length in range(201):
        x, y = (guarded(row)[0] for row in random_rows(length, 2, dtype))
        got = dot(x, y)
        assert got == oracle.dot(x, y), length
        exact = float(np.dot(x.astype(np.longdouble), y.astype(np.longdouble)))
        size = float(np.abs(x).astype(float) @ np.abs(y).astype(float))
        assert abs(got - exact) <= (length + 1) * np.finfo(dtype).eps * size


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("length", [1, 15, 16, 17, 31, 33, 48, 64, 100, 200])
def test_dot_has_the_same_bits_wherever_it_is_inlined(dtype, length):
    p, q = random_rows(length, 14, dtype).reshape(2, 7, length)
    out = np.zeros(7, dtype)
    dots_of_rows(p, q, out)
    np.testing.assert_array_equal(out, [dot(x, y) for x, y in zip(p, q, strict=True)])


def test_dot_takes_read_only_rows():
    x, y = random_rows(40, 2, np.float32)
    x.flags.writeable = False
    assert dot(x, y) == oracle.dot(x, y)


@st.composite
def padded_row(draw):
    """Whole vectors with ties, infinities and zeros of both signs, and a threshold."""
    numbers = st.sampled_from([-np.inf, -2.5, -1.0, -0.0, 0.0, 1.0, 1.5, 3.0, np.inf])
    n = lanes.LANES * draw(st.integers(0, 6))
    values = draw(st.lists(numbers, min_size=n, max_size=n))
    dtype = draw(st.sampled_from(DTYPES))
    return np.array(values, dtype), dtype(draw(numbers))


@settings(deadline=None, max_examples=50)
@given(padded_row())
def test_counts_and_compresses(case):
    row, threshold = case
    values, positions = oracle.compress_at_least(row, threshold)
    assert count_at_least(row, threshold) == oracle.count_at_least(row, threshold) == len(values)

    room = len(values) + lanes.LANES
    got_values = np.full(room + GUARD, -7, row.dtype)
    got_positions = np.full(room + GUARD, -7, np.int32)
    count = compress_at_least(row, threshold, got_values[:room], got_positions[:room])
    assert count == len(values)
    np.testing.assert_array_equal(got_values[:count], values)
    np.testing.assert_array_equal(got_positions[:count], positions)
    assert (got_values[room:] == -7).all()
    assert (got_positions[room:] == -7).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_nan_is_never_at_least_anything(dtype):
    row = np.full(32, np.nan, dtype)
    row[5] = 1
    values, positions = np.zeros(48, dtype), np.zeros(48, np.int32)
    assert count_at_least(row, dtype(-np.inf)) == 1
    assert compress_at_least(row, dtype(-np.inf), values, positions) == 1
    assert (values[0], positions[0]) == (1, 5)
    assert count_at_least(row, dtype(np.nan)) == 0


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 12), st.integers(0, 99), st.sampled_from(DTYPES))
def test_moments(n_vectors, seed, dtype):
    row = random_rows(lanes.LANES * n_vectors, 1, dtype, seed)[0]
    got, expected = moments(row), oracle.moments(row)
    tolerance = (len(row) + 2) * float(np.finfo(dtype).eps)
    assert abs(got[0] - expected[0]) <= tolerance * expected[2]
    assert got[1] == pytest.approx(expected[1], rel=tolerance)
    assert got[2] == pytest.approx(expected[2], rel=tolerance)


@pytest.mark.parametrize("dtype", DTYPES)
def test_moments_of_infinities(dtype):
    row = np.full(16, -np.inf, dtype)
    assert moments(row) == (-np.inf, np.inf, np.inf)


@pytest.mark.parametrize("dtype", DTYPES)
def test_pairs_move_inside_their_rows_only(dtype):
    for length in [*range(1, 50), 63, 64, 65, 100, 128, 200]:
        old_p, old_q, changes_p, changes_q = random_rows(length, 4, dtype)
        keep, step = dtype(0.97), dtype(0.03)
        new_p, new_q = oracle.move_pair(old_p, old_q, keep, step)

        (p, p_buffer), (q, q_buffer) = guarded(old_p), guarded(old_q)
        move_pair(p, q, keep, step)
        np.testing.assert_array_equal(p, new_p)
        np.testing.assert_array_equal(q, new_q)

        rows, buffers = zip(
            *(guarded(row) for row in (old_p, old_q, changes_p, changes_q)), strict=True
        )
        move_pair_recorded(*rows, keep, step)
        expected = new_p, new_q, changes_p + (new_p - old_p), changes_q + (new_q - old_q)
        for got, wanted in zip(rows, expected, strict=True):
            np.testing.assert_array_equal(got, wanted)
        for buffer in (p_buffer, q_buffer, *buffers):
            assert_guards_untouched(buffer)


def test_prefetch_changes_nothing_anywhere():
    array = np.arange(6.0).reshape(2, 3)
    prefetch(array[1], 0)
    prefetch(array[1], 1 << 20)  # beyond the array: a hint, not an access
    np.testing.assert_array_equal(array, np.arange(6.0).reshape(2, 3))
