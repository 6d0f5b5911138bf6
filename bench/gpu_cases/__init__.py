"""What `bench/gpu.py` measures: a module for each kind of kernel, with ``cases(size)``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

__all__ = ["MODULES", "Case", "Results", "Size"]

MODULES = ("sgd", "curvature", "replay", "hessian", "solve", "pairs", "readout", "graph")

Size = Literal["smoke", "small", "full"]
"""Of the data: "smoke" for a simulator, "small" for an emulator, "full" for a GPU."""

Results = tuple[Any, ...]
"""Arrays in CPU memory; of what torch does, tensors."""


def _nothing() -> None:
    pass


@dataclass
class Case:
    """A kernel at a size: what to run, what it must move and compute, what to compare with.

    Errors are greatest differences from `expected`, each relative to the largest number of its
    array.
    """

    name: str
    run: Callable[[], Any]  # on the GPU; returns when the work is done
    found: Callable[[], Results]  # what it made
    expected: Results  # the same of the CPU
    tolerance: float
    n_bytes: float
    n_flops: float
    bound: str  # "bytes" or "flops"
    before: Callable[[], Any] = _nothing  # not timed: puts back what `run` starts from
    cpu: Callable[[], Any] | None = None  # on one thread
    cpu_share: float = 1.0  # of the work, that `cpu` does
    torch: Callable[[], Results] | None = None
    torch_tolerance: float = 1e-3
    note: str = ""
