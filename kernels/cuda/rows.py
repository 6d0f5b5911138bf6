"""Rows of single examples on their own pairs.

A thread has an example. Neighbouring examples stand in one panel of the user's rows, so those
are read sixteen numbers at a time; the item's are scattered. Bound by memory: four rows of d
numbers an example, 32 bytes for each number of the item's row.
"""

import functools

import numpy as np

from ..errors import DeviceError
from .jit import SIMULATED, cuda, inner_kernel, kernel, launch
from .panels import decoder, place_of
from .simd import fma

__all__ = ["THREADS", "check_dtypes", "own_influence", "self_influence"]

THREADS = 32 if SIMULATED else 128


def check_dtypes(vectors, *sides):
    """Raise DeviceError unless there are kernels for rows and vectors of these dtypes."""
    for side in sides:
        rows = np.dtype(side.rows.dtype)
        if vectors.dtype not in (np.float32, np.float64) or rows not in (vectors.dtype, np.uint16):
            raise DeviceError(
                f"CUDA kernels multiply rows of float32, float64, or bfloat16 (held in uint16) "
                f"with float vectors of their own dtype, not {rows} with {vectors.dtype}"
            )


@functools.cache
def own_influence(element):
    """Make the influence of an example on the score of its own pair, for rows of a dtype.

    See the twin in kernels.cpu; here ``x``, ``y`` are rows ``item`` and ``user`` of two arrays.
    """
    decode = decoder(element)

    @inner_kernel
    def influence(
        user_side, item_side, user, item, user_place, item_place, item_vectors, user_vectors
    ):
        k = item_vectors.shape[1] - 1
        mine, step = place_of(user_side.pointers, user, user_place, k + 1)
        its, stride = place_of(item_side.pointers, item, item_place, k + 1)
        total = item_vectors.dtype.type(0)
        both = total
        for f in range(k + 1):
            du = item_vectors.dtype.type(decode(user_side.rows[mine + f * step]))
            di = item_vectors.dtype.type(decode(item_side.rows[its + f * stride]))
            total = fma(du, item_vectors[item, f], total)
            total = fma(di, user_vectors[user, f], total)
            if f < k:
                both = fma(du, di, both)
        return total - both

    return influence


@functools.cache
def _self_influence(element):
    influence = own_influence(element)

    @kernel
    def read_selves(
        user_side, item_side, user_places, item_places, item_vectors, user_vectors, users, items,
        examples, start, out,
    ):  # fmt: skip
        number = cuda.grid(1)
        if number < examples.shape[0]:
            j = examples[number]
            out[j] = influence(
                user_side, item_side, users[j], items[j], user_places[start + number],
                item_places[start + number], item_vectors, user_vectors,
            )  # fmt: skip

    return read_selves


def self_influence(
    user_side, item_side, own_places, item_vectors, user_vectors, users, items, examples, start, out
):
    """Influence of examples on the scores of their own pairs: ``out[j]`` for j in `examples`.

    See the twin in kernels.cpu.
    """
    check_dtypes(item_vectors, user_side, item_side)
    kernel = _self_influence(np.dtype(user_side.rows.dtype))
    launch(
        kernel, -(-examples.shape[0] // THREADS), THREADS, user_side, item_side, *own_places,
        item_vectors, user_vectors, users, items, examples, start, out,
    )  # fmt: skip
