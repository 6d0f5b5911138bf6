"""An epoch of training on MovieLens 1M: alone, with row changes recorded, with a log."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from fastinfluence import dispatch
from fastinfluence.kernels.structures import Record

from . import Case, Size
from .shared import model, plain_torch

__all__ = ["cases"]


def cases(size: Size) -> Iterator[Case]:
    """Make them."""
    trajectory = model(size).trajectory_
    n, k = len(trajectory.data), trajectory.recipe.n_factors
    rows = 4 * (k + 1) * 4  # bytes of two rows, there and back
    rating = 16
    yield _case(trajectory, "alone", n * (rows + rating))
    yield _case(trajectory, "recorded", n * (2 * rows + rating))
    # Two rows, a line of scalars, the item and the place in the log.
    yield _case(trajectory, "logged", n * (rows + rating + 4 * (2 * k + 8 + 2)))


class _Epoch:
    """The last epoch of a run, from its start."""

    def __init__(self, trajectory: Any, kind: str, device: str) -> None:
        self.memory, self.program = dispatch.memory(device), trajectory.program.on(device)
        n, k, dtype = len(trajectory.data), trajectory.recipe.n_factors, self.program.dtype
        self.state = self.program.enter(trajectory.end)
        zeros = self.memory.zeros
        self.record = self.log = None
        if kind == "recorded":
            self.record = Record(*(zeros((n, width), dtype) for width in (k, k, 2)))
        elif kind == "logged":
            self.log = self.program.new_log(n)
            self.memory.store(self.log.slots, np.arange(n, dtype=np.int32))
        self.start = self.memory.copied((self.state.tables, self.record))

    def restore(self) -> None:
        """Put the parameters and the record back."""
        for ours, begun in zip((self.state.tables, self.record), self.start, strict=True):
            for array, first in zip(ours or (), begun or (), strict=True):
                self.memory.store(array, first)

    def run(self) -> None:
        """Run it, on one thread of the CPU."""
        self.program.run_epoch(self.state, 0, record=self.record, log=self.log)

    def found(self) -> tuple[Any, ...]:
        """Rows of users and of items, biases last; changes of both, or what was logged."""
        users, items, *biases = self.memory.fetch(self.state.tables)
        found = [np.column_stack(half) for half in zip((users, items), biases, strict=True)]
        if self.record:
            *changes, biases = self.memory.fetch(self.record)
            found += [np.column_stack(h) for h in zip(changes, biases.T, strict=True)]
        if self.log:
            log = self.memory.fetch(self.log)
            found += [log.user_rows, log.item_rows, log.numbers[:, :3]]
        return tuple(found)


def _case(trajectory: Any, kind: str, n_bytes: float) -> Case:
    here, there = (_Epoch(trajectory, kind, device) for device in ("cpu", "cuda"))
    program, n, k = trajectory.program, len(trajectory.data), trajectory.recipe.n_factors
    start = here.memory.copied(here.state.tables)
    here.run()
    expected = tuple(array.copy() for array in here.found())
    here.restore()
    plain = plain_torch() if kind != "logged" else None
    recorded = kind == "recorded"
    return Case(
        f"SGD, an epoch, {kind}, k={k}",
        before=there.restore,
        run=there.run,
        found=there.found,
        expected=expected,
        tolerance=0.0,
        n_bytes=n_bytes,
        n_flops=n * (k + 1) * (14 if recorded else 10),  # 2 to score, 4 for each row, changes
        bound="bytes",
        cpu=here.run,
        torch=plain and plain.Training(start, program.examples, program.hyper(0), recorded),
        note="bits are the CPU's; rows are counted as if each step fetched them from memory"
        + (", and a log in torch would be the record once more" if kind == "logged" else ""),
    )
