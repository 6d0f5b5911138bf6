"""Conjugate gradients in torch: the passes over rows between two products, against naive ones."""

from __future__ import annotations

import numpy as np
import pytest
from backends import Kernels, memory_of
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import conjugate_gradients as oracle
from planted import same_bits

from fastinfluence.kernels.structures import LANES

pytest.importorskip("torch")
KERNELS = Kernels("torch", "conjugate_gradients")
TOLERANCE = {np.float32: 1e-3, np.float64: 1e-10}
SIZES = {"n_rows": st.integers(0, 6), "d": st.integers(1, 41), "seed": st.integers(0, 10**6)}

each_dtype = pytest.mark.parametrize("dtype", list(TOLERANCE))
few = settings(deadline=None, max_examples=10, derandomize=True)


def blocks_of(n_rows, d, seed):
    """Random positive definite blocks of condition at most some thousands."""
    factors = np.random.default_rng(seed).standard_normal((n_rows, d, d)) / np.sqrt(d)
    return factors @ factors.transpose(0, 2, 1) + 0.1 * np.eye(d)


def factored(blocks, dtype, damping=0.0):
    factors, divisors = np.tril(blocks).astype(dtype), np.zeros(blocks.shape[:2], dtype)
    for start, stop in ((0, len(blocks) // 2), (len(blocks) // 2, len(blocks))):
        KERNELS.factor_rows(damping, factors, start, stop, divisors)
    return factors, divisors


def panels(n, n_rows, d, dtype, seed):
    rng = np.random.default_rng(seed)
    return [rng.standard_normal((n_rows, d, LANES)).astype(dtype) for _ in range(n)]


def room(n_rows):
    return np.full((n_rows, LANES), np.nan)


def assert_near(got, expected, dtype):
    scale = max(1.0, np.abs(expected).max(initial=0))
    np.testing.assert_allclose(got, expected, rtol=0, atol=TOLERANCE[dtype] * scale)


@each_dtype
@few
@given(**SIZES, damping=st.sampled_from([0.0, 0.7]))
def test_factors_are_those_of_cholesky(dtype, n_rows, d, seed, damping):
    blocks = blocks_of(n_rows, d, seed)
    for block, factor, ones in zip(blocks, *factored(blocks, dtype, damping), strict=True):
        expected = oracle.cholesky(block + damping * np.eye(d))
        assert_near(np.tril(factor), expected, dtype)
        assert_near(ones, 1 / np.diag(expected), dtype)


@each_dtype
@pytest.mark.parametrize(
    "block", [np.zeros((3, 3)), np.diag([1.0, 0, 2]), np.diag([2.0, 1, -1]), np.ones((3, 3))]
)
def test_a_block_that_is_not_definite_is_marked(dtype, block):
    _, divisors = factored(np.stack([np.eye(3), block, 4 * np.eye(3)]), dtype)
    assert divisors[0].tolist() == [1, 1, 1]
    assert divisors[1, 0] == 0
    assert divisors[2].tolist() == [0.5, 0.5, 0.5]


@each_dtype
@pytest.mark.parametrize("preconditioned", [False, True])
@few
@given(**SIZES)
def test_advance_and_precondition(dtype, preconditioned, n_rows, d, seed):
    blocks = blocks_of(n_rows, d, seed) if preconditioned else None
    direction, image, x, residual = panels(4, n_rows, d, dtype, seed)
    steps = np.random.default_rng(seed).standard_normal(LANES).astype(dtype)
    steps[::3] = 0
    before = [array.copy() for array in (x, residual)]
    expected = oracle.advance(
        blocks, *(array.astype(float) for array in (steps, direction, image, x, residual))
    )
    target = np.full_like(x, np.nan)
    factors = (None, None) if blocks is None else factored(blocks, dtype)
    found = x, residual, target, room(n_rows), room(n_rows)
    KERNELS.advance(*factors, steps, direction, image, 0, n_rows, *found)
    for got, right in zip(found, expected, strict=True):
        assert_near(got, right, dtype)
    for now, old in zip((x, residual), before, strict=True):  # a step of 0 changes no bit
        assert same_bits(now[:, :, ::3].copy(), old[:, :, ::3].copy())


@each_dtype
@few
@given(**SIZES, damping=st.floats(0, 5))
def test_damping_products_and_steps(dtype, n_rows, d, seed, damping):
    direction, image, target = panels(3, n_rows, d, dtype, seed)
    wide = [array.astype(float) for array in (direction, image, target)]
    found = room(n_rows)
    KERNELS.inner_products(image, target, 0, n_rows, found)
    assert_near(found, oracle.row_products(*wide[1:]), dtype)
    np.testing.assert_allclose(KERNELS.total(found, 0, n_rows), found.sum(0), atol=1e-12)
    KERNELS.damp(damping, direction, 0, n_rows, image, found)
    expected = wide[1] + damping * wide[0]
    assert_near(image, expected, dtype)
    assert_near(found, oracle.row_products(wide[0], expected), dtype)
    keeps = np.random.default_rng(seed).standard_normal(LANES).astype(dtype)
    KERNELS.turn(keeps, target, 0, n_rows, direction)
    expected = wide[2] + keeps * wide[0]
    assert_near(direction, expected, dtype)
    KERNELS.take_steps(keeps, direction, 0, n_rows, target)
    assert_near(target, wide[2] + keeps * expected, dtype)


@each_dtype
def test_rows_are_worked_on_alone(dtype):
    n_rows, d = 7, 5
    blocks, steps = blocks_of(n_rows, d, 0), np.linspace(-1, 1, LANES).astype(dtype)
    arrays = panels(4, n_rows, d, dtype, 0)

    def run(start, stop):
        factors, divisors = np.tril(blocks).astype(dtype), np.zeros((n_rows, d), dtype)
        p, ap, x, r = own = [array.copy() for array in arrays]
        target, sums = np.full_like(p, np.nan), [room(n_rows) for _ in range(3)]
        KERNELS.factor_rows(0.1, factors, start, stop, divisors)
        KERNELS.damp(0.5, p, start, stop, ap, sums[0])
        KERNELS.advance(
            factors, divisors, steps, p, ap, start, stop, x, r, target, sums[1], sums[2]
        )  # fmt: skip
        KERNELS.turn(steps, target, start, stop, p)
        KERNELS.take_steps(steps, p, start, stop, x)
        KERNELS.subtract_from(ap, start, stop, r)
        KERNELS.scale(steps, start, stop, ap)
        return [factors, divisors, *own, target, *sums]

    whole, part, none = run(0, n_rows), run(2, 5), run(3, 3)
    for mine, its, old in zip(part, whole, none, strict=True):
        np.testing.assert_allclose(mine[2:5], its[2:5], rtol=1e-5, atol=1e-5)
        assert same_bits(mine[:2], old[:2])
        assert same_bits(mine[5:], old[5:])


def test_plain_passes_over_panels():
    left, out = panels(2, 5, 3, np.float64, 1)
    before = out.copy()
    KERNELS.subtract_from(left, 1, 4, out)
    np.testing.assert_array_equal(out[1:4], left[1:4] - before[1:4])
    factors = np.arange(LANES, dtype=float)
    KERNELS.scale(factors, 1, 4, left)
    KERNELS.clear(2, 3, left)
    assert not left[2].any()
    assert left[[1, 3], :, 1:].all()


def test_numbers_of_lanes_may_stay_with_numpy():
    """As the Python layers give them, and the totals they are given."""
    from fastinfluence.kernels.torch import conjugate_gradients as there

    x, direction = panels(2, 4, 3, np.float32, 2)
    steps, memory = np.linspace(0, 1, LANES), memory_of("torch")
    expected = x + steps.astype(np.float32) * direction
    moved = memory.put(x.copy())
    there.take_steps(steps, memory.put(direction), 0, 4, moved)
    np.testing.assert_allclose(memory.fetch(moved), expected, rtol=0, atol=1e-6)
    total = there.total(memory.put(np.ones((4, LANES))), 1, 4)
    assert isinstance(total, np.ndarray)
    assert total.tolist() == [3.0] * LANES
