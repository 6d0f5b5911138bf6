"""Exponentials as a thread computes them, those of what is no number too."""

from __future__ import annotations

import numpy as np
import pytest
from backends import memory_of


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_exponentials_with_and_without_their_one(dtype):
    from fastinfluence.kernels.cuda.exponential import LIMIT, exponential
    from fastinfluence.kernels.cuda.jit import cuda, kernel, launch

    @kernel
    def exponentials(numbers, found):
        n = cuda.threadIdx.x
        found[n, 0], found[n, 1] = exponential(numbers[n])

    memory = memory_of("cuda")
    numbers = np.array([0, 1e-6, -0.5, LIMIT, -LIMIT, -2 * LIMIT, 2 * LIMIT, np.nan], dtype)
    found = memory.zeros((len(numbers), 2), dtype)
    launch(exponentials, 1, len(numbers), memory.put(numbers), found)
    found = memory.fetch(found)
    taken = np.maximum(numbers[:-2], -LIMIT)
    expected = np.stack([np.expm1(taken), np.exp(taken)], axis=1)
    np.testing.assert_allclose(found[:-2], expected, rtol=4 * np.finfo(dtype).eps)
    assert np.isnan(found[-2:, 1]).all()
