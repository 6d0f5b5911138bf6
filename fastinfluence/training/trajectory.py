"""What training leaves behind: enough to run it again, bit for bit, with any weights."""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np
import numpy.typing as npt

from fastinfluence import dispatch
from fastinfluence.errors import DataError, ReplayMismatch
from fastinfluence.progress import progress
from fastinfluence.training.program import check_weights

__all__ = ["Trajectory", "training_indices"]


class Trajectory:
    """The path of one training run.

    Attributes
    ----------
    program : Program or GraphProgram
        Data, weights, recipe and order: everything that determines the run. On the CPU,
        whatever device it was run on.
    checkpoints : dict of int to State or GraphState
        Parameters after so many epochs; always holds 0 and `n_epochs`.
    losses : list of float
        Mean training loss of every epoch.
    validation_losses : list of float
        Mean loss on the validation set after every epoch; empty without one.
    record : Record, TripleRecord or None
        Row changes of every example, if training recorded them.
    """

    def __init__(
        self,
        program: Any,
        checkpoints: dict[int, Any],
        losses: list[float],
        validation_losses: list[float],
        record: Any = None,
    ) -> None:
        self.program = program
        self.checkpoints = checkpoints
        self.losses = losses
        self.validation_losses = validation_losses
        self.record = record

    @property
    def data(self) -> Any:
        """Training data."""
        return self.program.data

    @property
    def recipe(self) -> Any:
        """Hyper-parameters."""
        return self.program.recipe

    @property
    def n_epochs(self) -> int:
        """Epochs that lead to the parameters (fewer than asked for after an early stop)."""
        return len(self.losses)

    @property
    def end(self) -> Any:
        """Where training ended."""
        return self.checkpoints[self.n_epochs]

    def fingerprint(self) -> int:
        """Checksum of the parameters: tells the models apart that files were made from."""
        checksum = 0
        for table in self.end.tables:
            checksum = zlib.crc32(table.tobytes(), checksum)
        return checksum

    def replay(
        self,
        *,
        n_threads: int = 1,
        device: str = "cpu",
        show_progress: bool | None = None,
        **options: Any,
    ) -> Any:
        """Train again from the first checkpoint and record every example's row changes.

        Parameters
        ----------
        n_threads, show_progress
        device : str, default "cpu"
            Backend that runs the steps; the record is in CPU memory.
        **options
            Of the program's `run_epoch`: ``credit`` for triples.

        Returns
        -------
        Record or TripleRecord
            The same bits that recording during `fit` gives.

        Raises
        ------
        ReplayMismatch
            The run did not end in the parameters of the last checkpoint.
        """
        program = self.program.on(device)
        record = program.new_record()
        end = self._run(program, n_threads, show_progress, record=record, **options)
        self.check_reached(end, self.n_epochs)
        return dispatch.memory(device).fetch(record)

    def verify(self, *, n_threads: int = 1) -> None:
        """Train again and compare: raises ReplayMismatch unless every bit is the same."""
        self.check_reached(self._run(self.program, n_threads), self.n_epochs)

    def _run(
        self,
        program: Any,
        n_threads: int,
        show_progress: bool | None = False,
        *,
        n_epochs: int | None = None,
        **options: Any,
    ) -> Any:
        """Run a program from the first checkpoint to the last epoch of this trajectory."""
        state = program.enter(self.checkpoints[0])
        epochs = range(self.n_epochs if n_epochs is None else n_epochs)
        for epoch in progress(epochs, description="replay", show=show_progress):
            program.run_epoch(state, epoch, n_threads=n_threads, **options)
        return program.leave(state)

    def check_reached(self, state: Any, epoch: int) -> None:
        """Raise ReplayMismatch unless `state` is the checkpoint after so many epochs."""
        reached = self.checkpoints[epoch]
        if not state.same_bits(reached):
            differences = [
                float(np.abs(mine - its).max())
                for mine, its in zip(state.tables, reached.tables, strict=True)
            ]
            raise ReplayMismatch(
                "replaying the training run did not give the same parameters (largest "
                f"difference {max(differences):.3g}): the data, the parameters or the "
                "checkpoints have been changed since, or the run was made on a processor whose "
                "arithmetic differs; train again to explain this model"
            )

    def retrain(
        self,
        *,
        without: object = (),
        sample_weight: object = None,
        n_epochs: int | None = None,
        n_threads: int = 1,
    ) -> Any:
        """Train again from the same start with other weights: the truth about an explanation.

        Order, negatives and every other random choice of the remaining examples stay the same.

        Parameters
        ----------
        without : sequence of int
            Training indices to leave out.
        sample_weight : (n,) float, optional
            Weights to use instead of those of the run.
        n_epochs : int, optional
            As many as the run has by default. More are possible where the learning rate of an
            epoch does not depend on how many there are.
        n_threads : int

        Returns
        -------
        Tables or GraphTables
            Parameters after `n_epochs` epochs.

        Raises
        ------
        DataError
            An index outside the data (-1 marks an empty place of an explanation), weights
            that do not fit, or nothing left to train on.
        """
        program = self.reweighted(without, sample_weight)
        return self._run(program, n_threads, n_epochs=n_epochs).tables

    def predrawn(self, *, memory_budget: int, n_threads: int = 1) -> Trajectory:
        """Return the same run with its negatives drawn beforehand, to be run again many times."""
        program = self.program.predrawn(self.n_epochs, memory_budget, n_threads)
        return Trajectory(
            program, self.checkpoints, self.losses, self.validation_losses, self.record
        )

    def reweighted(
        self, without: object = (), sample_weight: object = None, *, name: str = "without"
    ) -> Any:
        """Return the program of this run with other weights, as `retrain` takes them.

        Raises
        ------
        DataError
            Also for `retrain`: an index outside the data (errors call the indices `name`), weights
            that do not fit, or nothing left to train on.
        """
        n, weights = len(self.data), self.program.weights
        if sample_weight is not None:
            weights = check_weights(sample_weight, n)
        weights = weights.copy()
        weights[training_indices(without, n, name)] = 0
        return self.program.reweighted(check_weights(weights, n))

    def visits(self) -> npt.NDArray[np.int64]:
        """(n,) int64: the visit of every training example, the inverse of the order."""
        order: npt.NDArray[np.int64] = self.program.order
        visits = np.empty_like(order)
        visits[order] = np.arange(len(order))
        return visits


def training_indices(indices: object, n: int, name: str = "without") -> npt.NDArray[np.int64]:
    """Training indices as an int64 array, whatever integers they came as.

    Parameters
    ----------
    indices : sequence of int
    n : int
        Number of training examples.
    name : str
        What an error calls the indices.

    Raises
    ------
    DataError
        No integers, or one outside the data (-1 marks an empty place of an explanation).
    """
    found = np.asarray(indices)
    if found.size == 0:
        return np.zeros(0, np.int64)
    if found.dtype.kind not in "iu":
        raise DataError(f"{name} takes training indices, not {found.dtype}")
    bad = (found < 0) | (found >= n)
    if bad.any():
        raise DataError(
            f"{name} holds {found[bad][0]}, which is no training index: they go from 0 to {n - 1:,}"
        )
    return found.astype(np.int64)
