"""The one place that says how CPU kernels are compiled.

Kernels are strict IEEE arithmetic (no fastmath): the same source gives the same bits whether
it records or not, in one thread or many, inlined or not. Where a reduction must be fast the
order of summation is written out in `fastinfluence.kernels.cpu.simd`.
"""

from collections.abc import Callable
from typing import Any

import numba

__all__ = ["kernel"]


def kernel(function: Callable[..., Any] | None = None, **options: Any) -> Any:
    """Compile `function` lazily, without the GIL, cached on disk where that is possible."""
    if function is None:
        return lambda f: kernel(f, **options)
    flags = {"nogil": True, "error_model": "numpy", **options}
    try:
        return numba.njit(cache=True, **flags)(function)
    except RuntimeError:  # neither __pycache__ nor the user's cache folder is writable
        return numba.njit(**flags)(function)
