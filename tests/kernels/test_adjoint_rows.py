"""Four rows at once: inner products with an adjoint, and sums into one."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from planted import same_bits

from fastinfluence.kernels.cpu.adjoints import add_four_rows, dot_four_rows, dot_lanes
from fastinfluence.kernels.cpu.jit import kernel
from fastinfluence.kernels.structures import LANES

TOLERANCE = {np.float32: 2e-5, np.float64: 1e-13}
NUMBERS = st.lists(st.integers(0, 6), min_size=4, max_size=4)
SIZES = st.integers(0, 41)

each_dtype = pytest.mark.parametrize("dtype", list(TOLERANCE))


@kernel
def dot_four(rows, a, b, c, d, adjoint, out):
    dot_four_rows(rows, a, b, c, d, adjoint, out)


@kernel
def dot_one_by_one(rows, numbers, adjoint, out):
    for n in range(4):
        dot_lanes(rows[numbers[n]], adjoint, out[n])


@kernel
def add_four(target, rows, a, b, c, d, factors):
    add_four_rows(target, rows, a, b, c, d, factors)


def random_arrays(seed, d, dtype):
    """Seven rows, an adjoint and four vectors of lanes."""
    rng = np.random.default_rng(seed)
    shapes = (7, d), (d, LANES), (4, LANES)
    return [rng.standard_normal(shape).astype(dtype) for shape in shapes]


@each_dtype
@settings(deadline=None, max_examples=60)
@given(numbers=NUMBERS, d=SIZES, seed=st.integers(0, 10**6))
def test_products_with_four_rows(dtype, numbers, d, seed):
    rows, adjoint, _ = random_arrays(seed, d, dtype)
    out, one_by_one = np.full((2, 4, LANES), np.nan, dtype)
    dot_four(rows, *numbers, adjoint, out)
    expected = rows[numbers].astype(float) @ adjoint.astype(float)
    np.testing.assert_allclose(out, expected, rtol=0, atol=TOLERANCE[dtype] * max(d, 1))
    dot_one_by_one(rows, np.array(numbers), adjoint, one_by_one)
    assert same_bits(out, one_by_one)  # four together or alone: rows of few edges add up alike


@each_dtype
@settings(deadline=None, max_examples=60)
@given(numbers=NUMBERS, d=SIZES, seed=st.integers(0, 10**6))
def test_sums_of_four_rows(dtype, numbers, d, seed):
    rows, target, factors = random_arrays(seed, d, dtype)
    expected = target.astype(float) + rows[numbers].astype(float).T @ factors.astype(float)
    kept = rows.copy(), factors.copy()
    add_four(target, rows, *numbers, factors)
    np.testing.assert_allclose(target, expected, rtol=0, atol=TOLERANCE[dtype] * 10)
    assert same_bits(rows, kept[0])
    assert same_bits(factors, kept[1])


@each_dtype
@pytest.mark.parametrize("d", [1, 4, 7])
def test_nothing_beside_is_read_or_written(dtype, d):
    """The arrays stand between NaN: a lane too many would show."""
    rows = np.full((9, d), np.nan, dtype)
    target, adjoint = (np.full((d + 8, LANES), np.nan, dtype) for _ in range(2))
    out, factors = (np.full((12, LANES), np.nan, dtype) for _ in range(2))
    rows[[1, 3, 5, 7]], target[4:-4], adjoint[4:-4], factors[4:-4] = 1, 2, 3, 4
    dot_four(rows, 1, 3, 5, 7, adjoint[4:-4], out[4:-4])
    add_four(target[4:-4], rows, 1, 3, 5, 7, factors[4:-4])
    assert (out[4:-4] == 3 * d).all()
    assert (target[4:-4] == 2 + 4 * 4).all()
    for array in (out, target):
        assert np.isnan(array[:4]).all()
        assert np.isnan(array[-4:]).all()
