"""The passes over rows between two products of conjugate gradients, against naive ones."""

from __future__ import annotations

import numpy as np
import pytest
from conjugate_cases import TOLERANCE, assert_near, blocks_of, factored, panels, room
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import conjugate_gradients as oracle
from planted import same_bits

from fastinfluence.kernels.cpu import conjugate_gradients as kernels
from fastinfluence.kernels.structures import LANES

SIZES = {"n_rows": st.integers(0, 6), "d": st.integers(1, 41), "seed": st.integers(0, 10**6)}

each_dtype = pytest.mark.parametrize("dtype", list(TOLERANCE))
many = settings(deadline=None, max_examples=30)


# ---------------------------------------------------------------- factors


@each_dtype
@many
@given(**SIZES)
def test_factors_are_those_of_cholesky(dtype, n_rows, d, seed):
    blocks = blocks_of(n_rows, d, seed)
    factors, divisors = factored(kernels, blocks, dtype)
    for block, factor, ones in zip(blocks, factors, divisors, strict=True):
        expected = oracle.cholesky(block)
        assert_near(np.tril(factor), expected, dtype)
        assert_near(ones, 1 / np.diag(expected), dtype)


@each_dtype
@pytest.mark.parametrize(
    "block", [np.zeros((3, 3)), np.diag([1.0, 0, 2]), np.diag([2.0, 1, -1]), np.ones((3, 3))]
)
def test_a_block_that_is_not_definite_is_marked(dtype, block):
    assert oracle.cholesky(block) is None
    _, divisors = factored(kernels, np.stack([np.eye(3), block, 4 * np.eye(3)]), dtype)
    assert divisors[0].tolist() == [1, 1, 1]
    assert divisors[1, 0] == 0
    assert divisors[2].tolist() == [0.5, 0.5, 0.5]


# ---------------------------------------------------------------- passes


@each_dtype
@many
@given(**SIZES, damping=st.floats(0, 5))
def test_factors_of_damped_blocks(dtype, n_rows, d, seed, damping):
    blocks = blocks_of(n_rows, d, seed)
    damped = blocks + damping * np.eye(d)
    factors, divisors = factored(kernels, blocks, dtype, damping)
    expected = np.reshape([oracle.cholesky(block) for block in damped], blocks.shape)
    assert_near(np.tril(factors), expected, dtype)
    assert_near(divisors, 1 / np.diagonal(expected, axis1=1, axis2=2), dtype)


@each_dtype
@pytest.mark.parametrize("preconditioned", [False, True])
@many
@given(**SIZES)
def test_precondition(dtype, preconditioned, n_rows, d, seed):
    blocks = blocks_of(n_rows, d, seed) if preconditioned else None
    (residual,) = panels(1, n_rows, d, dtype, seed)
    out = np.full_like(residual, np.nan)
    factors = (None, None) if blocks is None else factored(kernels, blocks, dtype)
    kernels.precondition_rows(*factors, residual, 0, n_rows, out)
    assert_near(out, oracle.precondition(blocks, residual.astype(float)), dtype)


@each_dtype
@many
@given(**SIZES, damping=st.floats(0, 5))
def test_damping_products_and_steps(dtype, n_rows, d, seed, damping):
    direction, image, target = panels(3, n_rows, d, dtype, seed)
    damped, found = image.copy(), room(n_rows)
    kernels.damp(damping, direction, 0, n_rows, damped, found)
    expected = image.astype(float) + damping * direction.astype(float)
    assert_near(damped, expected, dtype)
    assert_near(found, oracle.row_products(direction.astype(float), expected), dtype)
    found = room(n_rows)
    kernels.inner_products(image, target, 0, n_rows, found)
    assert_near(found, oracle.row_products(image.astype(float), target.astype(float)), dtype)
    keeps = np.random.default_rng(seed).standard_normal(LANES).astype(dtype)
    expected = target.astype(float) + keeps * direction.astype(float)
    kernels.turn(keeps, target, 0, n_rows, direction)
    assert_near(direction, expected, dtype)
    expected = target.astype(float) + keeps * direction.astype(float)
    kernels.take_steps(keeps, direction, 0, n_rows, target)
    assert_near(target, expected, dtype)


@each_dtype
@pytest.mark.parametrize("preconditioned", [False, True])
@many
@given(**SIZES)
def test_advance(dtype, preconditioned, n_rows, d, seed):
    blocks = blocks_of(n_rows, d, seed) if preconditioned else None
    direction, image, x, residual = panels(4, n_rows, d, dtype, seed)
    steps = np.random.default_rng(seed).standard_normal(LANES).astype(dtype)
    steps[::3] = 0
    before = [array.copy() for array in (x, residual)]
    expected = oracle.advance(
        blocks, *(array.astype(float) for array in (steps, direction, image, x, residual))
    )
    target = np.full_like(x, np.nan)
    factors = (None, None) if blocks is None else factored(kernels, blocks, dtype)
    found = x, residual, target, room(n_rows), room(n_rows)
    kernels.advance(*factors, steps, direction, image, 0, n_rows, *found)
    for got, right in zip(found, expected, strict=True):
        assert_near(got, right, dtype)
    for now, old in zip((x, residual), before, strict=True):  # a step of 0 changes no bit
        assert same_bits(now[:, :, ::3].copy(), old[:, :, ::3].copy())


@each_dtype
@many
@given(**SIZES, bounds=st.tuples(st.integers(0, 6), st.integers(0, 6)))
def test_passes_over_some_rows(dtype, n_rows, d, seed, bounds):
    """Exactly what numpy does to these rows, and nothing to others."""
    start, stop = sorted(min(bound, n_rows) for bound in bounds)
    rows = slice(start, stop)
    left, panel = panels(2, n_rows, d, dtype, seed)
    factors = np.linspace(-2, 2, LANES).astype(dtype)
    expected = panel.copy()
    kernels.subtract_from(left, start, stop, panel)
    expected[rows] = left[rows] - expected[rows]
    assert same_bits(panel, expected)
    kernels.scale(factors, start, stop, panel)
    expected[rows] *= factors
    assert same_bits(panel, expected)
    kernels.clear(start, stop, panel)
    expected[rows] = 0
    assert same_bits(panel, expected)


@many
@given(n_rows=st.integers(0, 70), bounds=st.tuples(st.integers(0, 70), st.integers(0, 70)))
def test_totals_are_summed_row_after_row(n_rows, bounds):
    start, stop = sorted(min(bound, n_rows) for bound in bounds)
    products = np.random.default_rng(n_rows).standard_normal((n_rows, LANES))
    expected = np.zeros(LANES)
    for row in range(start, stop):
        expected = expected + products[row]
    assert same_bits(kernels.total(products, start, stop), expected)


@each_dtype
def test_rows_are_worked_on_alone(dtype):
    """A part writes to its own rows, the same bits as the whole."""
    n_rows, d = 7, 5
    blocks = blocks_of(n_rows, d, 0)
    direction, image, x, residual = panels(4, n_rows, d, dtype, 0)
    steps = np.linspace(-1, 1, LANES).astype(dtype)

    def run(bounds):
        factors, divisors = np.tril(blocks).astype(dtype), np.zeros((n_rows, d), dtype)
        target, own = np.full_like(x, np.nan), [a.copy() for a in (direction, image, x, residual)]
        squares, products, found = room(n_rows), room(n_rows), room(n_rows)
        p, ap, end, left = own
        for start, stop in bounds:
            kernels.factor_rows(0.25, factors, start, stop, divisors)
            kernels.damp(0.5, p, start, stop, ap, found)
            rows = p, ap, start, stop, end, left, target, squares, products
            kernels.advance(factors, divisors, steps, *rows)
            kernels.turn(steps, target, start, stop, p)
            kernels.take_steps(steps, p, start, stop, end)
        return [factors, divisors, *own, target, squares, products, found]

    whole = run([(0, n_rows)])
    for mine, its in zip(run([(4, 7), (0, 3), (3, 3), (3, 4)]), whole, strict=True):
        assert same_bits(mine, its)
    for mine, its, old in zip(run([(2, 5)]), whole, run([]), strict=True):
        assert same_bits(mine[2:5], its[2:5])
        assert same_bits(mine[:2], old[:2])
        assert same_bits(mine[5:], old[5:])
