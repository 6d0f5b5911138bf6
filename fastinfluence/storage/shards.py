"""Tables too long for the memory, written a block of rows at a time and read by row range.

A directory of numbered shards, each a folder with one `.npy` file a column. A shard is
filled under a temporary name and renamed, so a numbered folder is complete; the manifest of
the whole comes last. A writer that died is continued from its last complete shard.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from functools import lru_cache
from pathlib import Path
from queue import Queue
from threading import Thread
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from fastinfluence.errors import ParameterError, RunDirectoryError
from fastinfluence.storage.atomic import atomic_directory, fsync_directory, lock
from fastinfluence.storage.manifest import MANIFEST, plain, read_manifest, write_manifest
from fastinfluence.storage.npy import check_size, read_npy, write_npy

__all__ = ["ShardReader", "ShardWriter", "open_shards"]

_KIND = "shards"
_START = "start.json"  # what the shards are, there from the first moment
_SHARD = "shard.json"  # the entries of one shard's columns
_PART = "part"  # the shard being filled
_OPEN_SHARDS = 64  # a mapping costs a file descriptor for every column, of some 1000 there are

Columns = dict[str, npt.NDArray[Any]]


class ShardWriter:
    """Write a long table block by block; blocks reach the disk from a background thread.

    Use it as a context manager: leaving the block normally closes the table, leaving it by
    an error keeps the complete shards for a later `resume`.

    Parameters
    ----------
    path : path-like
        The directory to make.
    meta : mapping
        Plain JSON that says what is written; a resumed writer must be given the same.
    resume : bool, default False
        Continue the table at `path` after its last complete shard, if there is one.

    Raises
    ------
    RunDirectoryError
        `path` exists and `resume` is false, or it was begun with another `meta`, or is
        being written by another process.
    """

    def __init__(
        self, path: str | os.PathLike[str], *, meta: Mapping[str, Any], resume: bool = False
    ) -> None:
        self.path = Path(path).absolute()
        self.meta = plain(dict(meta))
        self._shards: list[dict[str, Any]] = []
        self._error: BaseException | None = None
        self._thread: Thread | None = None
        self._closing = ExitStack()
        if os.path.lexists(self.path):
            self._check_resumable(resume)
        else:
            with atomic_directory(self.path) as folder:
                write_manifest(folder / _START, kind=_KIND, content={"meta": self.meta})
        self._lock()
        try:
            self._keep_complete_shards()
        except BaseException:
            self._closing.close()
            raise
        self._schema = _schema(self._shards[0]["columns"]) if self._shards else None
        # One block is written while one waits: the caller may be at most two ahead.
        self._queue: Queue[Columns | None] = Queue(maxsize=1)
        self._thread = Thread(target=self._write_blocks, name="ShardWriter", daemon=True)
        self._thread.start()

    @property
    def done(self) -> int:
        """Number of complete shards on the disk."""
        return len(self._shards)

    @property
    def rows_done(self) -> int:
        """Number of rows in the complete shards."""
        return sum(shard["rows"] for shard in self._shards)

    def append(self, columns: Mapping[str, npt.NDArray[Any]]) -> None:
        """Hand over one block of rows, which becomes the next shard.

        The arrays are not copied: do not change them afterwards.

        Parameters
        ----------
        columns : mapping of str to ndarray
            All of one length; names, dtypes and shapes of a row as in the first block.

        Raises
        ------
        RunDirectoryError
            An earlier block could not be written.
        ParameterError
            The columns do not fit each other or the first block.
        """
        self._raise_error()
        if self._thread is None:
            raise ParameterError(f"the table {self.path} is closed: nothing can be appended")
        block = {name: np.asarray(column) for name, column in columns.items()}
        self._check_block(block)
        self._queue.put(block)

    def close(self) -> None:
        """Wait for the blocks handed over and complete the table by its manifest."""
        if self._thread is None:
            return
        self._stop()
        self._raise_error()
        content = {"meta": self.meta, "shards": self._shards}
        write_manifest(self.path / MANIFEST, kind=_KIND, content=content)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error_type is None:
            self.close()
        else:
            self._stop()

    def _stop(self) -> None:
        if self._thread is not None:
            self._queue.put(None)
            self._thread.join()
            self._thread = None
            self._closing.close()

    def _raise_error(self) -> None:
        if self._error is not None:
            raise RunDirectoryError(
                f"shard {self.done} of {self.path} could not be written: {self._error}"
            ) from self._error

    def _lock(self) -> None:
        descriptor = os.open(self.path, os.O_RDONLY)
        self._closing.callback(os.close, descriptor)
        if not lock(descriptor):
            self._closing.close()
            raise RunDirectoryError(f"{self.path} is being written by another writer")

    def _check_resumable(self, resume: bool) -> None:
        if not resume:
            raise RunDirectoryError(
                f"{self.path} exists already: choose another path, or continue it with resume=True"
            )
        _, content = read_manifest(self.path / _START, kind=_KIND)
        begun = content["meta"]
        if begun != self.meta:
            keys = sorted(
                key for key in begun.keys() | self.meta if begun.get(key) != self.meta.get(key)
            )
            differences = ", ".join(
                f"{k}: {begun.get(k)!r}, now {self.meta.get(k)!r}" for k in keys
            )
            raise RunDirectoryError(
                f"{self.path} was begun with another meta and cannot be resumed ({differences})"
            )

    def _keep_complete_shards(self) -> None:
        if (self.path / _PART).exists():
            shutil.rmtree(self.path / _PART)
        while (folder := self._folder(self.done)).exists():
            self._shards.append(read_manifest(folder / _SHARD, kind=_KIND)[1])

    def _check_block(self, block: Columns) -> None:
        lengths = {name: column.shape[:1] for name, column in block.items()}
        if len(set(lengths.values())) != 1 or () in lengths.values():
            raise ParameterError(f"the columns of a block must be of one length, not {lengths}")
        if not all(name.isidentifier() for name in block):
            raise ParameterError(f"column names must be identifiers, not {list(block)}")
        schema = {
            name: (column.dtype.str, list(column.shape[1:])) for name, column in block.items()
        }
        self._schema = self._schema or schema
        if schema != self._schema:
            raise ParameterError(
                f"a block has columns {schema} (dtype and shape of a row) "
                f"where the first one had {self._schema}"
            )

    def _write_blocks(self) -> None:
        while (block := self._queue.get()) is not None:
            if self._error is None:
                try:
                    self._write_shard(block)
                except BaseException as error:
                    self._error = error
            del block  # its memory is free before the next one comes

    def _write_shard(self, block: Columns) -> None:
        part = self.path / _PART
        part.mkdir()
        entries = {name: write_npy(part / f"{name}.npy", column) for name, column in block.items()}
        shard = {"rows": len(next(iter(block.values()))), "columns": entries}
        write_manifest(part / _SHARD, kind=_KIND, content=shard)
        fsync_directory(part)
        os.rename(part, self._folder(self.done))
        fsync_directory(self.path)
        self._shards.append(shard)

    def _folder(self, number: int) -> Path:
        return self.path / f"{number:06d}"


class ShardReader:
    """A table written by `ShardWriter`: iterate over its shards, or slice its rows.

    ``len(reader)`` is the number of rows; ``reader[start:stop]`` is a dict of columns, a
    view where the range lies in one shard; iterating gives one dict of columns a shard.

    Attributes
    ----------
    path : Path
    meta : dict
        What the writer said about the table.
    n_shards : int
    columns : list of str
    """

    def __init__(self, path: Path, content: dict[str, Any], *, mmap: bool) -> None:
        self.path = path
        self.meta: dict[str, Any] = content["meta"]
        self._shards: list[dict[str, Any]] = content["shards"]
        self._mmap = mmap
        self.n_shards = len(self._shards)
        self.columns = list(self._shards[0]["columns"]) if self._shards else []
        self._starts = np.cumsum([0] + [shard["rows"] for shard in self._shards])
        # Mapped shards stay open, since every new mapping pays for its page faults again.
        self._shard = lru_cache(_OPEN_SHARDS if mmap else 1)(self._read_shard)
        for number, shard in enumerate(self._shards):
            for name, entry in shard["columns"].items():
                check_size(self._file(number, name), entry)

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __iter__(self) -> Iterator[Columns]:
        for number in range(self.n_shards):
            yield dict(self._shard(number))

    def __getitem__(self, rows: slice) -> Columns:
        if not isinstance(rows, slice) or rows.step not in (None, 1):
            raise ParameterError(f"rows are read by range, as in reader[1000:2000], not by {rows}")
        start, stop, _ = rows.indices(len(self))
        first = int(np.searchsorted(self._starts[1:], start, "right"))
        last = int(np.searchsorted(self._starts[:-1], stop, "left"))
        pieces = []
        for number in range(first, last) or range(min(1, self.n_shards)):  # no rows: of shard 0
            low, high = np.maximum(0, np.array([start, max(start, stop)]) - self._starts[number])
            pieces.append({name: col[low:high] for name, col in self._shard(number).items()})
        if len(pieces) == 1:
            return pieces[0]
        return {name: np.concatenate([piece[name] for piece in pieces]) for name in self.columns}

    def verify(self) -> None:
        """Read everything and compare it with the checksums.

        Raises
        ------
        RunDirectoryError
            A column of a shard is damaged; it is named.
        """
        for number in range(self.n_shards):
            self._read_shard(number, verify=True)

    def _read_shard(self, number: int, verify: bool = False) -> Columns:
        return {
            name: read_npy(self._file(number, name), entry, mmap=self._mmap, verify=verify)
            for name, entry in self._shards[number]["columns"].items()
        }

    def _file(self, number: int, name: str) -> Path:
        return self.path / f"{number:06d}" / f"{name}.npy"


def open_shards(path: str | os.PathLike[str], *, mmap: bool = True) -> ShardReader:
    """Open a table that a `ShardWriter` has closed.

    Parameters
    ----------
    path : path-like
        The directory.
    mmap : bool, default True
        Map the files, read-only, instead of reading a shard into memory when it is needed.

    Raises
    ------
    RunDirectoryError
        The directory is absent, not finished, of another format version, or lacks a file.
    """
    path = Path(path).absolute()
    if (path / _START).is_file() and not (path / MANIFEST).is_file():
        raise RunDirectoryError(
            f"{path} is not finished: its writer was stopped, continue it with resume=True"
        )
    _, content = read_manifest(path / MANIFEST, kind=_KIND)
    return ShardReader(path, content, mmap=mmap)


def _schema(entries: dict[str, dict[str, Any]]) -> dict[str, tuple[str, list[int]]]:
    return {name: (entry["dtype"], entry["shape"][1:]) for name, entry in entries.items()}
