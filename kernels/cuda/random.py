"""Counter-based random draws, the same numbers as on the CPU: see `kernels.cpu.random`."""

import numpy as np

from .jit import inner_kernel

__all__ = ["draw", "stream"]

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)


@inner_kernel
def _mix(x):
    x = (x ^ (x >> np.uint64(30))) * _MIX_1
    x = (x ^ (x >> np.uint64(27))) * _MIX_2
    return x ^ (x >> np.uint64(31))


@inner_kernel
def stream(seed, epoch, example):
    """Key of one example's draws in one epoch (uint64)."""
    key = _mix(np.uint64(seed) + _GOLDEN)
    key = _mix(key ^ (np.uint64(epoch) + _GOLDEN))
    return _mix(key ^ (np.uint64(example) + _GOLDEN))


@inner_kernel
def draw(key, counter, n):
    """An integer in [0, n), n < 2**32, for draw number `counter` of the stream `key`."""
    high = _mix(key + np.uint64(counter) * _GOLDEN) >> np.uint64(32)
    return np.int64((high * np.uint64(n)) >> np.uint64(32))
