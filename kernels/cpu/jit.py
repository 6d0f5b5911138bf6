"""The one place that says how CPU kernels are compiled.

Kernels are strict IEEE arithmetic (no fastmath): the same source gives the same bits whether
it records or not, in one thread or many, inlined or not. Where a reduction must be fast the
order of summation is written out in `fastinfluence.kernels.cpu.simd`.
"""

from collections.abc import Callable
from typing import Any

import numba

__all__ = ["inner_kernel", "kernel"]


def kernel(function: Callable[..., Any] | None = None, **options: Any) -> Any:
    """Compile `function` lazily, without the GIL, cached on disk where that is possible."""
    if function is None:
        return lambda f: kernel(f, **options)
    # Numba hands a missing _nrt down from caller to callee: say it for each.
    flags = {"nogil": True, "error_model": "numpy", "_nrt": True, **options}
    try:
        return numba.njit(cache=True, **flags)(function)
    except RuntimeError:  # neither __pycache__ nor the user's cache folder is writable
        return numba.njit(**flags)(function)


def inner_kernel(function: Callable[..., Any] | None = None, **options: Any) -> Any:
    """Compile a kernel that allocates nothing, and so need not count references to its arrays.

    Counting is atomic, and every view of an array or array of a named tuple counts: in an inner
    loop that is a fifth of the time on one thread, and threads that share an array fight for
    its counter (explaining every pair of MovieLens 1M on two: 40 against 33 s of processor
    time). Allocating in such a function does not compile; returning one of its array
    arguments would lose the caller's count, so these functions return numbers or nothing.
    """
    if function is None:
        return lambda f: inner_kernel(f, **options)
    return kernel(function, _nrt=False, **options)
