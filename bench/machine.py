"""What a figure has to be read beside: rates of this machine, its BLAS, versions."""

from __future__ import annotations

import importlib.metadata
import os
import statistics
import time
from functools import cache
from pathlib import Path

import numpy as np
from threadpoolctl import threadpool_info

PACKAGES = (
    "fastinfluence",
    "numpy",
    "scipy",
    "numba",
    "llvmlite",
    "pytest-benchmark",
    "cornac",
    "scikit-surprise",
    "torch",
    "captum",
    "dattri",
    "pyDVL",
    "pykeen",
)

_SIDE = 2048


def cores() -> int:
    """Processors this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def sgemm_seconds() -> float:
    """Seconds of one product of two 2048 x 2048 float32 matrices, one thread."""
    start = time.perf_counter()
    np.matmul(_A, _A, out=_B)
    return time.perf_counter() - start


def sgemm_gflops(rounds: int = 5) -> float:
    """GFLOP/s of `sgemm_seconds`, the median of some rounds."""
    sgemm_seconds()
    return sgemm_flops() / 1e9 / statistics.median(sgemm_seconds() for _ in range(rounds))


def sgemm_flops() -> float:
    """Floating-point operations of `sgemm_seconds`."""
    return 2.0 * _SIDE**3


def copy_bandwidth(rounds: int = 7) -> float:
    """GB/s of copying 256 MB in memory on one thread, bytes read and bytes written counted."""
    source, target = np.ones(2**26, np.float32), np.zeros(2**26, np.float32)
    seconds = []
    for _ in range(rounds):
        start = time.perf_counter()
        np.copyto(target, source)
        seconds.append(time.perf_counter() - start)
    return 2 * source.nbytes / 1e9 / statistics.median(seconds)


def copy_seconds() -> float:
    """Seconds of copying 128 MB in memory, beyond any cache, on one thread."""
    source, target = _copied()
    start = time.perf_counter()
    np.copyto(target, source)
    return time.perf_counter() - start


def copy_bytes() -> float:
    """Bytes that `copy_seconds` reads and writes."""
    return 2.0 * _copied()[0].nbytes


@cache
def _copied() -> tuple[np.ndarray, np.ndarray]:
    return np.ones(2**25, np.float32), np.ones(2**25, np.float32)


def disk_bandwidth(folder: Path, size: int) -> float:
    """MB/s of writing `size` bytes into a new file of `folder` and waiting for the disk."""
    block = np.random.default_rng(0).bytes(2**24)
    path = folder / "bandwidth"
    start = time.perf_counter()
    with path.open("wb") as file:
        for _ in range(max(1, size // len(block))):
            file.write(block)
        file.flush()
        os.fsync(file.fileno())
    seconds = time.perf_counter() - start
    written = path.stat().st_size
    path.unlink()
    return written / 1e6 / seconds


def blas() -> list[str]:
    """The BLAS libraries loaded, one line each."""
    return sorted(
        {
            f"{lib['internal_api']} {lib['version']} ({lib.get('architecture', 'unknown')} "
            f"kernels, {lib['num_threads']} thread{'s' if lib['num_threads'] > 1 else ''})"
            for lib in threadpool_info()
            if lib["user_api"] == "blas"
        }
    )


def versions() -> dict[str, str]:
    """Versions of the packages that are installed."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            if name == "fastinfluence":  # run from its tree
                import fastinfluence

                found[name] = fastinfluence.__version__
    return found


_A = np.random.default_rng(0).standard_normal((_SIDE, _SIDE), np.float32)
_B = np.empty_like(_A)
