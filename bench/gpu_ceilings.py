"""What a GPU can do at most, and how long something takes on it."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np

from fastinfluence.kernels.cuda import jit, memory

__all__ = ["Ceilings", "as_text", "measure", "seconds_of", "torch_device", "torch_seconds_of"]

_FLUSHED = 512 * 2**20  # bytes: several times the second-level cache of any card so far


@dataclass
class Ceilings:
    """Rates of the card, in bytes and in operations a second."""

    name: str
    copy: float  # read and written
    sgemm: float  # float32, no tensor cores
    tf32: float | None


def measure(smoke: bool) -> Ceilings:
    """Copy within the card's memory, and multiply matrices by torch; without it by 0."""
    size = 2**16 if smoke else 2**30
    source, target = memory.zeros(size // 4, np.float32), memory.empty(size // 4, np.float32)
    copy = 2 * size / seconds_of(lambda: memory.store(target, source), 1 if smoke else 9)
    return Ceilings(
        jit.device_name(), copy, _product(smoke, False) or np.nan, _product(smoke, True)
    )


def _product(smoke: bool, tf32: bool) -> float | None:
    """Operations a second of a product of two square matrices."""
    if not find_spec("torch"):
        return None
    import torch

    n = 64 if smoke else 8192
    torch.backends.cuda.matmul.allow_tf32 = tf32
    a, b = torch.rand((2, n, n), device=torch_device())
    seconds = torch_seconds_of(lambda: a @ b, 1 if smoke else 5)
    torch.backends.cuda.matmul.allow_tf32 = False
    return 2 * n**3 / seconds


def torch_device() -> str:
    """Where torch does the same work: on the same card, or where there is none on the CPU."""
    return "cpu" if jit.SIMULATED else "cuda"


def as_text(ceilings: Ceilings) -> str:
    """The ceilings in a line."""
    tf32 = "" if ceilings.tf32 is None else f", tf32 {ceilings.tf32 / 1e12:.1f} TFLOP/s"
    return (
        f"{ceilings.name}: copy {ceilings.copy / 1e9:,.0f} GB/s, float32 matrix product "
        f"{ceilings.sgemm / 1e12:.1f} TFLOP/s{tf32}\n"
    )


def seconds_of(function: Callable[[], Any], rounds: int) -> float:
    """Median seconds of what `function` does on this thread's stream, by events, cache empty."""
    if jit.SIMULATED:
        start = time.perf_counter()
        function()
        return time.perf_counter() - start
    function()
    cuda, stream = jit.cuda, jit.stream()
    flushed, times = memory.zeros(_FLUSHED // 4, np.float32), []
    for _ in range(rounds):
        cuda.cudadrv.driver.device_memset(flushed, 0, _FLUSHED, stream=stream)
        begin, end = cuda.event(), cuda.event()
        begin.record(stream)
        function()
        end.record(stream)
        end.synchronize()
        times.append(cuda.event_elapsed_time(begin, end) / 1e3)
    return statistics.median(times)


def torch_seconds_of(function: Callable[[], Any], rounds: int) -> float:
    """The same of work that torch does."""
    import torch

    if torch_device() == "cpu":
        start = time.perf_counter()
        function()
        return time.perf_counter() - start
    function()
    flushed, times = torch.empty(_FLUSHED // 4, device="cuda"), []
    for _ in range(rounds):
        flushed.zero_()
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        function()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) / 1e3)
    return statistics.median(times)
