"""How the end of a training run responds to the weights of some of its examples: forward mode."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fastinfluence import dispatch
from fastinfluence.errors import ParameterError
from fastinfluence.kernels.structures import LANES, Adjoint
from fastinfluence.memory import aligned_zeros
from fastinfluence.training.backward import Stage
from fastinfluence.training.forward import forward

if TYPE_CHECKING:
    from fastinfluence.training import Trajectory

__all__ = ["Responses"]

Array = npt.NDArray[Any]
Numbers = npt.NDArray[np.int64]


class _Panel(NamedTuple):
    """Up to 16 examples that go through training side by side, one a lane."""

    visits: Numbers  # (m,) int64, ascending
    lanes: Numbers  # (m,) int64: which lane is that of each visit
    rows: Array  # (n_rows, d, LANES): w_j dtheta / dw_j, users before items


class Responses:
    """The derivatives of all parameters by the weights of some examples, times these weights.

    Made by `of`. Memory O(n_rows * (n_factors + 1)) an example.
    """

    def __init__(self, panels: list[_Panel]) -> None:
        self._panels = panels

    @classmethod
    def of(
        cls,
        trajectory: Trajectory,
        examples: Numbers,
        *,
        memory_budget: int,
        n_threads: int = 1,
        description: str = "forward",
        show_progress: bool | None = None,
    ) -> Responses:
        """Follow examples (m,) through one more run of training by SGD.

        Parameters
        ----------
        trajectory : Trajectory
            Of users and items.
        examples : (m,) int64
            Training indices, each once.
        memory_budget : int
            Bytes of the responses and of the log of the steps.
        n_threads : int
        description, show_progress
            Of the progress bar.

        Raises
        ------
        ParameterError
            The responses do not fit the budget.
        ReplayMismatch
            Running the Trajectory again did not give the model's parameters.
        """
        _check_size(trajectory, len(examples), n_threads, memory_budget)
        visits = trajectory.visits()[examples]
        panels = [
            _panel(trajectory, visits[start : start + LANES])
            for start in range(0, len(visits), LANES)
        ]
        stages = forward(
            trajectory,
            memory_budget=memory_budget // 4,
            n_threads=n_threads,
            description=description,
            show_progress=show_progress,
        )
        for stage in stages if panels else ():

            def part(start: int, stop: int, stage: Stage = stage) -> None:
                for panel in panels[start:stop]:
                    _step_forward(trajectory, stage, panel)

            numbers = [(number, number + 1) for number in range(len(panels))]
            dispatch.run_parts(part, numbers, n_threads)
        return cls(panels)

    def along(self, slots: npt.NDArray[np.int32], gradients: Array) -> Array:
        """Derivatives (LANES, m) of 16 quantities by the weights of the m examples.

        Parameters
        ----------
        slots : (n_rows,) int32
            Where each row stands in `gradients`, -1: nowhere.
        gradients : (_, d, LANES)
            Derivatives of the quantities by the rows.
        """
        held = np.flatnonzero(slots >= 0)
        used = gradients[slots[held]]
        # einsum has one order of summation, whatever the processor and its threads
        found = [
            np.einsum("rdq,rdj->qj", used, panel.rows[held])[:, : len(panel.visits)]
            for panel in self._panels
        ]
        return np.concatenate([np.zeros((LANES, 0), gradients.dtype), *found], axis=1)


def _check_size(trajectory: Trajectory, m: int, n_threads: int, budget: int) -> None:
    data, program = trajectory.data, trajectory.program
    lanes = LANES * program.dtype.itemsize
    rows = lanes * (data.n_users + data.n_items) * (program.recipe.n_factors + 1)
    beside = min(len(data) * program.log_bytes, budget // 4) + n_threads * lanes * len(data)
    size = -(-m // LANES) * rows + beside
    if size > budget:
        raise ParameterError(
            f"following {m:,} examples takes {size / 2**20:,.0f} MiB, more than the memory budget "
            f"of {budget / 2**20:,.0f} MiB: follow fewer (examples=) or give a larger "
            "memory_budget; Replay needs none for examples"
        )


def _panel(trajectory: Trajectory, visits: Numbers) -> _Panel:
    data, program = trajectory.data, trajectory.program
    shape = data.n_users + data.n_items, program.recipe.n_factors + 1, LANES
    lanes = np.argsort(visits)
    return _Panel(visits[lanes], lanes, aligned_zeros(shape, program.dtype))


def _step_forward(trajectory: Trajectory, stage: Stage, panel: _Panel) -> None:
    """Take a panel over the steps of a stage.

    Hessians are symmetric, so what takes an adjoint back over a step takes a response over it:
    `replay_steps`, its visits in the other order. An example's own gradient comes in behind its
    own step.
    """
    program, n, n_users = trajectory.program, len(trajectory.data), trajectory.data.n_users
    kernels = dispatch.kernels("replay"), dispatch.kernels("hydra")
    hyper, loss = program.hyper(stage.epoch), program.recipe.loss_code
    rows = Adjoint(panel.rows[:n_users], panel.rows[n_users:])
    allowed = [np.full(len(table), 2**LANES - 1, np.uint16) for table in rows]
    forwards = np.arange(n - 1, -1, -1, dtype=np.int32)
    products = np.empty((n, LANES), program.dtype)  # what Replay is after: not asked for here

    def move(start: int, stop: int) -> None:
        kernels[0].replay_steps(
            rows, None, program.examples, stage.log, hyper, loss, *allowed, forwards,
            np.array([n - stop, n - start]), 0, 1, products,
        )  # fmt: skip

    at = stage.start
    for visit, lane in zip(panel.visits.tolist(), panel.lanes.tolist(), strict=True):
        if stage.start <= visit < stage.stop and stage.log.slots[visit] >= 0:
            move(at, visit + 1)
            kernels[1].add_gradient(*rows, program.examples, stage.log, hyper, loss, visit, lane)
            at = visit + 1
    move(at, stage.stop)
