"""Large arrays on their way to the device: through two pinned buffers.

Bound by the bus: from pinned memory a copy runs at its full rate and asynchronously, and while
one buffer is copied the other is filled, perhaps from a file that is mapped into memory.
"""

import numpy as np

from .jit import cuda, stream

__all__ = ["LARGE", "staged"]

LARGE = 2**28
"""Bytes from which on an array is worth the buffers: pinning them takes milliseconds."""

_BUFFER = 2**24  # bytes


def staged(given):
    """Copy a contiguous array to the device: the copy."""
    target = cuda.device_array(given.size, given.dtype)
    flat, step = given.reshape(-1), max(1, _BUFFER // given.itemsize)
    buffers = [cuda.pinned_array(step, given.dtype) for _ in range(2)]
    copied = [cuda.event() for _ in range(2)]
    for number, start in enumerate(range(0, given.size, step)):
        part = flat[start : start + step]
        buffer, event = buffers[number % 2][: len(part)], copied[number % 2]
        if number >= 2:
            event.synchronize()
        np.copyto(buffer, part)
        target[start : start + len(part)].copy_to_device(buffer, stream=stream())
        event.record(stream())
    stream().synchronize()
    return target.reshape(given.shape)
