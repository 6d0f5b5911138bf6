"""Which kernels serve a call, and on how many threads."""

from __future__ import annotations

import importlib
import itertools
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from fastinfluence.errors import ParameterError

__all__ = [
    "choose",
    "equal_parts",
    "even_parts",
    "in_order",
    "kernels",
    "run_parts",
    "thread_count",
]


Job = TypeVar("Job")
Result = TypeVar("Result")


def choose(device: str = "auto") -> tuple[str, str]:
    """The backend that serves `device`, and why: ``("cpu", "...")``.

    Raises
    ------
    ParameterError
        A device this version has no kernels for was asked for by name.
    """
    if device == "cpu":
        return "cpu", "asked for"
    if device == "auto":
        return "cpu", "this version has CPU kernels only"
    if device == "cuda" or device.startswith("torch:"):
        raise ParameterError(
            f"device={device!r}: this version has CPU kernels only; use device='auto' or 'cpu'"
        )
    raise ParameterError(f"device={device!r} is not known: use 'auto' or 'cpu'")


def kernels(name: str, device: str = "auto") -> Any:
    """The module of kernels called `name` (``"sgd"``, ``"readout"``, ...) for a device."""
    backend, _ = choose(device)
    return importlib.import_module(f"fastinfluence.kernels.{backend}.{name}")


def thread_count(n_threads: int | None) -> int:
    """Threads to use: those asked for, or one for each processor this process may run on."""
    if n_threads is None:
        if hasattr(os, "sched_getaffinity"):
            return len(os.sched_getaffinity(0))
        return os.cpu_count() or 1
    if isinstance(n_threads, bool) or not isinstance(n_threads, int | np.integer) or n_threads < 1:
        raise ParameterError(f"n_threads must be a positive integer or None, not {n_threads!r}")
    return int(n_threads)


def even_parts(work: npt.NDArray[np.floating[Any]], n_parts: int) -> list[tuple[int, int]]:
    """Cut ``range(len(work))`` into at most `n_parts` runs of nearly equal total work."""
    total = np.cumsum(work)
    if total.size == 0:
        return []
    goals = total[-1] * np.arange(1, n_parts) / n_parts
    bounds = np.unique(np.concatenate([[0], np.searchsorted(total, goals) + 1, [total.size]]))
    return [(int(a), int(b)) for a, b in itertools.pairwise(bounds)]


def equal_parts(n: int, n_parts: int) -> list[tuple[int, int]]:
    """Cut ``range(n)`` into at most `n_parts` runs of nearly equal length, none below 4096."""
    n_parts = max(1, min(n_parts, n // 4096))
    bounds = [n * part // n_parts for part in range(n_parts + 1)]
    return list(itertools.pairwise(bounds))


def run_parts(
    function: Callable[[int, int], object], parts: Sequence[tuple[int, int]], n_threads: int
) -> None:
    """Call ``function(start, stop)`` for every part; compiled functions run side by side.

    Python threads rather than a compiled parallel loop: the kernels hold no GIL, the parts are
    milliseconds long, and neither forks nor other libraries' threads can upset them.
    """
    if n_threads == 1 or len(parts) <= 1:
        for start, stop in parts:
            function(start, stop)
        return
    with ThreadPoolExecutor(min(n_threads, len(parts))) as pool:
        for future in [pool.submit(function, start, stop) for start, stop in parts]:
            future.result()


def in_order(
    function: Callable[[Job], Result], jobs: Iterable[Job], n_threads: int
) -> Iterator[Result]:
    """Yield ``function(job)`` in the order of the jobs; `n_threads` of them run ahead."""
    if n_threads == 1:
        yield from map(function, jobs)
        return
    ahead: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(n_threads) as pool:
        for job in jobs:
            ahead.append(pool.submit(function, job))
            if len(ahead) > n_threads:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
