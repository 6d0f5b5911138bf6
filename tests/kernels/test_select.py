from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import select as oracle
from scipy.stats import norm

from fastinfluence.kernels.cpu.jit import kernel
from fastinfluence.kernels.cpu.lanes import LANES
from fastinfluence.kernels.cpu.select import merge_row, survivors_room, tail_quantile

DTYPES = [np.float32, np.float64]


@kernel
def merge(tile, start, n, order, base, k, top_values, top_indices, at, guess, step):
    dtype = tile.dtype
    stop = start + (n + LANES - 1) // LANES * LANES
    kept, places = np.empty(n + 2 * LANES, dtype), np.empty(n + 2 * LANES, np.int32)
    values, indices = np.empty(3 * LANES, dtype), np.empty(3 * LANES, np.int32)
    ranks, top_ranks = np.empty(LANES, np.int32), np.empty(LANES, np.int32)
    merge_row(
        tile, start, stop, n, order, base, top_values, top_indices, at, k, guess, step,
        kept, places, values, indices, ranks, top_ranks,
    )  # fmt: skip


def merged(scores, order, held, k, guess, step):
    """Merge `scores` into the list `held` and compare with sorting everything."""
    dtype, n = scores.dtype, len(scores)
    # The row, its order and the list stand inside larger arrays; what is around them stays.
    start, base, at = 2 * LANES, 3, 5
    tile = np.full(start + -(-n // LANES) * LANES + LANES, np.inf, dtype)
    tile[start:-LANES] = -np.inf
    tile[start : start + n] = scores
    held_values, held_indices = oracle.best(held, k)
    values, indices = np.full(at + k + 20, 7, dtype), np.full(at + k + 20, 7, np.int32)
    values[at : at + k], indices[at : at + k] = held_values, held_indices
    numbers = np.concatenate([np.full(base, 9), order, [9]])
    guess, step = dtype.type(guess), dtype.type(step)
    merge(tile, start, n, numbers, base, k, values, indices, at, guess, step)
    expected = oracle.best([*held, *zip(scores.tolist(), order.tolist(), strict=True)], k)
    assert values[at : at + k].tolist() == expected[0]
    assert indices[at : at + k].tolist() == expected[1]
    for array in (values, indices):
        assert (array[:at] == 7).all()
        assert (array[at + k :] == 7).all()


SHAPES = {
    "normal": lambda rng, n: rng.standard_normal(n),
    "ties": lambda rng, n: rng.integers(-2, 3, n),
    "constant": lambda rng, n: np.full(n, 0.1),
    "two levels": lambda rng, n: np.where(np.arange(n) % 7, 0.25, 1e-30),
    "heavy tail": lambda rng, n: rng.standard_cauchy(n) ** 3,
    "one spike": lambda rng, n: np.eye(1, n, n // 2)[0] * 1e12,
    "zeros": lambda rng, n: np.where(rng.random(n) < 0.5, 0.0, -0.0),
    "tiny": lambda rng, n: rng.standard_normal(n) * 1e-37,
    "offset": lambda rng, n: 1000 + rng.standard_normal(n) * 1e-3,
}


@st.composite
def merges(draw):
    rng = np.random.default_rng(draw(st.integers(0, 10**6)))
    dtype = draw(st.sampled_from(DTYPES))
    shape = SHAPES[draw(st.sampled_from(sorted(SHAPES)))]
    n = draw(st.sampled_from([1, 15, 16, 17, 40, 100, 300]))
    k = draw(st.sampled_from([1, 2, 10, 16, 17, 24, 40, 120, 320]))
    scores = shape(rng, n).astype(dtype)
    excluded = draw(st.sampled_from([0.0, 0.1, 0.9, 1.0]))
    scores[rng.random(n) < excluded] = -np.inf
    n_held = draw(st.sampled_from([0, k // 2, k]))
    numbers = rng.permutation(3 * (n + n_held))
    order = np.sort(numbers[:n])
    held_values = shape(rng, n_held).astype(dtype).tolist()
    held = list(zip(held_values, numbers[n : n + n_held].tolist(), strict=True))
    deviation = scores[np.isfinite(scores)].std() if np.isfinite(scores).any() else 1.0
    guess = draw(st.sampled_from([-1e6, -1.0, 0.0, 1.0, 1.3, 1e6])) * deviation
    return scores, order, held, k, guess, 0.3 * deviation + np.finfo(dtype).tiny


@settings(deadline=None, max_examples=400)
@given(merges())
def test_merges_like_sorting_everything(case):
    merged(*case)


@pytest.mark.parametrize("n", [20, 2000])
@pytest.mark.parametrize("k", [1, 10])
@pytest.mark.parametrize("dtype", DTYPES)
def test_long_rows(dtype, k, n):
    for seed, shape in enumerate(SHAPES.values()):
        scores = shape(np.random.default_rng(seed), n).astype(dtype)
        guess = scores.mean() + tail_quantile(n, k) * scores.std()
        merged(scores, np.arange(n), [], k, guess, 0.3 * scores.std() + np.finfo(dtype).tiny)


@pytest.mark.parametrize("k", [1, 10, 16, 100])
def test_room_and_first_guess(k):
    room = survivors_room(k)
    assert room >= max(k, LANES)
    for n in (1, 5, 30, 200, 5000, 10**6):
        share = (k + room) / (2 * n)
        expected = norm.isf(share) if share < 0.5 else 0.0
        assert tail_quantile(n, k) == pytest.approx(expected, abs=5e-4)
