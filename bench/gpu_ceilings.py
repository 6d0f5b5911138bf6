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

__all__ = ["Ceilings", "as_text", "measure", "seconds_of", "torch_device"]

_FLUSHED = 512 * 2**20  # bytes: several times the second-level cache of any card so far
_ENOUGH = 10.0  # seconds: no more rounds behind them


@dataclass
class Ceilings:
    """Rates of the card, in bytes and in operations a second."""

    name: str
    copy: float  # read and written
    sgemm: float  # float32, no tensor cores
    tf32: float | None


def measure(smoke: bool) -> Ceilings:
    """Copy within the card's memory, and multiply matrices by torch; NaN without it."""
    size = 2**16 if smoke else 2**31
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
    seconds = seconds_of(lambda: a @ b, 1 if smoke else 5)
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


def _nothing() -> None:
    pass


def seconds_of(
    function: Callable[[], Any], rounds: int, before: Callable[[], Any] = _nothing
) -> float:
    """Median seconds of work on the GPU, by the clock on the wall, the cache emptied before.

    Not by events: they see one stream, and some of our functions launch from threads with streams
    of their own. The clock begins with an idle card and ends when all that it was given is done,
    so what Python needs for the launches is in it: of ours, that wait, as of torch's.
    What the first call compiles is left out where the function has run before.

    Parameters
    ----------
    function : callable
        Ours, or one of torch.
    rounds : int
        At most; fewer where they take long.
    before : callable
        Called before every round, and not timed.
    """
    flushed = None if jit.SIMULATED else memory.zeros(_FLUSHED // 4, np.float32)
    times: list[float] = []
    while len(times) < rounds and sum(times) < _ENOUGH:
        before()
        if flushed is not None:
            jit.cuda.cudadrv.driver.device_memset(flushed, 0, _FLUSHED)
        _wait()
        start = time.perf_counter()
        function()
        _wait()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def _wait() -> None:
    """Wait for all streams of the card, torch's too."""
    if not jit.SIMULATED:
        jit.cuda.synchronize()
