"""What simulated threads read and write, and whether anything orders it: a detector of races.

Nothing here depends on the order in which the simulator happens to run the threads. Two accesses
to one place by different threads, not both reads and not both atomic, are a race unless a
`syncthreads` of their block or `syncwarp`s that lead from one to the other lie between: shuffles
and votes exchange values but order no memory, and nothing orders the blocks of a launch. That two
threads write the same value excuses neither.

Accesses are noted as they are made, a number each, and gone through when the launch has ended. A
launch with a race is made again, from a copy of its arrays, to learn the lines of the kernel.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["Memory", "Race", "Watched"]

_READ, _WRITE, _ATOMIC = range(3)
_VERBS = "reads", "writes", "atomically changes"
_WARP = 32
_SIMULATOR = str(Path(__file__).parent / "simulat")  # so its files begin


class Race(RuntimeError):
    """Two threads access the same memory, and nothing says which of them is first."""


class Watched:
    """An array as a kernel sees it: each access to one of its elements is noted.

    What is noted is ``address << 4 | log2 of the element's size << 2 | what is done``.
    """

    __slots__ = (
        "_note", "_notes", "dtype", "itemsize", "name", "ndim", "notes", "shape", "size", "values",
    )  # fmt: skip

    def __init__(self, values: Any, notes: Any, note: Any, name: str) -> None:
        self.values, self.notes, self.name = values, notes, name
        self._note, self._notes = note, memoryview(notes)  # which makes whole numbers of Python
        self.dtype, self.ndim, self.shape = values.dtype, values.ndim, values.shape
        self.itemsize, self.size = values.itemsize, values.size

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, index: Any) -> Any:
        value = self.values[index]
        try:
            self._note(self._notes[index])
        except (NotImplementedError, TypeError):  # of more than one element
            return Watched(value, self.notes[index], self._note, self.name)
        return value

    def __setitem__(self, index: Any, value: Any) -> None:
        self.values[index] = value
        self._note(self._notes[index] + _WRITE)

    def atomically(self, index: Any) -> Any:
        """The bare array, one element of which is about to be changed by an atomic operation."""
        self._note(self._notes[index] + _ATOMIC)
        return self.values


class Memory:
    """What the threads of a launch do to its arrays, and when.

    When is a date: block, barriers that the block has met at, thread, the thread's own time, and
    how much of the time of each lane of its warp it has been ordered behind (a vector clock).

    Parameters
    ----------
    function : callable
        The kernel.
    arguments : tuple
    traced : tuple of int
        Accesses of which `traces` is to tell.
    """

    def __init__(self, function: Any, arguments: Any, traced: tuple[int, ...] = ()) -> None:
        self._kernel, self._given, self._traced = function, arguments, traced
        self._log = array("q")
        self._turns, self._dates_of_turns = array("q"), array("q")  # where one begins, and when
        self._dates: list[tuple[int, int, int, int, int]] = []
        self._clocks: list[tuple[int, ...]] = [(0,) * _WARP]
        self._blocks = self._barriers = 0
        self._thread: Any = None
        self._room = 1 << 56  # addresses of shared memory: numpy has none there
        self._copies: list[tuple[Any, Any]] = []
        self._arrays: list[Watched] = []
        self.traces: dict[int, str] = {}
        code = function.__code__
        names = code.co_varnames[: code.co_argcount]
        self.arguments = tuple(map(self._argument, names, arguments))

    # ------------------------------------------------------------ arrays

    def _argument(self, name: str, given: Any) -> Any:
        if isinstance(given, tuple):
            names = getattr(given, "_fields", range(len(given)))
            named = zip(names, given, strict=True)
            parts = [self._argument(f"{name}.{its}", part) for its, part in named]
            return type(given)(*parts) if hasattr(given, "_fields") else tuple(parts)
        if not isinstance(given, np.ndarray):
            return given
        if given.flags.writeable:
            self._copies.append((given, given.copy()))
        return self.watched(given, given.__array_interface__["data"][0], name)

    def watched(self, values: Any, address: int, name: str) -> Watched:
        """An array as a kernel may see it, where `name` says which one it is."""
        notes = np.full(values.shape, address)
        for axis, (length, step) in enumerate(zip(values.shape, values.strides, strict=True)):
            notes += (np.arange(length) * step).reshape(-1, *[1] * (values.ndim - axis - 1))
        notes <<= 4
        notes |= values.itemsize.bit_length() - 1 << 2
        seen = Watched(values, notes, self._trace if self._traced else self._log.append, name)
        if self._traced:
            self._arrays.append(seen)
        return seen

    def room(self, n_bytes: int) -> int:
        """The address of memory that a block takes for itself."""
        address = self._room
        self._room += n_bytes + 15 & ~15
        return address

    # ------------------------------------------------------------ time

    def begin(self, threads: Iterable[Any]) -> None:
        """Another block begins."""
        self._blocks, self._barriers = self._blocks + 1, 0
        for thread in threads:
            thread.time, thread.clock = 1, 0
            self._date(thread)

    def barrier(self, threads: Iterable[Any]) -> None:
        """The threads of the block have met: all before is ordered before all after."""
        self._barriers += 1
        for thread in threads:
            self._date(thread)

    def barrier_of_warp(self, threads: Iterable[Any]) -> None:
        """Lanes of a warp have met: each is ordered behind what any of them was, and did."""
        clocks = (self._clocks[number] for number in {thread.clock for thread in threads})
        joined = list(map(max, zip(*clocks, strict=True)))
        for thread in threads:
            joined[thread.number % _WARP] = thread.time
        self._clocks.append(tuple(joined))
        for thread in threads:
            thread.time, thread.clock = thread.time + 1, len(self._clocks) - 1
            self._date(thread)

    def _date(self, thread: Any) -> None:
        thread.date = len(self._dates)
        date = self._blocks, self._barriers, thread.number, thread.time, thread.clock
        self._dates.append(date)

    def turn(self, thread: Any) -> None:
        """It is this thread that accesses memory from now on."""
        self._thread = thread
        self._turns.append(len(self._log))
        self._dates_of_turns.append(thread.date)

    # ------------------------------------------------------------ races

    def race(self) -> tuple[int, int] | None:
        """Two accesses that nothing orders, by number; the first that are found to be so."""
        log = np.array(self._log, np.int64)
        if not (log & 3).any():
            return None
        of_turns = np.repeat(self._dates_of_turns, np.diff(self._turns, append=len(log)))
        dates, clocks, found = np.array(self._dates), np.array(self._clocks), []
        which, address = _by_address(log)
        for pairs in _perhaps_racing(address, log[which] & 3, dates[of_turns[which]]):
            first, second = which[pairs]
            racing = ~_ordered(dates[of_turns[first]], dates[of_turns[second]], clocks)
            found += zip(second[racing].tolist(), first[racing].tolist(), strict=True)
        return min(found)[::-1] if found else None

    def again(self, traced: tuple[int, int]) -> Memory:
        """The memory of the launch before it was made, to trace two of its accesses."""
        for given, copy in self._copies:
            given[...] = copy
        return Memory(self._kernel, self._given, traced)

    def _trace(self, note: int) -> None:
        """Note an access; tell by whom, to what and where in the kernel if it is to be traced."""
        if len(self._log) in self._traced:
            who = f"thread {_place(self._thread.threadIdx)} of block "
            who += str(_place(self._thread.block.blockIdx))
            seen = next(seen for seen in self._arrays if (seen.notes == note & ~3).any())
            index = ", ".join(map(str, np.argwhere(seen.notes == note & ~3)[0]))
            what = f"{_VERBS[note & 3]} {seen.name}[{index}]"
            self.traces[len(self._log)] = f"{who} {what} ({', called in '.join(self._lines())})"
        self._log.append(note)

    def _lines(self) -> Iterator[str]:
        """Lines that run, from the innermost out to the kernel's."""
        frame = sys._getframe(2)
        while frame is not None:
            code = frame.f_code
            if not code.co_filename.startswith(_SIMULATOR):
                yield f"{Path(code.co_filename).name}:{frame.f_lineno}"
            frame = None if code is self._kernel.__code__ else frame.f_back


def _place(dim: Any) -> tuple[int, int, int]:
    return dim.x, dim.y, dim.z


def _by_address(log: Any) -> tuple[Any, Any]:
    """Accesses to what is changed at all, by address and in the order in which they were made.

    Returns
    -------
    which, address : (n_accesses,) int64
        One of eight bytes is there twice if elements of four have been accessed, too.
    """
    sizes, which, address = 1 << (log >> 2 & 3), np.arange(len(log)), log >> 4
    least = sizes.min()
    if sizes.max() > least:
        parts = sizes // least
        which = np.repeat(which, parts)
        begin = np.repeat(np.cumsum(parts) - parts, parts)
        address = address[which] + (np.arange(len(which)) - begin) * least
    changed = np.unique(address[log[which] & 3 != _READ])
    kept = changed[np.searchsorted(changed[:-1], address)] == address
    which, address = which[kept], address[kept]
    order = np.argsort(address, kind="stable")
    return which[order], address[order]


def _perhaps_racing(address: Any, kinds: Any, dates: Any) -> Iterator[Any]:
    """Pairs of accesses, (2, n_pairs), such that if these are all ordered so are all others.

    What is ordered behind a write is ordered behind all that the write is. So it is enough to
    compare each access with the write before and the one behind it; but for atomic operations
    and reads, of which each pair counts.
    """
    n, writes = len(kinds), kinds == _WRITE
    here = np.arange(n)
    before = np.maximum.accumulate(np.where(writes, here, -1))
    before = np.append(-1, before[:-1])
    there = (before >= 0) & (address[before] == address)
    yield np.stack((before[there], here[there]))
    behind = np.minimum.accumulate(np.where(writes, here, n)[::-1])[::-1]
    behind = np.append(behind[1:], n)
    there = (behind < n) & (address[np.minimum(behind, n - 1)] == address)
    yield np.stack((here[there], behind[there]))
    # Between blocks nothing is ordered; within one all is that a barrier lies between.
    new = address[1:] != address[:-1]
    for begin, end in _mixed(kinds, new):
        if dates[begin, 0] != dates[end - 1, 0]:
            yield _pairs(kinds, begin, end)
    for begin, end in _mixed(kinds, new | (dates[1:, :2] != dates[:-1, :2]).any(1)):
        yield _pairs(kinds, begin, end)


def _mixed(kinds: Any, new: Any) -> Iterator[tuple[int, int]]:
    """Groups that hold both atomic operations and reads; `new` says what begins another one."""
    begins = np.append(0, np.flatnonzero(new) + 1)
    both = np.logical_and(*(np.logical_or.reduceat(kinds == k, begins) for k in (_ATOMIC, _READ)))
    ends = np.append(begins[1:], len(kinds))
    return zip(begins[both].tolist(), ends[both].tolist(), strict=True)


def _pairs(kinds: Any, begin: int, end: int) -> Any:
    """Each atomic operation of a group with each read, the earlier one first."""
    atomics, reads = (begin + np.flatnonzero(kinds[begin:end] == k) for k in (_ATOMIC, _READ))
    pairs = np.stack([side.ravel() for side in np.meshgrid(atomics, reads)])
    return np.sort(pairs, axis=0)


def _ordered(first: Any, second: Any, clocks: Any) -> Any:
    """Whether dates are ordered before others, later in the log."""
    block, barrier, thread, time, _ = first.T
    its_block, its_barrier, its_thread, _, its_clock = second.T
    behind = clocks[its_clock, thread % _WARP] >= time
    within = (thread == its_thread) | ((thread // _WARP == its_thread // _WARP) & behind)
    return (block == its_block) & ((barrier < its_barrier) | within)
