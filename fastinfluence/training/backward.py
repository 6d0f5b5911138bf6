"""Going through a training run from its last step to its first.

Steps cannot be undone bit for bit, so every epoch is run again from its checkpoint with a log
of what each step saw; the walks that need the future of a step (Curvature Rollback, Replay) read
that log from its end. Where the log of an epoch would take too much memory the epoch is run
once more to find the states in its middle, and then logged piece by piece.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fastinfluence import dispatch
from fastinfluence.errors import DeviceMemoryError
from fastinfluence.progress import progress

if TYPE_CHECKING:
    from fastinfluence.training.trajectory import Trajectory

__all__ = ["Stage", "backward"]

Visits = npt.NDArray[np.bool_]


class Stage(NamedTuple):
    """A run of consecutive steps, logged. The log is overwritten by the next stage."""

    epoch: int
    start: int  # first visit
    stop: int  # behind the last visit
    log: Any  # Log or GraphLog, in the memory of the device
    slots: npt.NDArray[np.int32]  # (n,) the log's, in CPU memory


def backward(
    trajectory: Trajectory,
    *,
    memory_budget: int,
    only: Visits | None = None,
    n_threads: int = 1,
    device: str = "cpu",
    description: str = "backward",
    show_progress: bool | None = None,
) -> Iterator[Stage]:
    """Yield the steps of a run, the last first, as logs of at most `memory_budget` bytes.

    Parameters
    ----------
    trajectory : Trajectory
    memory_budget : int
        Bytes of the log; a stratum of the schedule, a visit of a triple is the least that is
        logged at once.
    only : (n,) bool, optional
        Visits to log; all that have a weight by default.
    n_threads : int
    device : str, default "cpu"
        Backend that runs the steps, and where their log is.
    description, show_progress
        Of the progress bar, which counts epochs.

    Raises
    ------
    ReplayMismatch
        Running an epoch again did not lead to the next checkpoint.
    DeviceMemoryError
        The device has not memory enough for the log of the smallest part.
    """
    program, memory = trajectory.program.on(device), dispatch.memory(device)
    wanted = program.examples.weights != 0
    if only is not None:
        wanted &= only
    parts, log = _parts_and_log(program, wanted, memory_budget)
    bounds = [program.visits(part) for part in parts]
    slots = np.empty(len(wanted), np.int32)
    known = sorted(epoch for epoch in trajectory.checkpoints if epoch <= trajectory.n_epochs)
    total = trajectory.n_epochs
    with progress(total, description=description, show=show_progress, unit="epoch") as bar:
        for first, behind in reversed(list(itertools.pairwise(known))):
            states = _states_between(program, trajectory, first, behind, n_threads)
            for epoch in range(behind - 1, first - 1, -1):
                state = states.pop()
                starts = [state]
                for part in parts[:-1]:
                    state = memory.copied(state)
                    program.run_epoch(state, epoch, part=part, n_threads=n_threads)
                    starts.append(state)
                for number in range(len(parts) - 1, -1, -1):
                    state, (start, stop) = starts.pop(), bounds[number]
                    fill_slots(slots, wanted, start, stop)
                    memory.store(log.slots, slots)
                    program.run_epoch(
                        state, epoch, part=parts[number], log=log, n_threads=n_threads
                    )
                    if number == len(parts) - 1 and epoch + 1 == behind:
                        trajectory.check_reached(program.leave(state), behind)
                    yield Stage(epoch, start, stop, log, slots)
                bar.update()


def _parts_and_log(program: Any, wanted: Visits, budget: int) -> tuple[list[tuple[int, int]], Any]:
    """Parts of an epoch, and room for the log of any: smaller where a device is short of memory."""
    parts = program.parts(wanted, max(1, budget // program.log_bytes))
    most = max(int(wanted[slice(*program.visits(part))].sum()) for part in parts)
    try:
        return parts, program.new_log(most)
    except DeviceMemoryError as error:
        smaller = most // 2 * program.log_bytes
        if most < 2 or len(program.parts(wanted, max(1, most // 2))) == len(parts):
            raise DeviceMemoryError(
                f"the log of {most:,} steps takes {most * program.log_bytes / 2**20:,.1f} MiB, and "
                f"it cannot be cut further: use device='cpu' ({error})"
            ) from error
    return _parts_and_log(program, wanted, smaller)


def fill_slots(slots: npt.NDArray[np.int32], wanted: Visits, start: int, stop: int) -> None:
    """Number the wanted visits from `start` to `stop`; all others are not logged."""
    slots[:] = -1
    places = np.flatnonzero(wanted[start:stop]) + start
    slots[places] = np.arange(len(places))


def _states_between(
    program: Any, trajectory: Trajectory, first: int, behind: int, n_threads: int
) -> list[Any]:
    """Working states at the start of epochs ``first`` to ``behind - 1``."""
    copied = dispatch.memory(program.device).copied
    states = [program.enter(trajectory.checkpoints[first])]
    for epoch in range(first, behind - 1):
        state = copied(states[-1])
        program.run_epoch(state, epoch, n_threads=n_threads)
        states.append(state)
    return states
