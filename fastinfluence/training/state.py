"""All that training on pairs changes: the parameters, and what the optimizer keeps of them."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fastinfluence import dispatch
from fastinfluence.kernels.structures import Tables
from fastinfluence.memory import aligned_zeros

__all__ = ["State", "rearranged"]


class State(NamedTuple):
    """All that training changes: the parameters and, for Adagrad, its sums of squares."""

    tables: Tables
    squares: Tables | None

    def copy(self) -> State:
        """Copy every array; the state is in CPU memory."""
        copied: State = dispatch.memory().copied(self)
        return copied

    def same_bits(self, other: State) -> bool:
        """Whether both hold the same numbers to the last bit."""
        return all(
            (mine is None) == (its is None)
            and (mine is None or its is None or _same_arrays(mine, its))
            for mine, its in zip(self, other, strict=True)
        )

    @property
    def nbytes(self) -> int:
        """Size in memory."""
        return sum(array.nbytes for array in self.arrays().values())

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Return the arrays by name, for a file: ``tables/user_factors``, ..."""
        return {
            f"{part}/{name}": array
            for part, tables in self._asdict().items()
            if tables is not None
            for name, array in tables._asdict().items()
        }

    @classmethod
    def from_arrays(cls, arrays: dict[str, npt.NDArray[Any]]) -> State:
        """Rebuild from what `arrays` returned."""

        def tables(part: str) -> Tables:
            return Tables(*(arrays[f"{part}/{name}"] for name in Tables._fields))

        return cls(
            tables("tables"), tables("squares") if "squares/user_factors" in arrays else None
        )


def _same_arrays(mine: Tables, its: Tables) -> bool:
    return all(
        a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
        for a, b in zip(mine, its, strict=True)
    )


def rearranged(state: State, rows: tuple[npt.NDArray[Any], ...]) -> State:
    """Copies of all tables: rows[0] of those of the users, rows[1] of those of the items."""

    def tables(old: Tables | None) -> Tables | None:
        if old is None:
            return None
        new = Tables(*(aligned_zeros(table.shape, table.dtype) for table in old))
        for number, (table, copied) in enumerate(zip(old, new, strict=True)):
            np.take(table, rows[number % 2], axis=0, out=copied, mode="clip")
        return new

    moved = tables(state.tables)
    assert moved is not None
    return State(moved, tables(state.squares))
