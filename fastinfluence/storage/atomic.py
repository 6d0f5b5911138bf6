"""Files and directories that appear whole or not at all.

Everything is written under a temporary name beside its target, flushed to the disk, and
renamed. The writer holds a lock (`flock`) on the temporary, which ends with its process:
a temporary that can be locked was left by a writer that died, and is removed by the next
writer of the same target.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """Open a file for writing that replaces `path` when the block ends without an error."""
    while True:
        temporary = _temporary_sibling(path)
        try:
            with open(temporary, "xb") as file:
                if not (lock(file.fileno()) and temporary.exists()):
                    continue  # another writer took it for a leftover before it was locked
                yield file
                file.flush()
                os.fsync(file.fileno())
                os.rename(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        fsync_directory(path.parent)
        return


@contextlib.contextmanager
def atomic_directory(path: Path, *, replace: bool = False) -> Iterator[Path]:
    """Fill a directory that takes the place of `path` when the block ends without an error.

    The files inside are the caller's to fsync, the directories are not. With `replace`
    false, a `path` that exists at the end raises `OSError`.
    """
    while True:
        temporary = _temporary_sibling(path)
        try:
            temporary.mkdir()
            with _opened(temporary) as descriptor:
                if not (lock(descriptor) and temporary.exists()):
                    continue  # another writer took it for a leftover before it was locked
                yield temporary
                for folder, _, _ in os.walk(temporary):
                    fsync_directory(Path(folder))
                if replace and path.exists():
                    _exchange(temporary, path)
                else:
                    os.rename(temporary, path)
                fsync_directory(path.parent)
                shutil.rmtree(temporary, ignore_errors=True)  # the old state, if there was one
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        return


def lock(descriptor: int) -> bool:
    """Lock an open file or directory until it is closed; False if another holds the lock.

    True also where the file system knows no locks: there nothing is taken for a leftover.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        pass
    return True


def fsync_directory(path: Path) -> None:
    """Make the names inside a directory survive a power cut."""
    with _opened(path) as descriptor:
        os.fsync(descriptor)


def _temporary_sibling(path: Path) -> Path:
    """Return a fresh temporary name for `path`, after removing what dead writers left."""
    path.parent.mkdir(parents=True, exist_ok=True)
    prefix = f".{path.name}.tmp-"
    for leftover in path.parent.iterdir():
        if leftover.name.startswith(prefix):
            _remove_if_dead(leftover)
    return path.parent / f"{prefix}{secrets.token_hex(6)}"


def _remove_if_dead(leftover: Path) -> None:
    with contextlib.suppress(OSError), _opened(leftover) as descriptor:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if leftover.is_dir():
            shutil.rmtree(leftover)
        else:
            leftover.unlink()


def _exchange(first: Path, second: Path) -> None:
    """Swap two directories in one step where the system can, in two renames elsewhere."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    names = os.fsencode(first), os.fsencode(second)
    if rename is not None and not rename(
        _AT_FDCWD, names[0], _AT_FDCWD, names[1], ctypes.c_uint(_RENAME_EXCHANGE)
    ):
        return
    aside = first.with_name(first.name + "-old")
    os.rename(second, aside)
    os.rename(first, second)
    os.rename(aside, first)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
