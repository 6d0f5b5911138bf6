"""Threads of a GPU as elements of numpy's arrays: those at the same place go on side by side.

Which place is next is drawn: what is right by the order alone is wrong sooner or later.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .counters import InOrder
from .memory import Memory
from .ptx import ENDED, Program, Segment

__all__ = ["run"]

_AT_ONCE = 4096
"""Threads of the blocks that run side by side."""

_WARP = 32

_Shape = tuple[int, int, int]


def run(
    program: Program,
    memory: Memory,
    grid: _Shape,
    block: _Shape,
    dynamic: int,
    parameters: list[Any],
    draw: np.random.Generator | InOrder,
) -> None:
    """Run a kernel.

    Parameters
    ----------
    program : Program
    memory : Memory
    grid, block : tuple of int
    dynamic : int
        Bytes of dynamic shared memory.
    parameters : list of numpy scalar
        Of the types the program declares.
    draw : Generator or InOrder
        Draws the order of blocks and threads.

    Raises
    ------
    Fault
        A thread reaches outside of all arrays, a vector is not aligned, threads write different
        numbers to one place in the same instruction.
    RuntimeError
        Threads wait for others that do not come; a lane takes no part in what it is asked for.
    """
    order = draw.permutation(int(np.prod(grid)))
    together = max(1, _AT_ONCE // int(np.prod(block)))
    if memory.watch:
        memory.watch.launched(program.name)
    with np.errstate(all="ignore"):
        for start in range(0, len(order), together):
            blocks = order[start : start + together]
            threads = _Threads(program, grid, block, dynamic, blocks)
            memory.begin(threads.block, program.static + dynamic)
            if memory.watch:
                memory.watch.began(threads)
            _Run(program, memory, threads, parameters, draw).finish()


class _Threads:
    """Where threads are, and what their registers hold."""

    def __init__(
        self, program: Program, grid: _Shape, block: _Shape, dynamic: int, blocks: Any
    ) -> None:
        size = int(np.prod(block))
        n, warps = size * len(blocks), -(-size // _WARP)
        self.block, number = np.divmod(np.arange(n), size)
        self.warp, self.lane = self.block * warps + number // _WARP, number % _WARP
        self.lanes = np.minimum(size - number // _WARP * _WARP, _WARP)  # of the thread's warp
        self.at = np.zeros(n, "int64")  # segment
        self.registers = {name: np.zeros(n, kind) for name, kind in program.registers.items()}
        self.registers["dynamic_size"][:] = dynamic
        for name, shape, index in (("tid", block, number), ("ctaid", grid, blocks[self.block])):
            for axis, extent in zip("xyz", shape, strict=True):
                self.registers[f"{name}_{axis}"][:] = index % extent
                self.registers[f"n{name}_{axis}"][:] = extent
                index = index // extent


class _Run:
    """Blocks side by side, from their first instruction to their last."""

    def __init__(
        self, program: Program, memory: Memory, threads: _Threads, parameters: Any, draw: Any
    ) -> None:
        self._program, self._memory, self._threads = program, memory, threads
        self._parameters, self._draw = parameters, draw

    def finish(self) -> None:
        at = self._threads.at
        while True:
            places = np.unique(at)
            places = places[places != ENDED]
            if not places.size:
                return
            for place in self._draw.permutation(places):
                T = np.flatnonzero(at == place)
                if self._go_on(self._program.segments[place], T):
                    break
            else:
                raise RuntimeError(self._in_vain(places))

    def _go_on(self, segment: Segment, T: Any) -> bool:
        """Run a segment for threads that are there; False if all of them have to wait."""
        if segment.meeting is None:
            all_ = len(T) == len(self._threads.at)
            taken = segment.run(
                self._threads.registers, slice(None) if all_ else T, len(T), self._parameters,
                self._memory,
            )  # fmt: skip
            ways = segment.follows
            self._threads.at[T] = ways[0] if taken is None else np.where(taken, *ways)
            if self._memory.watch:
                self._memory.watch.ran(segment, T)
            return True
        T = T[self._released(segment, T)]
        if T.size:
            self._meet(segment, T)
            self._threads.at[T] = segment.follows[0]
            if self._memory.watch:
                self._memory.watch.ran(segment, T)
        return bool(T.size)

    def _released(self, segment: Segment, T: Any) -> Any:
        """Which of the threads that wait have nobody left to wait for."""
        threads, (_, operation, operands) = self._threads, segment.meeting  # type: ignore[misc]
        if operation.startswith("bar.sync"):
            alive = np.bincount(threads.block[threads.at != ENDED], minlength=threads.block[-1] + 1)
            return (np.bincount(threads.block[T], minlength=len(alive)) == alive)[threads.block[T]]
        masks = self._mask(operands[-1], T)
        if not np.all(masks >> threads.lane[T] & 1):
            raise RuntimeError(f"{operation}: a lane is not among those it waits for")
        here = np.zeros(threads.warp[-1] + 1, "int64")
        np.bitwise_or.at(here, threads.warp[T], 1 << threads.lane[T])
        return masks & here[threads.warp[T]] == masks

    def _meet(self, segment: Segment, T: Any) -> None:
        """Let the lanes of warps exchange what they are there for."""
        _, operation, operands = segment.meeting  # type: ignore[misc]
        if operation.startswith("bar"):
            return
        masks = self._mask(operands[-1], T)
        values = np.zeros((self._threads.warp[-1] + 1, _WARP), "int64")
        values[self._threads.warp[T], self._threads.lane[T]] = self._value(operands[1], T)
        given = np.zeros(values.shape, "int64")  # masks of the lanes that are here
        given[self._threads.warp[T], self._threads.lane[T]] = masks
        others, given = values[self._threads.warp[T]], given[self._threads.warp[T]]
        asked = masks[:, None] >> np.arange(_WARP) & 1 == 1
        if np.any(asked & (given != masks[:, None])):
            raise RuntimeError(f"{operation}: lanes wait for each other with different masks")
        how = operation.split(".")[2]
        if operation.startswith("vote"):
            held = {
                "any": ((others != 0) & asked).any(1),
                "all": ((others != 0) | ~asked).all(1),
                "ballot": ((others != 0) & asked) @ (1 << np.arange(_WARP)),
            }[how]
            self._write(operands[0], T, held)
            return
        source, inside = self._source(how, operands, T)
        if not np.all(np.take_along_axis(asked, source[:, None], 1)):
            raise RuntimeError(f"{operation}: a lane reads one that takes no part")
        value, _, whether = operands[0].partition("|")
        self._write(value, T, np.take_along_axis(others, source[:, None], 1)[:, 0])
        self._write(whether, T, inside)

    def _source(self, how: str, operands: Any, T: Any) -> tuple[Any, Any]:
        """Lanes that a shuffle reads, and whether they are within its bounds."""
        lane = self._threads.lane[T]
        b, c = (self._value(operand, T).astype("int64") for operand in operands[2:4])
        keep, clamp = c >> 8 & 31, c & 31
        last = lane & keep | clamp & ~keep
        source = {
            "idx": lane & keep | b & 31 & ~keep,
            "bfly": lane ^ b & 31,
            "up": lane - (b & 31),
            "down": lane + (b & 31),
        }[how]
        inside = source >= last if how == "up" else source <= last
        return np.where(inside, source, lane), inside

    def _mask(self, operand: str, T: Any) -> Any:
        """Lanes that the threads wait for, of those there are."""
        return self._value(operand, T).astype("int64") & (1 << self._threads.lanes[T]) - 1

    def _value(self, operand: str, T: Any) -> Any:
        if operand.startswith("%"):
            return self._threads.registers[operand[1:]][T]
        return np.full(len(T), int(operand))

    def _write(self, operand: str, T: Any, value: Any) -> None:
        if operand:
            self._threads.registers[operand[1:]][T] = value

    def _in_vain(self, places: Any) -> str:
        waiting = [
            f"{np.sum(self._threads.at == place)} ({self._program.segments[place].meeting})"
            for place in places
        ]
        return f"threads wait for others that do not come: {', '.join(waiting)}"
