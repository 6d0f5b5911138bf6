"""A GPU of numpy: threads in lockstep where they are at the same place, barriers, shuffles, memory.

Threads that are at the same segment of a program run it side by side, as lanes of numpy's arrays.
Which segment is next is drawn: an order of the threads that only a barrier would have forbidden
is found by and by. What memory cannot serve is an error: addresses outside every array, vectors
that are not aligned, threads that write different things to one place at once.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .ptx import Program, Segment

__all__ = ["Memory", "run"]

_AT_ONCE = 4096
"""Threads (of whole blocks) that are run side by side."""

_GUARD = 256
"""Bytes between arrays, and what they are aligned to."""

_ROOM = 2**31
"""Bytes of memory on the device."""

_FIRST = 2**33
"""Address of its first byte."""


class Fault(Exception):
    """A thread does what no memory can serve."""


class Memory:
    """Arrays on the device, all in one piece, and the shared memory of the blocks that run."""

    def __init__(self) -> None:
        self._room = np.empty(_ROOM, "u1")  # pages that are never touched cost nothing
        self._held: dict[int, int] = {}  # bytes of the arrays, by where they begin
        self._sorted: Any = None  # their beginnings and ends
        self.shared = np.empty(0, "u1")
        self.bytes_of_block = 0
        self.block: Any = None  # of each thread, among those that run

    def allocate(self, size: int) -> tuple[int, Any]:
        """Address of new memory, and its bytes; poisoned."""
        start = 0
        for other, its in sorted(self._held.items()):
            if start + size + _GUARD <= other:
                break
            start = -(-(other + its + _GUARD) // _GUARD) * _GUARD
        if start + size > _ROOM:
            raise MemoryError(f"no room for {size} bytes")
        self._held[start], self._sorted = size, None
        room = self._room[start : start + size]
        room[:] = 0xFF
        return _FIRST + start, room

    def free(self, address: int) -> None:
        """Forget memory: whoever reads it is wrong from now on."""
        del self._held[address - _FIRST]
        self._sorted = None

    def load(self, T: Any, space: str, address: Any, kind: str, count: int, where: int) -> Any:
        """What is at the addresses: an array, or `count` of them."""
        held, place = self._find(T, space, address, kind, count, where)
        if count == 1:
            return held[place]
        return [held[place + n] for n in range(count)]

    def store(self, T: Any, space: str, address: Any, kind: str, values: Any, where: int) -> None:
        """Write values to the addresses."""
        held, place = self._find(T, space, address, kind, len(values), where)
        for n, value in enumerate(values):
            held[place + n] = value
            if not np.array_equal(_bits(held[place + n]), _bits(value)):
                raise Fault(f"line {where}: threads write different numbers to one place")

    def _find(self, T: Any, space: str, address: Any, kind: str, count: int, where: int) -> Any:
        """The memory as numbers of a kind, and the places of the addresses among them."""
        size = np.dtype(kind).itemsize
        address = np.broadcast_to(address, self.block[T].shape)
        if np.any(address % (size * count)):
            raise Fault(f"line {where}: {count} {kind} at {address} are not aligned")
        if space == "shared":
            first, last = int(address.min()), int(address.max()) + size * count
            if first < 0 or last > self.bytes_of_block:
                raise Fault(
                    f"line {where}: shared memory has {self.bytes_of_block} bytes, not {last}"
                )
            return self.shared.view(kind), (address + self.block[T] * self.bytes_of_block) // size
        if self._sorted is None:
            starts = np.array(sorted(self._held), "i8")
            self._sorted = starts, starts + [self._held[start] for start in starts]
        starts, ends = self._sorted
        address = address - _FIRST
        array = np.searchsorted(starts, address, "right") - 1
        wrong = (array < 0) | (address + size * count > ends[array])
        if wrong.any():
            raise Fault(f"line {where}: no array at {np.unique(address[wrong])}: {count} {kind}")
        return self._room.view(kind), address // size

    def _atomic(self, combine: Any, T: Any, space: str, address: Any, kind: str, value: Any, where: int) -> Any:
        held, place = self._find(T, space, address, kind, 1, where)
        value = np.broadcast_to(value, place.shape)
        before = np.empty(place.shape, kind)
        for n in np.random.default_rng(0).permutation(place.size):
            before[n] = held[place[n]]
            held[place[n]] = combine(before[n : n + 1], value[n : n + 1])[0]
        return before

    def atomic_add(self, *given: Any) -> Any:
        return self._atomic(lambda a, b: a + b, *given)

    def atomic_min(self, *given: Any) -> Any:
        return self._atomic(np.minimum, *given)

    def atomic_max(self, *given: Any) -> Any:
        return self._atomic(np.maximum, *given)

    def atomic_exch(self, *given: Any) -> Any:
        return self._atomic(lambda a, b: b, *given)


def _bits(value: Any) -> Any:
    value = np.ascontiguousarray(value)
    return value.view(f"u{value.dtype.itemsize}")


def run(
    program: Program, memory: Memory, grid: Any, block: Any, dynamic: int, arguments: list[Any], seed: int = 0
) -> None:
    """Run a kernel over a grid.

    Parameters
    ----------
    program : Program
    memory : Memory
    grid, block : tuple of int
        Three numbers each.
    dynamic : int
        Bytes of dynamic shared memory.
    arguments : list of numpy scalars
        As the parameters of the kernel are declared.
    seed : int, default 0
        Of the order of blocks and threads.
    """
    draw = np.random.default_rng(seed)
    order = draw.permutation(int(np.prod(grid)))
    together = max(1, _AT_ONCE // int(np.prod(block)))
    with np.errstate(all="ignore"):
        for start in range(0, len(order), together):
            blocks = order[start : start + together]
            _Grid(program, memory, blocks, grid, block, dynamic, arguments, draw).run()


class _Grid:
    """Blocks that run side by side."""

    def __init__(
        self, program: Program, memory: Memory, blocks: Any, grid: Any, block: Any, dynamic: int,
        arguments: Any, draw: Any,
    ) -> None:  # fmt: skip
        self.program, self.memory, self.arguments, self.draw = program, memory, arguments, draw
        self.size = int(np.prod(block))
        n = self.size * len(blocks)
        self.registers = {name: np.zeros(n, kind) for name, kind in program.registers.items()}
        self.block = np.repeat(np.arange(len(blocks)), self.size)
        number = np.tile(np.arange(self.size), len(blocks))
        self.lane, self.warp = number % 32, self.block * -(-self.size // 32) + number // 32
        special = {"dynamic_size": np.full(n, dynamic)}
        for name, shape, index in (
            ("tid", block, number),
            ("ctaid", grid, np.asarray(blocks)[self.block]),
        ):
            for axis, extent in zip("xyz", shape, strict=True):
                special[f"{name}_{axis}"], special[f"n{name}_{axis}"] = index % extent, np.full(n, extent)
                index = index // extent
        for name, values in special.items():
            self.registers[name] = values.astype("i4")
        memory.bytes_of_block = -(-(program.static + dynamic) // 16) * 16
        memory.shared = np.full(memory.bytes_of_block * len(blocks), 0xFF, "u1")
        memory.block = self.block
        self.at = np.zeros(n, np.int64)  # segment; -1: ended

    def run(self) -> None:
        """Run all threads to their end."""
        n, segments = len(self.at), self.program.segments
        while True:
            here = np.unique(self.at)
            if here[0] < 0:
                here = here[1:]
            if not len(here):
                return
            if len(here) == 1 and not segments[here[0]].meeting and not (self.at < 0).any():
                self._step(int(here[0]), slice(None), n)
                continue
            for place in self.draw.permutation(here):
                T = np.flatnonzero(self.at == place)
                if segments[place].meeting:
                    T = self._met(segments[place], T)
                    if not len(T):
                        continue
                    self._exchange(segments[place], T)
                    self.at[T] = segments[place].follows[0]
                else:
                    self._step(int(place), T, len(T))
                break
            else:
                raise RuntimeError(self._in_vain(here))

    def _step(self, place: int, T: Any, n: int) -> None:
        segment = self.program.segments[place]
        taken = segment.run(self.registers, T, n, self.arguments, self.memory)
        if taken is None:
            self.at[T] = segment.follows[0]
        else:
            self.at[T] = np.where(taken, *segment.follows)

    def _met(self, segment: Segment, T: Any) -> Any:
        """Of the threads that wait here, those that need wait no more."""
        operation, operands = segment.meeting  # type: ignore[misc]
        if operation.startswith("bar.sync"):
            alive = np.bincount(self.block[self.at >= 0], minlength=self.block[-1] + 1)
            there = np.bincount(self.block[T], minlength=self.block[-1] + 1)
            return T[(alive == there)[self.block[T]]]
        masks = self._operand(operands[-1], T).astype("i8") & 0xFFFFFFFF
        exists = np.minimum(self.size - (self.warp % -(-self.size // 32)) * 32, 32)[T]
        masks &= (np.int64(1) << exists) - 1
        if not np.all(masks >> self.lane[T] & 1):
            raise RuntimeError(f"{operation}: a lane is not in its own mask")
        there = np.zeros(self.warp[-1] + 1, "i8")
        np.bitwise_or.at(there, self.warp[T], np.int64(1) << self.lane[T])
        ready = masks & there[self.warp[T]] == masks
        # Lanes of a mask that is not theirs would wait for one another in vain.
        for other in np.flatnonzero(ready):
            lanes = (self.warp[T] == self.warp[T[other]]) & (masks[other] >> self.lane[T] & 1 == 1)
            if not np.all(masks[lanes] == masks[other]):
                raise RuntimeError(f"{operation}: the lanes of a mask give different masks")
            break
        return T[ready]

    def _exchange(self, segment: Segment, T: Any) -> None:
        operation, operands = segment.meeting  # type: ignore[misc]
        if operation.startswith("bar"):
            return
        if operation.startswith("vote.sync"):
            return self._vote(operation, operands, T)
        how = operation.split(".")[2]
        target, _, valid = operands[0].partition("|")
        value = self.registers[operands[1].lstrip("%")]
        b, c = (self._operand(o, T).astype("i8") for o in operands[2:4])
        clamp, keep = c & 31, c >> 8 & 31
        lane = self.lane[T].astype("i8")
        low, high = lane & keep, (lane & keep) | (clamp & ~keep)
        source = {
            "idx": low | (b & ~keep & 31), "bfly": lane ^ (b & 31), "up": lane - (b & 31), "down": lane + (b & 31)
        }[how]  # fmt: skip
        inside = source >= (clamp if how == "up" else 0) if how == "up" else source <= high
        source = np.where(inside, source, lane)
        everywhere = np.zeros((self.warp[-1] + 1, 32), value.dtype)
        here = np.zeros(everywhere.shape, bool)
        everywhere[self.warp[T], lane] = value[T]
        here[self.warp[T], lane] = True
        if not np.all(here[self.warp[T], source]):
            raise RuntimeError(f"{operation}: a lane reads one that takes no part")
        self.registers[target.lstrip("%")][T] = everywhere[self.warp[T], source]
        if valid:
            self.registers[valid.lstrip("%")][T] = inside

    def _vote(self, operation: str, operands: Any, T: Any) -> None:
        how = operation.split(".")[2]
        value = self.registers[operands[1].lstrip("%")][T]
        masks = self._operand(operands[-1], T).astype("i8")
        target = self.registers[operands[0].lstrip("%")]
        group = np.unique(np.stack([self.warp[T], masks]), axis=1, return_inverse=True)[1].ravel()
        if how == "ballot":
            found = np.zeros(group.max() + 1, "i8")
            np.bitwise_or.at(found, group, value.astype("i8") << self.lane[T])
            target[T] = found[group].astype("i4")
        else:
            yes = np.bincount(group, value, minlength=group.max() + 1)
            needed = 1 if how == "any" else np.bincount(group)
            target[T] = (yes >= needed)[group]

    def _operand(self, operand: str, T: Any) -> Any:
        if operand.startswith("%"):
            return self.registers[operand.lstrip("%")][T]
        return np.full(len(T), int(operand, 0))

    def _in_vain(self, here: Any) -> str:
        places = [
            f"{int(np.sum(self.at == place))} at {(self.program.segments[place].meeting or ('?',))[0]}"
            for place in here
        ]
        return f"{self.program.name}: threads wait for others that do not come: {', '.join(places)}"
