"""What kernels do on the emulated GPU, counted: instructions, bytes, bank conflicts, barriers.

Counts of PTX, before ptxas: no registers, no latencies, no caches, no time. A sector counts each
time that a warp's instruction asks for it, wherever a GPU would find it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = ["SECTOR", "Counter", "Counts", "InOrder"]

SECTOR = 32
"""Bytes that global memory moves at least."""

_BANKS = 32  # of shared memory, each 4 bytes wide
_WORD = 4
_WARP = 32


@dataclass
class Counts:
    """What a kernel did."""

    launches: int = 0
    instructions: int = 0  # of warps; what returns and what jumps in any case is not counted
    lanes: int = 0  # that took part in them
    asked: int = 0  # bytes of global memory, of all lanes
    sectors: int = 0  # of global memory, those of a warp's instruction once
    turns: int = 0  # that shared memory takes at least, of 128 bytes
    conflicts: int = 0  # turns it takes beyond these
    barriers: int = 0  # of blocks

    @property
    def active(self) -> float:
        """Share of a warp's lanes that take part in an instruction, on average."""
        return self.lanes / (_WARP * self.instructions)

    @property
    def moved(self) -> int:
        """Bytes of the sectors."""
        return self.sectors * SECTOR

    @property
    def ways(self) -> float:
        """Turns of shared memory for one without conflicts, on average."""
        return 1 + self.conflicts / max(1, self.turns)


class Counter:
    """Counts by kernel, while it is a memory's `watch`."""

    def __init__(self) -> None:
        self.kernels: dict[str, Counts] = {}

    def launched(self, name: str) -> None:
        """A kernel begins."""
        self._counts = self.kernels.setdefault(name, Counts())
        self._counts.launches += 1

    def began(self, threads: Any) -> None:
        """Blocks begin, side by side."""
        self._threads = threads

    def ran(self, segment: Any, T: Any) -> None:
        """Threads ran a segment; `T` in order."""
        if segment.meeting is None:
            n = len(segment.lines) + (segment.condition != "None")
        else:
            n = 1
            if segment.meeting.operation.startswith("bar.sync"):
                self._counts.barriers += _distinct(self._threads.block[T])
        self._counts.instructions += n * _distinct(self._threads.warp[T])
        self._counts.lanes += n * len(T)

    def touched(self, T: Any, space: str, address: Any, size: int) -> None:
        """Threads loaded, stored or changed `size` bytes each, at addresses aligned to them."""
        warp = self._threads.warp[T]
        if space == "global":
            self._counts.asked += size * len(warp)
            self._counts.sectors += len(np.unique(warp << 48 | address // SECTOR))
            return
        # 32 lanes have 4 bytes each in a turn, 16 lanes 8, 8 lanes 16.
        lanes = _WARP * _WORD // max(size, _WORD)
        turn = warp * _WARP + self._threads.lane[T] // lanes
        words = address // _WORD + np.arange(max(1, size // _WORD))[:, None]
        words = np.unique(turn << 32 | words)  # lanes that want the same word get it at once
        banks, n = np.unique(words >> 32 << 5 | words % _BANKS, return_counts=True)
        starts = np.flatnonzero(np.diff(banks >> 5, prepend=-1))
        self._counts.turns += len(starts)
        self._counts.conflicts += int(np.maximum.reduceat(n, starts).sum()) - len(starts)


class InOrder:
    """In the place of a Generator: what comes first in PTX goes first.

    So lanes of diverging ways are together again where the ways meet, as on a GPU.
    """

    def permutation(self, places: Any) -> Any:
        """The places, or the numbers below one, as they are."""
        return np.arange(places) if np.ndim(places) == 0 else places


def _distinct(numbers: Any) -> int:
    """How many different numbers there are, in order."""
    return 1 + int(np.count_nonzero(np.diff(numbers)))
