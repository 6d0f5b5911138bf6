"""Packed rows of the read-out: sixteen rows of a group, coordinate by coordinate.

The layout is the CPU's (see `panels` in kernels.cpu), because stores on disk are in it. A thread
has a row: the sixteen threads of a panel read and write sixteen neighbouring numbers. Bound by
memory: every number is moved once.
"""

import numpy as np

from ..structures import LANES
from . import memory
from .bisection import group_of
from .jit import SIMULATED, cuda, inner_kernel, kernel, launch

__all__ = ["decoder", "pack_rows", "place_of"]

_THREADS = 32 if SIMULATED else 256


@inner_kernel
def _as_it_is(element):
    return element


@inner_kernel
def _widened(element):
    return np.uint32(np.uint32(element) << np.uint32(16)).view(np.float32)


@inner_kernel
def _nearest(value):
    """The nearest bfloat16, ties to even."""
    bits = np.int64(value.view(np.uint32))
    return np.uint16((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16)


def decoder(element):
    """What makes the numbers of packed rows, of dtype `element`, floats again."""
    return _widened if element == np.uint16 else _as_it_is


@inner_kernel
def place_of(pointers, group, place, d):
    """Where the row at `place` begins in packed rows, and the distance of its numbers."""
    start = pointers[group] + (place - pointers[group]) // LANES * LANES
    return start * d + place - start, min(LANES, pointers[group + 1] - start)


def pack_rows(factors, biases, sources, pointers, first_group, last_group, out):
    """Pack rows group by group: place s takes ``factors[sources[s]], biases[sources[s]]``.

    See the twin in kernels.cpu.
    """
    first, last = (int(memory.fetch(pointers[g : g + 1])[0]) for g in (first_group, last_group))
    pack = _pack_bfloat16 if out.dtype == np.uint16 else _pack
    blocks = -(-(last - first) // _THREADS)
    launch(pack, blocks, _THREADS, factors, biases, sources, pointers, first_group, last_group, out)


@kernel
def _pack(factors, biases, sources, pointers, first_group, last_group, out):
    place, k = pointers[first_group] + cuda.grid(1), factors.shape[1]
    if place < pointers[last_group]:
        group = group_of(pointers, first_group, last_group, place)
        at, step = place_of(pointers, group, place, k + 1)
        source = sources[place]
        for f in range(k):
            out[at + f * step] = factors[source, f]
        out[at + k * step] = biases[source]


@kernel
def _pack_bfloat16(factors, biases, sources, pointers, first_group, last_group, out):
    place, k = pointers[first_group] + cuda.grid(1), factors.shape[1]
    if place < pointers[last_group]:
        group = group_of(pointers, first_group, last_group, place)
        at, step = place_of(pointers, group, place, k + 1)
        source = sources[place]
        for f in range(k):
            out[at + f * step] = _nearest(factors[source, f])
        out[at + k * step] = _nearest(biases[source])
