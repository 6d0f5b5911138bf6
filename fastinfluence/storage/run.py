"""A run directory: arrays and what is known about them, in one folder that is never half."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy.typing as npt

from fastinfluence.errors import ParameterError, RunDirectoryError
from fastinfluence.storage.atomic import atomic_directory
from fastinfluence.storage.manifest import MANIFEST, plain, read_manifest, write_manifest
from fastinfluence.storage.npy import read_npy, write_npy

_NAME = re.compile(r"[A-Za-z0-9_-]+(/[A-Za-z0-9_-]+)*")


@dataclass(frozen=True)
class Run:
    """What a run directory holds.

    Attributes
    ----------
    path : Path
        The directory.
    kind : str
        What the run is, as its writer named it.
    meta : dict
        The JSON its writer left.
    arrays : dict of str to ndarray
        Read-only where memory-mapped.
    """

    path: Path
    kind: str
    meta: dict[str, Any]
    arrays: dict[str, npt.NDArray[Any]] = field(repr=False)


def write_run(
    path: str | os.PathLike[str],
    *,
    kind: str,
    meta: Mapping[str, Any],
    arrays: Mapping[str, npt.ArrayLike],
    overwrite: bool = False,
) -> None:
    """Write a run directory, whole or not at all.

    A process killed at any moment leaves what was at `path` before, or the new run.

    Parameters
    ----------
    path : path-like
        The directory to make; its parents are made where they are missing.
    kind : str
        What the run is; `read_run` can insist on it.
    meta : mapping
        Plain JSON. Arrays whose dtype means something else than it says (bfloat16 held in
        uint16) are explained here.
    arrays : mapping of str to array-like
        Of plain dtypes. Each becomes a `.npy` file in C order; "/" in a name makes a
        sub-folder.
    overwrite : bool, default False
        Replace the run that is at `path`.

    Raises
    ------
    RunDirectoryError
        `path` exists and is not to be overwritten, or is something else than a run.
    ParameterError
        A name, a dtype or `meta` cannot be stored.
    """
    path = Path(path).absolute()
    for name in arrays:
        if not _NAME.fullmatch(name):
            raise ParameterError(
                f"array name {name!r} is not made of letters, digits, '_' and '-' "
                "with '/' between folders"
            )
    content = {"meta": plain(dict(meta)), "arrays": {}}
    _refuse_existing(path, overwrite)
    with atomic_directory(path, replace=overwrite) as folder:
        for name, array in arrays.items():
            file = folder / f"{name}.npy"
            file.parent.mkdir(parents=True, exist_ok=True)
            content["arrays"][name] = write_npy(file, array)
        write_manifest(folder / MANIFEST, kind=kind, content=content)


def read_run(
    path: str | os.PathLike[str],
    *,
    kind: str | None = None,
    mmap: bool = False,
    verify: bool = True,
    only: Iterable[str] | None = None,
) -> Run:
    """Read a run directory.

    Parameters
    ----------
    path : path-like
        The directory.
    kind : str, optional
        The kind it must be.
    mmap : bool, default False
        Map the arrays, read-only, instead of reading them into memory.
    verify : bool, default True
        Compare every array read with its checksum (2.5 GB/s a thread; with `mmap` this
        reads the files once). Sizes are always compared.
    only : iterable of str, optional
        Names of the arrays to read; shell patterns such as "checkpoints/*" select several.

    Raises
    ------
    RunDirectoryError
        The directory is absent, half-written, damaged, of another format version or kind,
        or lacks an array asked for by `only`.
    """
    path = Path(path).absolute()
    kind, content = read_manifest(path / MANIFEST, kind=kind)
    entries: dict[str, dict[str, Any]] = content["arrays"]
    names = list(entries) if only is None else _select(path, entries, only)

    def read(name: str) -> npt.NDArray[Any]:
        return read_npy(path / f"{name}.npy", entries[name], mmap=mmap, verify=verify)

    # Checksums and reads release the GIL; more threads than this wait for memory.
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        arrays = dict(zip(names, pool.map(read, names), strict=True))
    return Run(path, kind, content["meta"], arrays)


def _select(path: Path, entries: Iterable[str], only: Iterable[str]) -> list[str]:
    patterns = [only] if isinstance(only, str) else list(only)
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in entries):
            raise RunDirectoryError(
                f"{path} holds no array {pattern!r}; it holds {', '.join(entries) or 'none'}"
            )
    return [name for name in entries if any(fnmatchcase(name, p) for p in patterns)]


def _refuse_existing(path: Path, overwrite: bool) -> None:
    """Raise unless `path` is free, or holds a run that may be replaced."""
    if not os.path.lexists(path):
        return
    if not overwrite:
        raise RunDirectoryError(
            f"{path} exists already: choose another path, or overwrite it with overwrite=True"
        )
    if path.is_symlink() or not (path / MANIFEST).is_file():
        raise RunDirectoryError(f"{path} is not a run directory: it is not overwritten")
