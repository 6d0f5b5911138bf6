"""Replay: the last epoch of MovieLens 1M, taken back by one block of 16 quantities and by 16."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from fastinfluence import dispatch
from fastinfluence.attribution import replay
from fastinfluence.kernels.structures import LANES, Adjoint

from . import Case, Size
from .shared import last_epoch, model, plain_torch

__all__ = ["cases"]


def cases(size: Size) -> Iterator[Case]:
    """Make them."""
    trajectory = model(size).trajectory_
    program, n, k = trajectory.program, len(trajectory.data), trajectory.recipe.n_factors
    here, there = _Epoch(trajectory, "cpu"), _Epoch(trajectory, "cuda")
    rng = np.random.default_rng(0)
    n_rows = program.data.n_users, program.data.n_items
    start = Adjoint(*(rng.standard_normal((m, k + 1, LANES)).astype(program.dtype) for m in n_rows))
    block = here.block(start)
    here.take_back([block])
    expected = block.influence, *block.adjoint
    plain = plain_torch()
    theirs = plain and plain.ReplayWalk(
        start, program.examples, here.stage.log, program.hyper(here.stage.epoch)
    )
    for n_blocks in (1, 16 if size == "full" else 2):
        yield _case(here, there, start, expected, n_blocks, theirs if n_blocks == 1 else None, n, k)


class _Epoch:
    """The last epoch, logged, on a device."""

    def __init__(self, trajectory: Any, device: str) -> None:
        self.memory, self.program = dispatch.memory(device), trajectory.program.on(device)
        self.stage = last_epoch(trajectory, device)
        self.order = replay._order(self.program)

    def block(self, start: Adjoint) -> Any:
        """A block of quantities whose adjoints start as given."""
        n, dtype = len(self.program.data), start.users.dtype
        allowed = tuple(np.full(len(rows), 2**LANES - 1, np.uint16) for rows in start)
        return replay._Block(
            self.memory.put(Adjoint(*(rows.copy() for rows in start))),
            None,
            self.memory.put(allowed),
            self.memory.zeros((n, LANES), dtype),
        )

    def take_back(self, blocks: list[Any]) -> None:
        """Take blocks back, on one thread of the CPU."""
        replay._step_back(self.program, self.stage, self.order, blocks, 1)


def _case(
    here: _Epoch, there: _Epoch, start: Adjoint, expected: Any, n_blocks: int, theirs: Any, n: int,
    k: int,
) -> Case:  # fmt: skip
    memory, begun = there.memory, there.block(start)
    blocks = [there.block(start) for _ in range(n_blocks)]
    again = here.block(start)

    def restore() -> None:
        for block in blocks:
            for rows, first in zip(block.adjoint, begun.adjoint, strict=True):
                memory.store(rows, first)
            memory.store(block.influence, begun.influence)

    return Case(
        f"Replay of an epoch, {n_blocks * LANES} quantities, k={k}",
        before=restore,
        run=lambda: there.take_back(blocks),
        found=lambda: memory.fetch((blocks[-1].influence, *blocks[-1].adjoint)),
        expected=expected,
        tolerance=1e-4,
        # A step's two rows of adjoints and its influence, there and back; the log's two rows and
        # a line of scalars.
        n_bytes=n * n_blocks * 4 * (4 * (k + 1) + 2) * LANES + n * n_blocks * 4 * (2 * k + 8),
        # Every number of both rows: two products to sum, three multiply-adds to move it.
        n_flops=20 * n * n_blocks * (k + 1) * LANES,
        bound="bytes",
        cpu=lambda: here.take_back([again]),
        cpu_share=1 / n_blocks,
        torch=theirs,
    )
