"""What this machine offers, and what a run directory holds."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import fastinfluence
from fastinfluence import dispatch
from fastinfluence.data.triple_parts import SPLITS
from fastinfluence.errors import RunDirectoryError
from fastinfluence.memory import memory_budget
from fastinfluence.storage import open_shards, read_run
from fastinfluence.storage.manifest import MANIFEST, read_manifest

__all__ = ["as_text", "machine", "run"]

_NEEDED = ("numpy", "scipy", "numba")
_OPTIONAL = ("numba-cuda", "torch", "pyarrow", "pandas", "polars", "matplotlib")


def machine() -> dict[str, Any]:
    """Versions, processors, libraries, caches, and the backend that would be chosen."""
    from fastinfluence.kernels.cpu import lanes
    from fastinfluence.kernels.cpu.grouping import count_sort

    backend, reason = dispatch.choose(served=("cpu", "cuda"))
    return {
        "fastinfluence": fastinfluence.__version__,
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in _NEEDED},
        **{name: _version(name) for name in _OPTIONAL},
        "system": platform.platform(),
        "processor": _processor(),
        "processors": os.cpu_count(),
        "threads": dispatch.thread_count(None),
        "avx512": lanes.HAS_AVX512,
        "blas": _blas(),
        "memory_budget": memory_budget(),
        "kernel_cache": count_sort.stats.cache_path,
        "gpu": dispatch.cuda_name() if dispatch.cuda_problem() is None else None,
        "torch_devices": _torch_devices(),
        "backend": backend,
        "backend_reason": reason,
    }


def run(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What a run directory, or a folder of explanations or retrainings holds; all is checked.

    Raises
    ------
    RunDirectoryError
        The directory is absent, half-written, damaged or of another format version.
    """
    path = Path(path)
    # Opening shards tells whether their writer has finished; a run has only the manifest.
    shards = not (path / MANIFEST).is_file() or read_manifest(path / MANIFEST)[0] == "shards"
    about = _shards(path) if shards else _model(path)
    size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    return {"path": os.fspath(path), **about, "bytes": size}


def as_text(facts: dict[str, Any]) -> str:
    """Aligned lines of names and facts."""
    lines = [(name.replace("_", " "), _words(name, fact)) for name, fact in facts.items()]
    width = max(len(name) for name, _ in lines)
    return "\n".join(f"{name:<{width}}  {fact}" for name, fact in lines)


def _model(path: Path) -> dict[str, Any]:
    found = read_run(path, mmap=True)
    arrays, meta = found.arrays, found.meta
    try:
        return {
            "holds": found.kind,
            **(_triples(arrays) if "data/heads" in arrays else _pairs(arrays)),
            "recipe": meta["recipe"],
            "epochs": len(meta["losses"]),
            "loss": meta["losses"][-1],
            "validation_loss": (meta["validation_losses"] or [None])[-1],
            "checkpoints": len({name.split("/")[1] for name in arrays if "checkpoints/" in name}),
        }
    except (KeyError, IndexError) as missing:
        raise RunDirectoryError(f"{path} is no complete run of a model: {missing}") from missing


def _pairs(arrays: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "examples": len(arrays["data/users"]),
        "users": len(arrays["data/user_ids"]),
        "items": len(arrays["data/item_ids"]),
        "values": "data/values" in arrays,
        "labels": [side for side in ("user", "item") if f"data/{side}_labels" in arrays],
    }


def _triples(arrays: Mapping[str, Any]) -> dict[str, Any]:
    sizes = {
        f"{split}_triples": len(arrays[f"data/{split}_heads"])
        for split in SPLITS
        if f"data/{split}_heads" in arrays
    }
    return {
        "examples": len(arrays["data/heads"]),
        **sizes,
        "entities": len(arrays["data/entity_ids"]),
        "relations": len(arrays["data/relation_ids"]),
        "labels": [kind for kind in ("entity", "relation") if f"data/{kind}_labels" in arrays],
    }


def _shards(path: Path) -> dict[str, Any]:
    table = open_shards(path)
    table.verify()
    about = {"rows": len(table), "shards": table.n_shards, "columns": table.columns}
    kind = "retrainings" if "removals" in table.meta else "explanations"
    return {"holds": kind, **table.meta, **about}


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            return next(line.partition(":")[2].strip() for line in lines if "model name" in line)
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _torch_devices() -> list[str] | None:
    """What to ask torch for by ``device="torch:..."``; None without torch."""
    if _version("torch") is None:
        return None
    import torch

    found = ["torch:cpu"]
    found += [f"torch:cuda:{number}" for number in range(torch.cuda.device_count())]
    others = ("mps", torch.backends.mps.is_available()), ("xpu", torch.xpu.is_available())
    return found + [f"torch:{name}" for name, there in others if there]


def _blas() -> list[str]:
    """The BLAS libraries that numpy and scipy bring, as they are loaded."""
    import scipy.linalg  # noqa: F401  (loads scipy's)
    from threadpoolctl import threadpool_info

    return [
        " ".join(
            str(library[key])
            for key in ("internal_api", "version", "architecture")
            if key in library
        )
        for library in threadpool_info()
        if library["user_api"] == "blas"
    ]


def _words(name: str, fact: Any) -> str:
    if fact is None:
        absent = {
            "gpu": "none",
            "validation_loss": "none",
            "kernel_cache": "none: compiled anew in every process",
        }
        return absent.get(name, "not installed")
    if isinstance(fact, bool):
        return "yes" if fact else "no"
    if isinstance(fact, dict):
        return ", ".join(f"{key}={value!r}" for key, value in fact.items())
    if isinstance(fact, list):
        return ", ".join(map(str, fact)) or "none"
    if name in ("memory_budget", "bytes"):
        return _size(fact)
    if name in ("model", "changes", "queries", "removals") and isinstance(fact, int):
        return f"{fact:08x}"  # a checksum
    if isinstance(fact, float):
        return f"{fact:.4g}"
    return f"{fact:,}" if isinstance(fact, int) else str(fact)


def _size(n_bytes: int) -> str:
    return next(_sizes(n_bytes))


def _sizes(size: float) -> Iterator[str]:
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            yield f"{size:.4g} {unit}"
        size /= 1024
    yield f"{size:.4g} GiB"
