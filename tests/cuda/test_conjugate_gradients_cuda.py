"""The passes over rows of conjugate gradients on the CPU and on CUDA, against naive ones."""

from __future__ import annotations

import numpy as np
import pytest
from backends import Kernels
from conjugate_cases import TOLERANCE, assert_near, blocks_of, factored, panels, room
from oracles import conjugate_gradients as oracle

from fastinfluence.errors import DeviceError
from fastinfluence.kernels.structures import LANES

N_ROWS = 3  # of which two at most are worked on: the first is none of theirs

each_backend = pytest.mark.parametrize(
    "kernels", [Kernels(backend, "conjugate_gradients") for backend in ("cpu", "cuda")], ids=repr
)
each_dtype = pytest.mark.parametrize("dtype", list(TOLERANCE))


def lanes(dtype, seed=5):
    return np.random.default_rng(seed).standard_normal(LANES).astype(dtype)


def untouched(now, before):
    """Whether the first row is what it was."""
    return now[:1].tobytes() == before[:1].tobytes()


# ---------------------------------------------------------------- factors


@each_backend
@each_dtype
@pytest.mark.parametrize("d", [1, 8, 19, 37])
def test_factors_of_damped_blocks(kernels, dtype, d):
    blocks = blocks_of(N_ROWS, d, d)
    factors = np.tril(blocks).astype(dtype)
    divisors = np.full((N_ROWS, d), np.nan, dtype)
    before = factors.copy()
    kernels.factor_rows(0.25, factors, 1, N_ROWS, divisors)
    expected = [oracle.cholesky(block + 0.25 * np.eye(d)) for block in blocks[1:]]
    assert_near(np.tril(factors[1:]), expected, dtype)
    assert_near(divisors[1:], 1 / np.diagonal(expected, axis1=1, axis2=2), dtype)
    assert untouched(factors, before)
    assert np.isnan(divisors[0]).all()


@each_backend
@each_dtype
@pytest.mark.parametrize(
    "block", [np.zeros((3, 3)), np.diag([2.0, 1, -1]), np.ones((3, 3)), np.full((3, 3), np.nan)]
)
def test_a_block_that_is_not_definite_is_marked(kernels, dtype, block):
    _, divisors = factored(kernels, np.stack([block, 4 * np.eye(3)]), dtype)
    assert divisors[0, 0] == 0
    assert divisors[1].tolist() == [0.5, 0.5, 0.5]


# ---------------------------------------------------------------- preconditioned


@each_backend
@each_dtype
@pytest.mark.parametrize("d", [1, 8, 13, None])
def test_precondition(kernels, dtype, d):
    """None is without a preconditioner."""
    blocks = None if d is None else blocks_of(N_ROWS, d, d)
    (residual,) = panels(1, N_ROWS, d or 13, dtype, 0)
    out = np.full_like(residual, np.nan)
    factors = (None, None) if d is None else factored(kernels, blocks, dtype)
    kernels.precondition_rows(*factors, residual, 1, N_ROWS, out)
    assert_near(out[1:], oracle.precondition(blocks, residual.astype(float))[1:], dtype)
    assert np.isnan(out[0]).all()


@each_backend
@each_dtype
@pytest.mark.parametrize("d", [8, 13, None])
def test_advance(kernels, dtype, d):
    blocks = None if d is None else blocks_of(N_ROWS, d, d)
    direction, image, x, residual = panels(4, N_ROWS, d or 13, dtype, 0)
    steps = lanes(dtype)
    steps[::3] = 0
    before = [array.copy() for array in (x, residual)]
    expected = oracle.advance(
        blocks, *(array.astype(float) for array in (steps, direction, image, x, residual))
    )
    factors = (None, None) if d is None else factored(kernels, blocks, dtype)
    found = x, residual, np.full_like(x, np.nan), room(N_ROWS), room(N_ROWS)
    kernels.advance(*factors, steps, direction, image, 1, N_ROWS, *found)
    for got, right in zip(found, expected, strict=True):
        assert_near(got[1:], right[1:], dtype)
    for now, old in zip(found, before, strict=False):
        assert untouched(now, old)
        assert now[:, :, ::3].tobytes() == old[:, :, ::3].tobytes()  # a step of 0 changes no bit
    assert all(np.isnan(array[0]).all() for array in found[2:])


def test_rows_too_long_for_shared_memory_are_refused():
    kernels = Kernels("cuda", "conjugate_gradients")
    panel = np.zeros((1, 385, LANES))
    with pytest.raises(DeviceError, match=r"385 numbers.*float64.*fewer factors"):
        kernels.precondition_rows(None, None, panel, 0, 1, panel.copy())


# ---------------------------------------------------------------- passes


@each_backend
@each_dtype
def test_inner_products_and_damping(kernels, dtype):
    direction, image = panels(2, N_ROWS, 13, dtype, 1)
    damped, products = image.copy(), room(N_ROWS)
    kernels.damp(0.75, direction, 1, N_ROWS, damped, products)
    expected = image.astype(float) + 0.75 * direction.astype(float)
    assert_near(damped[1:], expected[1:], dtype)
    assert_near(products[1:], oracle.row_products(direction.astype(float), expected)[1:], dtype)
    assert untouched(damped, image)
    assert np.isnan(products[0]).all()
    products = room(N_ROWS)
    kernels.inner_products(direction, image, 1, N_ROWS, products)
    expected = oracle.row_products(direction.astype(float), image.astype(float))
    assert_near(products[1:], expected[1:], dtype)
    assert np.isnan(products[0]).all()


@each_backend
@pytest.mark.parametrize(("start", "stop"), [(0, 9), (2, 7), (4, 4)])
def test_totals(kernels, start, stop):
    products = np.random.default_rng(0).standard_normal((9, LANES))
    found = kernels.total(products, start, stop)
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, products[start:stop].sum(axis=0), rtol=0, atol=1e-14)


@each_backend
@each_dtype
@pytest.mark.parametrize("name", ["turn", "take_steps", "subtract_from", "scale", "clear"])
def test_passes_over_panels(kernels, dtype, name):
    left, panel = panels(2, N_ROWS, 5, dtype, 2)
    before, numbers = panel.copy(), lanes(dtype)
    given = {
        "turn": (numbers, left),
        "take_steps": (numbers, left),
        "subtract_from": (left,),
        "scale": (numbers,),
        "clear": (),
    }[name]
    getattr(kernels, name)(*given, 1, N_ROWS, panel)
    expected = {
        "turn": left + numbers * before,
        "take_steps": before + numbers * left,
        "subtract_from": left - before,
        "scale": before * numbers,
        "clear": 0 * before,
    }[name]
    assert_near(panel[1:], expected[1:], dtype)
    assert untouched(panel, before)
