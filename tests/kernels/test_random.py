from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import random as oracle
from scipy.stats import chi2

from fastinfluence.kernels.cpu.jit import kernel
from fastinfluence.kernels.cpu.random import draw, stream


@kernel
def keys_of(seed, epochs, examples):
    out = np.empty((epochs.shape[0], examples.shape[0]), np.uint64)
    for e in range(epochs.shape[0]):
        for j in range(examples.shape[0]):
            out[e, j] = stream(seed, epochs[e], examples[j])
    return out


@kernel
def draws_of(seed, epochs, examples, counters, n):
    out = np.empty((epochs.shape[0], examples.shape[0], counters.shape[0]), np.int64)
    for e in range(epochs.shape[0]):
        for j in range(examples.shape[0]):
            key = stream(seed, epochs[e], examples[j])
            for c in range(counters.shape[0]):
                out[e, j, c] = draw(key, counters[c], n)
    return out


def assert_uniform(cells, n_cells):
    """Chi-square at a level of 1e-4; the draws are fixed, so the outcome is too."""
    expected = len(cells) / n_cells
    observed = np.bincount(cells, minlength=n_cells)
    assert len(observed) == n_cells
    statistic = ((observed - expected) ** 2 / expected).sum()
    assert statistic < chi2.isf(1e-4, n_cells - 1)
    assert statistic > chi2.ppf(1e-4, n_cells - 1), "too even to be random"


def test_mixing_is_splitmix64():
    # The first outputs of the published generator for seed 0.
    published = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    n = 0xFFFFFFFF
    for counter, output in enumerate(published, 1):
        assert oracle.mix(counter * oracle.GOLDEN & oracle.MASK) == output
        assert draw(np.uint64(0), counter, n) == (output >> 32) * n >> 32


whole = st.integers(0, 2**63 - 1)


@settings(deadline=None, max_examples=50)
@given(whole, st.integers(0, 2**32 - 1), whole, st.integers(0, 2**40), st.integers(1, 2**32 - 1))
def test_same_as_python_integers(seed, epoch, example, counter, n):
    key = stream(seed, epoch, example)
    assert int(key) == oracle.stream(seed, epoch, example)
    value = draw(np.uint64(key), counter, n)
    assert value == oracle.draw(oracle.stream(seed, epoch, example), counter, n)
    assert 0 <= value < n


def test_order_of_calls_does_not_matter():
    epochs, examples, counters = np.arange(3), np.arange(50), np.arange(4)
    forward = draws_of(9, epochs, examples, counters, 1000)
    backward = draws_of(9, epochs[::-1].copy(), examples[::-1].copy(), counters[::-1].copy(), 1000)
    np.testing.assert_array_equal(forward, backward[::-1, ::-1, ::-1])
    alone = draws_of(9, epochs[1:2], examples[7:8], counters[3:], 1000)
    assert alone[0, 0, 0] == forward[1, 7, 3]


@pytest.mark.parametrize("n", [2, 3, 10, 97])
@pytest.mark.parametrize("varying", ["epoch", "example", "counter", "seed"])
def test_uniform_along_every_key(varying, n):
    one, many = np.zeros(1, np.int64), np.arange(20_000)
    if varying == "seed":
        cells = [draw(np.uint64(stream(seed, 0, 0)), 0, n) for seed in range(3000)]
    else:
        keys = {"epoch": one, "example": one, "counter": one, varying: many}
        cells = draws_of(1, keys["epoch"], keys["example"], keys["counter"], n).ravel()
    assert_uniform(np.asarray(cells), n)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_neighbouring_keys_are_uncorrelated(axis):
    draws = np.moveaxis(draws_of(3, np.arange(28), np.arange(28), np.arange(28), 8), axis, 0)
    pairs = draws[:-1] * 8 + draws[1:]
    assert_uniform(pairs.ravel(), 64)


def test_neighbouring_keys_are_distinct():
    epochs, examples = np.arange(40), np.arange(100)
    keys = [keys_of(seed, epochs, examples) for seed in range(10)]
    assert np.unique(keys).size == 10 * 40 * 100
