"""The exponential that has the same bits everywhere: close to numpy's, right at the ends."""

from __future__ import annotations

import numpy as np
import pytest

from fastinfluence.kernels.cpu.falling import falling_exponential
from fastinfluence.kernels.cpu.jit import kernel


@kernel
def exponentials(numbers, out):
    for n in range(numbers.shape[0]):
        out[n] = falling_exponential(numbers[n])


def of(numbers):
    out = np.full_like(numbers, np.nan)
    exponentials(numbers, out)
    return out


@pytest.mark.parametrize(("dtype", "least"), [(np.float32, -87.336), (np.float64, -708.396)])
def test_within_a_unit_in_the_last_place(dtype, least):
    rng = np.random.default_rng(0)
    numbers = np.concatenate(
        [
            rng.uniform(least, 0, 20_000),
            -rng.exponential(2, 20_000),
            -(10 ** rng.uniform(-12, 0, 2_000)),
            np.log(2) * (np.arange(-60, 1) + 0.5),
            [least, 0.0, -0.0],
        ]
    ).astype(dtype)
    numbers = np.minimum(numbers, dtype(0))
    truth = np.exp(numbers.astype(np.longdouble))
    units = np.abs(of(numbers) - truth) / np.spacing(truth.astype(dtype))
    assert units.max() <= 1.0
    assert units.mean() < 0.3


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_ends(dtype):
    found = of(np.array([0, -0.0, -800, -1e30, -np.inf, np.nan], dtype))
    np.testing.assert_array_equal(found, np.array([1, 1, 0, 0, 0, np.nan], dtype))


def test_the_bits_are_fixed():
    """They are part of what a trained model is: no compiler or machine may change them."""
    numbers = -np.array([0.1, 1, 3.7, 20], np.float32)
    assert of(numbers).tobytes().hex() == ("6da3673fb25abc3efe88ca3c33a40d31")
    assert of(numbers.astype(np.float64)).tobytes().hex() == (
        "b0db1b996df4ec3f38ef2c36568bd73f142a46b21f51993f6772f35586b4213e"
    )
