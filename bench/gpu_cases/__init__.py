"""What `bench/gpu.py` measures: a module for each kind of kernel, with ``cases(smoke)``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

__all__ = ["MODULES", "Case"]

MODULES = ("sgd", "curvature", "replay", "hessian", "solve", "readout", "graph")


@dataclass
class Case:
    """A kernel at a size: what to run, what it must move and compute, what to compare with."""

    name: str
    run: Callable[[], Any]  # on the GPU, what it starts from put back first
    n_bytes: float
    n_flops: float
    bound: str  # "bytes" or "flops"
    error: Callable[[], float]  # greatest, relative to the CPU's result
    tolerance: float
    cpu: Callable[[], Any] | None = None
    torch: Callable[[], Any] | None = None
    note: str = ""
