"""How much memory a call may take, and where in it an array begins."""

from __future__ import annotations

import os

from fastinfluence.errors import ParameterError
from fastinfluence.kernels.cpu.memory import zeros as aligned_zeros

__all__ = ["aligned_zeros", "memory_budget"]


def memory_budget(asked: int | None = None) -> int:
    """Bytes a call may use for what it can do in pieces: a quarter of RAM unless told."""
    if asked is not None:
        if asked < 2**20:
            raise ParameterError(f"memory_budget={asked} bytes is below 1 MiB: give it in bytes")
        return int(asked)
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 4
    except (AttributeError, ValueError, OSError):  # no sysconf on this system
        return 2 * 2**30
