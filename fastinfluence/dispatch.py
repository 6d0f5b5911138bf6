"""Which kernels serve a call, and on how many threads."""

from __future__ import annotations

import functools
import importlib
import itertools
import logging
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from importlib.util import find_spec
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from fastinfluence.errors import DeviceError, ParameterError

__all__ = [
    "choose",
    "cuda_name",
    "cuda_problem",
    "equal_parts",
    "even_parts",
    "in_order",
    "kernels",
    "memory",
    "run_parts",
    "thread_count",
]


Job = TypeVar("Job")
Result = TypeVar("Result")


def choose(device: str = "auto", served: Sequence[str] = ("cpu",)) -> tuple[str, str]:
    """The backend that serves `device`, and why: ``("cpu", "...")``.

    Parameters
    ----------
    device : {"auto", "cpu", "cuda", "torch:<device>"}
        "auto" is CUDA where there is a GPU and kernels for it, else the CPU.
    served : sequence of {"cpu", "cuda", "torch"}
        Backends that have the kernels needed.

    Returns
    -------
    backend : str
        "cpu", "cuda" or "torch:<device>": for `kernels` and `memory`.
    reason : str

    Raises
    ------
    ParameterError
        A device that is not known, or that has no kernels for this.
    DeviceError
        A device that was asked for by name is not there; says what to install.
    """
    if device == "cpu":
        return "cpu", "asked for"
    if device == "auto":
        if "cuda" not in served:
            return "cpu", "there are CPU kernels only for this"
        problem = cuda_problem()
        if problem is None and not _simulated():
            return "cuda", cuda_name()
        reason = problem or "the simulator of CUDA is used only when asked for by name"
        _say_once(reason)
        return "cpu", reason
    kind, _, rest = device.partition(":")
    if kind not in ("cuda", "torch") or (kind == "cuda") == bool(rest):
        raise ParameterError(
            f"device={device!r} is not known: use 'auto', 'cpu', 'cuda' or 'torch:<device>' "
            "(as in 'torch:cpu', 'torch:mps')"
        )
    if kind not in served:
        raise ParameterError(
            f"device={device!r}: there are no {kind} kernels for this, only for "
            f"{' and '.join(served)}; use device='auto' or 'cpu'"
        )
    problem = cuda_problem() if kind == "cuda" else _torch_problem(rest)
    if problem is not None:
        raise DeviceError(f"device={device!r} cannot be used: {problem}")
    return device, "asked for"


def kernels(name: str, backend: str = "cpu") -> Any:
    """The module of kernels called `name` (``"sgd"``, ``"readout"``, ...) of a backend."""
    return importlib.import_module(f"fastinfluence.kernels.{backend.partition(':')[0]}.{name}")


def memory(backend: str = "cpu") -> Any:
    """Where the arrays of a backend are: ``put``, ``fetch``, ``store``, ``zeros``, ..."""
    kind, _, rest = backend.partition(":")
    module = importlib.import_module(f"fastinfluence.kernels.{kind}.memory")
    return module.On(rest) if kind == "torch" else module


@functools.cache
def cuda_problem() -> str | None:
    """Why CUDA kernels cannot run here, and what would help; None if they can."""
    if not find_spec("numba_cuda"):
        return (
            "numba-cuda is not installed: pip install 'fastinfluence[cuda13]' (or [cuda12], for "
            "older drivers)"
        )
    try:
        from fastinfluence.kernels.cuda import jit
    except ImportError as error:
        return f"numba-cuda cannot be loaded: {error}"
    return None if jit.SIMULATED else jit.driver_problem()


if hasattr(os, "register_at_fork"):  # what CUDA is in this process it is not in a copy
    os.register_at_fork(after_in_child=cuda_problem.cache_clear)


def cuda_name() -> str:
    """The GPU: its name, memory and compute capability."""
    from fastinfluence.kernels.cuda import jit

    return str(jit.device_name())


def _simulated() -> bool:
    from fastinfluence.kernels.cuda import jit

    return bool(jit.SIMULATED)


def _torch_problem(device: str) -> str | None:
    """Why torch cannot compute on a device of its own."""
    if not find_spec("torch"):
        return "torch is not installed: pip install 'fastinfluence[torch]'"
    import torch

    try:
        torch.zeros(1, device=device).item()  # a 'meta' tensor has no numbers
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        words = str(error).splitlines()[0].partition(". ")[0]
        return f"torch {torch.__version__} has no such device: {words}"
    return None


@functools.cache
def _say_once(reason: str) -> None:
    logging.getLogger("fastinfluence").info("kernels run on the CPU: %s", reason)


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
