"""Running a program to its end: epochs, checkpoints, early stopping, progress."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from fastinfluence import dispatch
from fastinfluence.errors import DivergenceError
from fastinfluence.progress import progress
from fastinfluence.training.trajectory import Trajectory

if TYPE_CHECKING:
    from fastinfluence.data import Interactions

__all__ = ["train"]


def train(
    program: Any,
    *,
    start: Any = None,
    n_epochs: int | None = None,
    validation: Interactions | None = None,
    patience: int | None = None,
    record: bool = False,
    memory_budget: int,
    n_threads: int = 1,
    device: str = "cpu",
    show_progress: bool | None = None,
) -> Trajectory:
    """Run all epochs and keep what is needed to run them again.

    Parameters
    ----------
    program : Program or GraphProgram
    start : State or GraphState, optional
        Where to start, by code; fresh parameters by default.
    n_epochs : int, optional
        Those of the program's recipe by default; fewer where the run that is gone again was cut.
    validation : Interactions, optional
        Over the same ids; its loss is measured after every epoch.
    patience : int, optional
        Stop after so many epochs without a better validation loss; the run then ends at the
        best epoch, as if it had been asked for.
    record : bool
        Add up every example's row changes on the way (Gradient Rollback).
    memory_budget : int
        Bytes the checkpoints may take; the first and last are kept in any case.
    n_threads : int
    device : str, default "cpu"
        Backend that runs the steps; it never changes a bit.
    show_progress : bool, optional

    Raises
    ------
    DivergenceError
        Parameters or a loss are not finite; it holds what was trained until then.
    """
    whole, program = program, program.on(device)
    start = start or program.start()
    n_epochs = n_epochs or program.recipe.n_epochs
    state = program.enter(start)
    stride = _checkpoint_stride(state, n_epochs, memory_budget)
    rows = program.new_record() if record else None
    checkpoints = {0: start}
    losses: list[float] = []
    validation_losses: list[float] = []
    best, best_epoch = np.inf, 0
    with progress(n_epochs, description="training", show=show_progress, unit="epoch") as bar:
        for epoch in range(n_epochs):
            try:
                losses.append(program.run_epoch(state, epoch, record=rows, n_threads=n_threads))
                _check_finite(losses[-1], state, epoch + 1, program)
            except DivergenceError as error:
                last = max(checkpoints)
                error.trajectory = Trajectory(
                    whole, checkpoints, losses[:last], validation_losses[:last]
                )
                raise
            done = epoch + 1
            shown = {"loss": f"{losses[-1]:.4f}"}
            if validation is not None:
                validation_losses.append(program.validation_loss(state, validation))
                shown["validation"] = f"{validation_losses[-1]:.4f}"
            bar.set_postfix(shown)
            bar.update()
            better = patience is not None and validation_losses[-1] < best
            if better:
                if best_epoch % stride:
                    del checkpoints[best_epoch]
                best, best_epoch = validation_losses[-1], done
            if better or done % stride == 0 or done == n_epochs:
                checkpoints[done] = program.leave(state)
            if patience is not None and done - best_epoch >= patience:
                break
    if patience is not None and best_epoch < len(losses):
        # Cut the run at its best epoch; what was recorded later is rebuilt when asked for.
        losses, rows = losses[:best_epoch], None
        checkpoints = {e: c for e, c in checkpoints.items() if e <= best_epoch}
    rows = dispatch.memory(device).fetch(rows)
    return Trajectory(whole, checkpoints, losses, validation_losses, rows)


def _checkpoint_stride(state: Any, n_epochs: int, memory_budget: int) -> int:
    """Epochs between checkpoints: 1, 2, 4, ... until they fit."""
    stride = 1
    while stride < n_epochs and (n_epochs // stride + 1) * state.nbytes > memory_budget:
        stride *= 2
    return stride


def _check_finite(loss: float, state: Any, epoch: int, program: Any) -> None:
    if np.isfinite(loss) and dispatch.memory(program.device).all_finite(state.tables):
        return
    raise DivergenceError(
        f"training diverged in epoch {epoch} (loss {loss}): lower learning_rate "
        f"(now {program.recipe.learning_rate:g}) or raise regularization "
        f"(now {program.recipe.regularization:g})"
    )
