"""Retraining: what a quantity really is after training without some of the examples."""

from __future__ import annotations

import os
import time
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from fastinfluence import dispatch
from fastinfluence.errors import DataError, DivergenceError, FastInfluenceError, RunDirectoryError
from fastinfluence.evaluation.neighbours import bind
from fastinfluence.memory import memory_budget
from fastinfluence.models import Model
from fastinfluence.progress import progress
from fastinfluence.storage import ShardWriter, open_shards
from fastinfluence.storage.manifest import MANIFEST
from fastinfluence.training.trajectory import training_indices

__all__ = ["Readout", "leave_out", "retrain_values"]

Floats = npt.NDArray[np.float64]
Sets: TypeAlias = Sequence[npt.ArrayLike] | npt.NDArray[np.integer[Any]]

_MOST_IN_SHARD = 64  # retrainings
_SHARD_SECONDS = 30.0  # of work that may be lost


class Readout(Protocol):
    """What is read from the parameters: a `Quantity`, or anything else with values.

    Its `codes`, where it has such, tell its queries from others.
    """

    def __len__(self) -> int: ...

    def values(self, tables: Any, mean: float) -> Floats:
        """(n_queries,) float64; called from several threads at once."""


def leave_out(
    model: Model,
    queries: Any,
    sets: Sets,
    *,
    n_threads: int | None = None,
    path: str | os.PathLike[str] | None = None,
    show_progress: bool | None = None,
) -> Floats:
    """Change (n_queries, n_sets) of every query's value that each set of examples made.

    ``phi(trained on all) - phi(trained without the set)``, by training again from the same
    start, in the same order and with the same negatives of the remaining examples; positive
    where the set raised phi.

    Parameters
    ----------
    model : MatrixFactorization, DistMult or ComplEx
        Fitted.
    queries : as for `explain`, or Objective
        What is explained; see `fastinfluence.objectives`. A `Function` is called from several
        threads at once.
    sets : sequence of n_sets sequences of int
        Training indices. A set may hold all examples of a user, whose row then stays where it
        started, with bias 0.
    n_threads : int, optional
        Retrainings at a time; it never changes a result.
    path : path-like, optional
        Folder that keeps the results: a call that was killed goes on behind the retrainings it
        finished when it is repeated, and a finished one is read.
    show_progress : bool, optional

    Raises
    ------
    DataError
        No training index, or a set that leaves nothing to train on.
    ReplayMismatch
        Training on all examples does not give the model's parameters again, so nothing could
        be compared with them.
    RunDirectoryError
        `path` holds retrainings of another model, other queries or other sets.
    """
    quantity = bind(model, queries)
    without = retrain_values(
        model, quantity, sets, n_threads=n_threads, path=path, show_progress=show_progress
    )
    now = quantity.values(model.trajectory_.end.tables, model.global_mean_)
    return now[:, None] - without


def retrain_values(
    model: Model,
    quantity: Readout,
    removals: Sets,
    *,
    n_threads: int | None = None,
    path: str | os.PathLike[str] | None = None,
    show_progress: bool | None = None,
) -> Floats:
    """Values (n_queries, n_sets) of a quantity after training without each set of examples.

    `leave_out` says more, and takes their difference from the values of the model. Memory is
    that of `n_threads` copies of the parameters and of the result.

    Parameters
    ----------
    model : MatrixFactorization, DistMult or ComplEx
    quantity : Readout
    removals : sequence of n_sets sequences of int
    n_threads, path, show_progress
    """
    trajectory, mean = model.trajectory_, model.global_mean_
    n_threads = dispatch.thread_count(n_threads)
    meta = {
        "model": trajectory.fingerprint(),
        "queries": _query_checksum(quantity, quantity.values(trajectory.end.tables, mean)),
        "removals": _check_removals(removals, trajectory.program.weights),
        "n_queries": len(quantity),
        "n_removals": len(removals),
    }
    if path is not None and Path(path, MANIFEST).is_file():
        return _read(path, meta)

    def run(start: int, take: Callable[[Floats], object]) -> None:
        """Hand over the values without each set, from number `start` on, in order."""
        if start == len(removals):
            return
        # The negatives, which all retrainings have in common, are drawn once.
        again = trajectory.predrawn(memory_budget=memory_budget(), n_threads=n_threads)
        again.verify(n_threads=n_threads)
        # A training a thread; where there are too few to go round, some threads for each.
        at_a_time = min(n_threads, len(removals) - start)
        each = n_threads // at_a_time

        def values_without(number: int) -> Floats:
            try:
                tables = again.retrain(without=removals[number], n_threads=each)
                values = quantity.values(tables, mean)
                diverged = not np.isfinite(values).all()
            except DivergenceError:
                diverged = True
            if diverged:
                raise FastInfluenceError(
                    f"training without removals[{number}] diverged: a model this close to "
                    "diverging cannot be evaluated; lower its learning_rate"
                )
            return values

        numbers = range(start, len(removals))
        with progress(
            len(removals), description="retrain", show=show_progress, unit="retraining"
        ) as bar:
            bar.update(start)
            for values in dispatch.in_order(values_without, numbers, at_a_time):
                take(values)
                bar.update()

    if path is None:
        columns: list[Floats] = []
        run(0, columns.append)
        return np.reshape(columns, (len(removals), len(quantity))).T
    with ShardWriter(path, meta=meta, resume=True) as writer:
        results = _Results(writer)
        try:
            run(writer.rows_done, results.add)
        finally:
            results.flush()  # what was finished before an error or an interrupt too
    return _read(path, meta)


class _Results:
    """Results on their way to the disk, a shard now and then."""

    def __init__(self, writer: ShardWriter) -> None:
        self._writer = writer
        self._waiting: list[Floats] = []
        self._since = time.monotonic()

    def add(self, values: Floats) -> None:
        self._waiting.append(values)
        late = time.monotonic() - self._since > _SHARD_SECONDS
        if late or len(self._waiting) == _MOST_IN_SHARD:
            self.flush()

    def flush(self) -> None:
        if self._waiting:
            self._writer.append({"value": np.array(self._waiting)})
        self._waiting, self._since = [], time.monotonic()


def _read(path: str | os.PathLike[str], meta: dict[str, Any]) -> Floats:
    reader = open_shards(path, mmap=False)
    if reader.meta != meta:
        wrong = [name for name in meta if reader.meta.get(name) != meta[name]]
        raise RunDirectoryError(
            f"{reader.path} holds retrainings of another kind (it differs in: "
            f"{', '.join(wrong)}): give another path, or remove that folder"
        )
    reader.verify()
    shards = [shard["value"] for shard in reader]
    return np.concatenate(shards).T if shards else np.empty((meta["n_queries"], 0))


def _check_removals(removals: Sets, weights: npt.NDArray[np.float64]) -> int:
    """Raise DataError at what cannot be left out, before hours of work; a checksum."""
    n_weighted = np.count_nonzero(weights)
    checksum = 0
    for number, removed in enumerate(removals):
        name = f"removals[{number}]"
        if np.ndim(removed) == 0:
            raise DataError(
                f"{name} is {removed!r}: every set is a sequence of training indices, as in "
                "[[3, 4], [5]]"
            )
        indices = training_indices(removed, len(weights), name)
        if (
            len(indices) >= n_weighted
            and np.count_nonzero(weights[np.unique(indices)]) == n_weighted
        ):
            raise DataError(f"{name} holds every example: nothing is left to train on")
        length = len(indices).to_bytes(8, "little")
        checksum = zlib.crc32(indices.tobytes(), zlib.crc32(length, checksum))
    return checksum


def _query_checksum(quantity: Readout, values: Floats) -> int:
    """Tell queries apart by their kind, their codes and what they are worth at the model."""
    checksum = zlib.crc32(type(quantity).__name__.encode())
    for codes in getattr(quantity, "codes", {}).values():
        checksum = zlib.crc32(np.asarray(codes, np.int64).tobytes(), checksum)
    # float32: the same on machines that add up in other orders
    return zlib.crc32(np.asarray(values, np.float32).tobytes(), checksum)
