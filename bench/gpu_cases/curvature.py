"""Curvature Rollback: all rows of MovieLens 1M back over the last epoch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from fastinfluence import dispatch
from fastinfluence.attribution import curvature_rollback as rollback

from . import Case, Size
from .shared import last_epoch, model, plain_torch

__all__ = ["cases"]


def cases(size: Size) -> Iterator[Case]:
    """Make them: users, then items."""
    trajectory = model(size).trajectory_
    stages = {device: last_epoch(trajectory, device) for device in ("cpu", "cuda")}
    for of_users in (True, False):
        yield _case(trajectory, stages, of_users)


class _Walk:
    """The rows of a side on a device, the most touched first."""

    def __init__(self, trajectory: Any, stage: Any, of_users: bool, device: str) -> None:
        self.program, self.stage, self.device = trajectory.program, stage, device
        self.memory = dispatch.memory(device)
        examples, end = self.program.examples, self.program.enter(trajectory.end).tables
        own = examples.users if of_users else examples.items
        counts = np.bincount(own, minlength=len(end.user_biases if of_users else end.item_biases))
        rows = np.argsort(-counts, kind="stable")
        self.side = rollback._side(of_users, rows, end, device)
        self.credited = rollback._no_changes(self.program, own, np.ones(len(own), bool), device)
        self.touches = rollback._touches(
            self.side, examples.users, stage, self.credited.places, device
        )
        self._begun = self.memory.copied(tuple(self._changed))

    @property
    def _changed(self) -> list[Any]:
        return [*self.side.state, self.credited.rows, self.credited.biases]

    def restore(self) -> None:
        """Put back what a run starts from."""
        for array, begun in zip(self._changed, self._begun, strict=True):
            self.memory.store(array, begun)

    def run(self) -> None:
        """Take all rows back, on one thread of the CPU."""
        rollback._walk(self.side, self.touches, self.program, self.stage, self.credited, 1,
                       self.device)  # fmt: skip

    def found(self) -> tuple[Any]:
        """What is credited to the examples, row by row, bias last."""
        credits = self.memory.fetch((self.credited.rows, self.credited.biases))
        return (np.column_stack(credits),)


def _case(trajectory: Any, stages: dict[str, Any], of_users: bool) -> Case:
    here, there = (_Walk(trajectory, stage, of_users, device) for device, stage in stages.items())
    n, k, n_rows = len(trajectory.data), trajectory.recipe.n_factors, len(here.side.state.values)
    here.run()
    expected = here.found()
    here.restore()
    plain = plain_torch()
    return Case(
        f"Curvature Rollback of {n_rows:,} {'users' if of_users else 'items'} over an epoch, k={k}",
        before=there.restore,
        run=there.run,
        found=there.found,
        expected=expected,
        tolerance=1e-4,
        # A touch: the other row, its credit there and back, a line of scalars. Matrices once.
        n_bytes=n * 4 * (3 * k + 16) + 2 * n_rows * 4 * (k + 1) * (k + 1),
        n_flops=4 * n * k * k,
        bound="flops",
        cpu=here.run,
        torch=plain
        and _credits_of(
            plain.CurvatureWalk(
                of_users, here.touches, here.stage.log, here.program.hyper(here.stage.epoch), n
            )
        ),
    )


def _credits_of(walk: Any) -> Any:
    return lambda: (walk(),)
