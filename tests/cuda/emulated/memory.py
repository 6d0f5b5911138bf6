"""Memory of an emulated GPU, where every access is looked at."""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = ["Fault", "Memory"]

_ALIGNED = 256
"""What arrays are aligned to, and bytes between them at least."""

_ROOM = 2**31
"""Bytes of memory on the device."""

_FIRST = 2**33
"""Address of its first byte."""


class Fault(Exception):
    """A thread asks for what memory cannot do."""


class Memory:
    """Arrays on the device, all in one piece, and the shared memory of the blocks that run.

    What is new holds ones in all bits: NaN, or -1. Who counts (`counters.Counter`) is its `watch`.
    """

    watch: Any = None

    def __init__(self) -> None:
        self._room = np.empty(_ROOM, "uint8")  # pages that are never touched cost nothing
        self._sizes: dict[int, int] = {}  # bytes of the arrays, by where they begin
        self._bounds: Any = None  # beginnings and ends, in order
        self._shared, self._of_block, self._block = np.empty(0, "uint8"), 0, np.empty(0, "int64")

    def allocate(self, size: int) -> tuple[int, Any]:
        """Address of new memory, and its bytes."""
        start = 0
        for other, its in sorted(self._sizes.items()):
            if start + size + _ALIGNED <= other:
                break
            start = -(-(other + its + _ALIGNED) // _ALIGNED) * _ALIGNED
        if start + size > _ROOM:
            raise MemoryError(f"the emulated device has no room for {size:,} bytes")
        self._sizes[start], self._bounds = size, None
        room = self._room[start : start + size]
        room[:] = 0xFF
        return _FIRST + start, room

    def free(self, address: int) -> None:
        """Forget memory: whoever reads it is wrong from now on."""
        del self._sizes[address - _FIRST]
        self._bounds = None

    def begin(self, block: Any, size: int) -> None:
        """Give each of the blocks that run new shared memory.

        Parameters
        ----------
        block : array of int64
            Number of the block of each thread.
        size : int
            Bytes of shared memory of a block.
        """
        self._of_block = -(-size // 16) * 16
        self._block = block
        self._shared = np.full(self._of_block * (block[-1] + 1), 0xFF, "uint8")

    def load(self, T: Any, space: str, address: Any, kind: str, count: int, line: int) -> Any:
        """What the threads `T` find at their addresses: `count` arrays."""
        held, place = self._find(T, space, address, kind, count, line)
        return [held[place + n] for n in range(count)]

    def store(self, T: Any, space: str, address: Any, kind: str, values: Any, line: int) -> None:
        """Write values of the threads `T` to their addresses."""
        held, place = self._find(T, space, address, kind, len(values), line)
        for n, value in enumerate(values):
            held[place + n] = value
            if not np.array_equal(
                _bits(held[place + n]), _bits(np.broadcast_to(value, place.shape))
            ):
                raise Fault(f"line {line}: threads write different numbers to one place at once")

    def atomic(
        self, T: Any, space: str, address: Any, kind: str, how: str, value: Any, line: int
    ) -> Any:
        """Change numbers, one thread after the other; what was there."""
        held, place = self._find(T, space, address, kind, 1, line)
        value = np.broadcast_to(value, place.shape)
        before = np.empty(place.shape, kind)
        combine = {"add": np.add, "min": np.minimum, "max": np.maximum}[how]
        for n in reversed(range(place.size)):
            before[n] = held[place[n]]
            held[place[n]] = combine(before[n], value[n])
        return before

    def _find(self, T: Any, space: str, address: Any, kind: str, count: int, line: int) -> Any:
        """The memory as numbers of a kind, and the places of the addresses among them."""
        size = np.dtype(kind).itemsize
        bytes_ = size * count
        address = np.broadcast_to(address, self._block[T].shape)
        if np.any(address % bytes_):
            raise Fault(f"line {line}: {bytes_} bytes at an address that is not aligned to them")
        if self.watch:
            self.watch.touched(T, space, address, bytes_)
        if space == "shared":
            first, last = int(address.min()), int(address.max()) + bytes_
            if first < 0 or last > self._of_block:
                raise Fault(
                    f"line {line}: bytes {first} to {last} of {self._of_block} of shared memory"
                )
            return self._shared.view(kind), (address + self._block[T] * self._of_block) // size
        if self._bounds is None:
            sizes = {-(2**63): 0, **self._sizes}  # the first of them is nothing
            starts = np.array(sorted(sizes))
            self._bounds = starts, starts + np.array([sizes[start] for start in starts])
        starts, ends = self._bounds
        address = address - _FIRST
        array = np.searchsorted(starts, address, "right") - 1
        wrong = address + bytes_ > ends[array]
        if wrong.any():
            raise Fault(f"line {line}: {wrong.sum()} threads reach outside of all arrays")
        return self._room.view(kind), address // size


def _bits(value: Any) -> Any:
    return np.ascontiguousarray(value).view(f"uint{8 * value.dtype.itemsize}")
