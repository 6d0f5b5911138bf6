"""Going through a training run from its first step to its last."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from fastinfluence.progress import progress
from fastinfluence.training.backward import Stage, fill_slots

if TYPE_CHECKING:
    from fastinfluence.training.trajectory import Trajectory

__all__ = ["forward"]


def forward(
    trajectory: Trajectory,
    *,
    memory_budget: int,
    n_threads: int = 1,
    description: str = "forward",
    show_progress: bool | None = None,
) -> Iterator[Stage]:
    """Yield the steps of a run, the first first, as logs of at most `memory_budget` bytes.

    Parameters
    ----------
    trajectory : Trajectory
    memory_budget : int
        Bytes of the log; a stratum of the schedule, a visit of a triple is the least that is
        logged at once.
    n_threads : int
    description, show_progress
        Of the progress bar, which counts epochs.

    Raises
    ------
    ReplayMismatch
        The run did not end in the parameters of the last checkpoint: raised behind the last stage.
    """
    program = trajectory.program
    wanted = program.examples.weights != 0
    parts = program.parts(wanted, max(1, memory_budget // program.log_bytes))
    bounds = [program.visits(part) for part in parts]
    log = program.new_log(max(int(wanted[start:stop].sum()) for start, stop in bounds))
    state = program.enter(trajectory.checkpoints[0])
    epochs = range(trajectory.n_epochs)
    for epoch in progress(epochs, description=description, show=show_progress, unit="epoch"):
        for part, (start, stop) in zip(parts, bounds, strict=True):
            fill_slots(log.slots, wanted, start, stop)
            program.run_epoch(state, epoch, part=part, log=log, n_threads=n_threads)
            yield Stage(epoch, start, stop, log, log.slots)
    trajectory.check_reached(program.leave(state), trajectory.n_epochs)
