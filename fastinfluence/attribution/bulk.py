"""Explaining in bulk: cutting queries into batches, and writing batches to a folder of shards."""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable, Iterable, Mapping
from itertools import pairwise
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from fastinfluence import dispatch
from fastinfluence.errors import ParameterError
from fastinfluence.progress import progress
from fastinfluence.storage import ShardWriter

__all__ = [
    "check_batch",
    "equal_batches",
    "fingerprint",
    "limited_batches",
    "write_batches",
]

Array = npt.NDArray[Any]
Batch = TypeVar("Batch")

_ENTRIES_AT_ONCE = 2**23  # of influence: 64 MiB in float32, with their indices


def check_batch(batch_size: int | None, default: int) -> int:
    """Return `batch_size`, or `default` where it is None; ParameterError unless it is >= 1."""
    if batch_size is None:
        return default
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise ParameterError(f"batch_size must be an integer >= 1, not {batch_size!r}")
    return batch_size


def equal_batches(n: int, size: int) -> list[tuple[int, int]]:
    """Bounds of batches of n queries; one batch, an empty one, of none."""
    return [(start, min(start + size, n)) for start in range(0, max(n, 1), size)]


def limited_batches(entries: npt.NDArray[np.int64]) -> list[tuple[int, int]]:
    """Bounds of batches of queries with (n,) entries each that take little memory together.

    The same on every machine: neither its memory nor its threads may change a sum.
    """
    ends = np.cumsum(entries)
    number = (ends - entries) // _ENTRIES_AT_ONCE
    cuts = [0, *(np.flatnonzero(np.diff(number)) + 1).tolist(), len(entries)]
    return list(pairwise(cuts))


def write_batches(
    path: str | os.PathLike[str],
    batches: Callable[[int], Iterable[Batch]],
    columns_of: Callable[[Batch], Mapping[str, Array]],
    n_queries: int,
    *,
    meta: Mapping[str, Any],
    resume: bool,
    n_threads: int,
    show_progress: bool | None,
) -> int:
    """Write the explanations of batches as shards while the next ones are computed.

    Parameters
    ----------
    path : path-like
    batches : callable
        ``batches(start)``: those of the queries from number `start` on.
    columns_of : callable
        Explains a batch on one thread: columns of one length.
    n_queries : int
    meta : mapping
        What the shards hold; see `ShardWriter`.
    resume : bool
        Go on behind the complete shards that are there.
    n_threads : int
        A batch a thread: then nothing between the kernels keeps the others waiting.
    show_progress : bool, optional

    Returns
    -------
    int
        Number of queries explained, earlier ones included.
    """
    with (
        ShardWriter(path, meta=meta, resume=resume) as writer,
        progress(n_queries, description="explain", show=show_progress, unit="query") as bar,
    ):
        bar.update(writer.rows_done)
        for columns in dispatch.in_order(columns_of, batches(writer.rows_done), n_threads):
            writer.append(columns)
            bar.update(len(next(iter(columns.values()))))
    return n_queries


def fingerprint(*columns: Array) -> int:
    """Checksum of what is explained, to tell a resumed run from another one."""
    code = 0
    for column in columns:
        code = zlib.crc32(np.ascontiguousarray(column).tobytes(), code)
    return code
