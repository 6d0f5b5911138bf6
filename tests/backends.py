"""The kernels of every backend as functions on numpy arrays: one test for all of them.

Arrays given to a kernel of another backend go to its device, and come back as it left them.
CUDA kernels run on a GPU, or with ``NUMBA_ENABLE_CUDASIM=1`` in numba-cuda's simulator.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np

SIMULATED = os.environ.get("NUMBA_ENABLE_CUDASIM", "0") not in ("", "0")
EMULATED = os.environ.get("FASTINFLUENCE_EMULATED_CUDA", "0") not in ("", "0")


class Kernels:
    """The kernels called `name` of a backend."""

    def __init__(self, backend: str, name: str) -> None:
        self.backend, self.name = backend, name

    def __repr__(self) -> str:
        return f"{self.backend}.{self.name}"

    def __getattr__(self, function: str) -> Any:
        found = getattr(
            importlib.import_module(f"fastinfluence.kernels.{self.backend}.{self.name}"), function
        )
        if self.backend == "cpu" or not callable(found):
            return found
        memory = memory_of(self.backend)

        def call(*arguments: Any) -> Any:
            there = memory.put(arguments)
            result = memory.fetch(found(*there))
            for mine, its in zip(_arrays(arguments), _arrays(memory.fetch(there)), strict=True):
                if mine.flags.writeable:
                    mine[...] = its
            return result

        return call


def memory_of(backend: str) -> Any:
    """Where the arrays of a backend are."""
    module = importlib.import_module(f"fastinfluence.kernels.{backend}.memory")
    return module.On("cpu") if backend == "torch" else module


def _arrays(given: Any) -> Iterator[np.ndarray]:
    if isinstance(given, np.ndarray):
        yield given
    elif isinstance(given, tuple):
        for part in given:
            yield from _arrays(part)


@cache
def why_no_cuda() -> str | None:
    """Why CUDA kernels cannot run here; None if they can."""
    try:
        from fastinfluence.kernels.cuda.jit import cuda
    except ImportError as error:
        return f"no numba-cuda: {error}"
    if SIMULATED or cuda.is_available():
        return None
    return "no NVIDIA GPU, and no simulator (NUMBA_ENABLE_CUDASIM=1)"
