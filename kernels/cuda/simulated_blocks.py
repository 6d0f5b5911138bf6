"""The threads of a simulated block, of which one runs at a time.

Each runs until it waits for others, then hands over to another, which chance chooses, from a seed.
No thread polls, and none competes for the interpreter; threads that wait in vain are told so at
once. Each runs as far ahead of the others as it can: what it finds in memory says little of what
it would find on a GPU, so `simulated_memory` looks at every access for what orders it.
"""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Callable, Hashable
from itertools import product
from types import SimpleNamespace
from typing import Any

import numpy as np

from .simulated_memory import Memory, Race

__all__ = ["Block", "run", "running"]


_SEED = "FASTINFLUENCE_CUDASIM_SEED"
"""Environment variable: another number, another order of blocks and threads."""


class _Abandoned(BaseException):
    """Another thread of the block failed."""


class _Thread:
    """A thread of Python that is a thread of one block after the other."""

    def __init__(self) -> None:
        self.turn = threading.Lock()
        self.turn.acquire()
        self.block: Any = None
        self.number, self.threadIdx = 0, _dim3((0, 0, 0))
        self.date = self.time = self.clock = 0  # see `simulated_memory`
        threading.Thread(target=self._work, daemon=True).start()

    def _work(self) -> None:
        np.seterr(all="ignore")  # each thread would warn for itself
        while True:
            self.turn.acquire()
            self.block.work(self)


_now = SimpleNamespace(thread=None)
_idle: list[_Thread] = []


def running() -> Any:
    """The simulated thread that runs: its ``block``, ``number`` in it, ``threadIdx``."""
    return _now.thread


def run(function: Callable[..., Any], grid: Any, block: Any, shared: int, arguments: Any) -> None:
    """Run a kernel, block after block, in an order of chance. One kernel at a time.

    Parameters
    ----------
    function : callable
    grid, block : tuple of int
        Up to three numbers each.
    shared : int
        Bytes of dynamic shared memory.
    arguments : tuple

    Raises
    ------
    RuntimeError
        Threads wait for others that do not come.
    Race
        Two threads access the same memory in no order.
    Exception
        What a thread raises, with a note that names it.
    """
    grid, block = (tuple(map(int, (*shape, 1, 1)[:3])) for shape in (grid, block))
    memory = Memory(function, arguments)
    error = _run(function, grid, block, shared, memory)
    race = memory.race()
    if race:
        memory = memory.again(race)
        _run(function, grid, block, shared, memory)  # as before, to the last access
        said = ", and ".join(memory.traces[access] for access in race)
        raise Race(f"{function.__qualname__}: {said}: nothing orders these") from error
    if error is not None:
        raise error


def _run(function: Any, grid: Any, shape: Any, shared: int, memory: Memory) -> BaseException | None:
    seed = int(os.environ.get(_SEED, "0"))
    chance = random.Random(seed)
    places = list(product(*map(range, grid)))
    chance.shuffle(places)
    # If this is interrupted, threads that are in the midst of something are used no more.
    threads = _idle.copy()
    _idle.clear()
    while len(threads) < np.prod(shape):
        threads.append(_Thread())
    for place in places:
        error = Block(function, memory, place, grid, shape, shared, chance).run(threads)
        if error is not None:
            error.add_note(f"in the order of {_SEED}={seed}")
            break
    _idle.extend(threads)
    return error


class Block:
    """A block, and where its threads are."""

    def __init__(
        self, function: Any, memory: Memory, place: Any, grid: Any, shape: Any, shared: int,
        chance: random.Random,
    ) -> None:  # fmt: skip
        self._function, self.memory, self._chance = function, memory, chance
        self.blockIdx, self.gridDim, self.blockDim = map(_dim3, (place, grid, shape))
        self.size = int(np.prod(shape))
        self.arrays: dict[Any, Any] = {}  # in shared memory
        self.dynamic, self.address = np.full(shared, 0xFF, np.uint8), memory.room(shared)
        self._alive = self.size
        self._ready: list[_Thread] = []
        self._meetings: dict[Hashable, dict[_Thread, Any]] = {}
        self._error: BaseException | None = None
        self._done = threading.Lock()

    def run(self, threads: list[_Thread]) -> BaseException | None:
        """Run the block to its end; the error of the thread that failed, if one did."""
        width, height = self.blockDim.x, self.blockDim.y
        for number, thread in enumerate(threads[: self.size]):
            thread.block, thread.number = self, number
            place = number % width, number // width % height, number // (width * height)
            thread.threadIdx = _dim3(place)
            self._ready.append(thread)
        self.memory.begin(self._ready)
        with self._done:  # taken here, and by the last thread given back
            self._hand_over()
            self._done.acquire()
        return self._error

    def work(self, thread: _Thread) -> None:
        """Be a thread of this block, from its first turn to its end."""
        try:
            if self._error is None:
                self._function(*self.memory.arguments)
        except _Abandoned:
            pass
        except BaseException as error:
            error.add_note(f"in thread {vars(thread.threadIdx)} of block {vars(self.blockIdx)}")
            self._error = error
        self._alive -= 1
        if self._error is None and len(self._meetings.get("block", ())) == self._alive:
            meeting = self._meetings.pop("block", {})
            self.memory.barrier(meeting)
            self._ready.extend(meeting)
        if self._meetings and not self._ready and self._error is None:
            self._error = self._in_vain()
        if self._error is not None:
            for meeting in self._meetings.values():
                self._ready.extend(meeting)
            self._meetings.clear()
        self._hand_over()

    def meet(
        self, who: Hashable, value: Any, needed: int | None = None, orders: bool = False
    ) -> dict[_Thread, Any]:
        """Wait for the others who call this with the same `who`, and get the values of all.

        Parameters
        ----------
        who : hashable
        value : object
        needed : int, optional
            How many they are: all threads that have not ended, if not given.
        orders : bool
            Whether it orders what these lanes of a warp do in memory; all threads always do.
        """
        thread = _now.thread
        meeting = self._meetings.setdefault(who, {})
        meeting[thread] = value
        if len(meeting) == (self._alive if needed is None else needed):
            del self._meetings[who]
            if needed is None:
                self.memory.barrier(meeting)
            elif orders:
                self.memory.barrier_of_warp(meeting)
            self.memory.turn(thread)
            self._ready.extend(other for other in meeting if other is not thread)
            return meeting
        if not self._ready:
            raise self._in_vain()
        self._hand_over()
        thread.turn.acquire()
        if self._error is not None:
            raise _Abandoned
        return meeting

    def _hand_over(self) -> None:
        if self._ready:
            ready = self._ready
            last = int(self._chance.random() * len(ready))
            ready[last], ready[-1] = ready[-1], ready[last]
            _now.thread = ready.pop()
            self.memory.turn(_now.thread)
            _now.thread.turn.release()
        else:
            self._done.release()

    def _in_vain(self) -> RuntimeError:
        waiting = ", ".join(f"{len(here)} ({who})" for who, here in self._meetings.items())
        return RuntimeError(
            f"threads wait for others that do not come: {waiting} of the {self._alive} that "
            "have not ended"
        )


def _dim3(numbers: Any) -> SimpleNamespace:
    x, y, z = numbers
    return SimpleNamespace(x=x, y=y, z=z)
