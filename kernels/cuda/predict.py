"""Scores of single pairs, half a warp for each: the bits of `kernels.cpu.predict`."""

from ..structures import LANES
from .jit import SIMULATED, cuda, kernel, launch, processors
from .sgd_steps import row_dot

__all__ = ["pair_scores"]

_THREADS = 64 if SIMULATED else 256


@kernel
def score_pairs(tables, mean, users, items, start, stop, out):
    """Scores of pairs ``start:stop``."""
    half, lane = cuda.threadIdx.x // LANES, cuda.threadIdx.x % LANES
    mask, width = 0xFFFF << (half % 2 * LANES), cuda.blockDim.x // LANES
    first = start + cuda.blockIdx.x * width + half
    for n in range(first, stop, cuda.gridDim.x * width):
        u, i = users[n], items[n]
        product = row_dot(tables.user_factors[u], tables.item_factors[i], lane, mask)
        if lane == 0:
            out[n] = mean + tables.user_biases[u] + tables.item_biases[i] + product


def pair_scores(tables, mean, users, items, start, stop, out):
    """``out[n] = mean + b_u + b_i + p_u . q_i`` for pairs ``start:stop``."""
    blocks = min(-(-max(stop - start, 0) * LANES // _THREADS), 32 * processors())
    launch(score_pairs, blocks, _THREADS, tables, mean, users, items, start, stop, out)
