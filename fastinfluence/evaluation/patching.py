"""Tail-patch: what one more step on its explanation does to a prediction."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt

from fastinfluence import dispatch
from fastinfluence.attribution.base_explanations import BaseExplanations
from fastinfluence.errors import DataError, ParameterError
from fastinfluence.evaluation.neighbours import bind, check_fitted
from fastinfluence.kernels.structures import Examples, Tables
from fastinfluence.models import MatrixFactorization
from fastinfluence.training import Trajectory
from fastinfluence.training.trajectory import training_indices

__all__ = ["tail_patch"]

Floats = npt.NDArray[np.float64]
Rows = tuple[npt.NDArray[Any], npt.NDArray[Any]]


def tail_patch(
    model: MatrixFactorization, queries: Any, train: npt.ArrayLike | BaseExplanations[Any]
) -> Floats:
    """Mean change of every query's value by one more training step on each of its examples.

    ``mean over j of phi(theta_T, and one step on j) - phi(theta_T)``. The step is the one that
    training took on j in its last epoch (its learning rate, weight, negatives, Adagrad's sums
    as they are in the end), taken alone from where training ended. It needs no retraining, and
    tells whether the examples still teach the model what they are credited with.

    Parameters
    ----------
    model : MatrixFactorization
        Fitted.
    queries : pairs as for `explain`, or Objective
    train : Explanations or (n_queries, k) int array
        Training indices, one list a query; -1 where it has fewer.

    Returns
    -------
    (n_queries,) float64
        Positive where the examples raise the value; NaN where a query has no example.

    Raises
    ------
    ParameterError
        The model is of triples: where its learning rate declines to 0, the last steps say
        nothing.
    DataError
        Lists that do not fit the queries, or hold what is no training index.

    Notes
    -----
    A step, and the values of all queries, for every distinct example; memory of three copies of
    the parameters.

    References
    ----------
    Chang et al., Scalable influence and fact tracing for large language model pretraining,
    2024, arXiv 2410.17413.
    """
    check_fitted(model)
    if not isinstance(model, MatrixFactorization):
        raise ParameterError(
            f"tail_patch takes another step of a MatrixFactorization, not of a "
            f"{type(model).__name__}: see deletion_effect, which trains again"
        )
    quantity = bind(model, queries)
    lists = np.asarray(train.train_index if isinstance(train, BaseExplanations) else train)
    if lists.ndim != 2 or len(lists) != len(quantity):
        raise DataError(
            f"train has shape {lists.shape}: one list for each of the {len(quantity):,} queries "
            "is needed"
        )
    query, place = np.nonzero(lists != -1)
    listed = training_indices(lists[query, place], len(model.data_), "train")
    order = np.argsort(listed, kind="stable")
    examples, starts = np.unique(listed[order], return_index=True)
    query, bounds = query[order], [*starts.tolist(), len(listed)]
    before = quantity.values(model.trajectory_.end.tables, model.global_mean_)
    total = np.zeros(len(quantity))
    step = _LastStep(model.trajectory_)
    for example, start, stop in zip(examples.tolist(), bounds, bounds[1:], strict=False):
        with step.on(example) as tables:
            after = quantity.values(tables, model.global_mean_)
        of_example = query[start:stop]
        np.add.at(total, of_example, after[of_example] - before[of_example])
    counts = np.bincount(query, minlength=len(quantity))
    total[counts == 0] = np.nan
    means: Floats = total / np.maximum(counts, 1)
    return means


class _LastStep:
    """Steps of single examples from the end of training, each taken and undone.

    A step moves the rows of its user and its candidates only, so no table is copied: a step
    costs what it cost in training.
    """

    def __init__(self, trajectory: Trajectory) -> None:
        program = trajectory.program
        self._trajectory, self._program = trajectory, program
        self._visits = trajectory.visits()
        self._end = trajectory.end  # rows in the order of the codes, never changed
        self._shown = self._end.copy().tables  # the same rows
        self._working = program.enter(self._end)
        # The log tells which items a step touched.
        self._log = program.new_log(1)._replace(slots=np.zeros(1, np.int32))
        # Cut so that one block holds the example: as many 0 as blocks up to its own, then 1.
        n_blocks = program.schedule.n_groups**2
        self._bounds = np.repeat([0, 1], n_blocks + 1)

    @contextmanager
    def on(self, example: int) -> Iterator[Tables]:
        """The parameters, by code, after the step on an example; valid inside the context."""
        program, visit = self._program, self._visits[example]
        schedule = program.schedule
        block = int(np.searchsorted(schedule.pointers, visit, side="right")) - 1
        n_before = len(self._bounds) // 2 - 1 - block
        pointers = self._bounds[n_before : n_before + len(schedule.pointers)]
        stratum = block // schedule.n_groups
        epoch = self._trajectory.n_epochs - 1
        self._log.items[:] = -1
        dispatch.kernels("sgd").sgd_epoch(
            *self._working,
            Examples(*(column[visit : visit + 1] for column in program.examples)),
            pointers,
            program.sampler,
            program.hyper(epoch),
            program.recipe.loss_code,
            epoch,
            (stratum, stratum + 1),
            None,
            self._log,
        )
        places = program.examples.users[visit : visit + 1], self._touched()
        codes = schedule.user_order[places[0]], schedule.pool[places[1]]
        _copy_rows(self._working.tables, places, self._shown, codes)
        try:
            yield self._shown
        finally:
            _copy_rows(self._end.tables, codes, self._shown, codes)
            for kept, moved in zip(self._end, self._working, strict=True):
                if kept is not None and moved is not None:
                    _copy_rows(kept, codes, moved, places)

    def _touched(self) -> npt.NDArray[np.int32]:
        items = self._log.items[0]
        touched: npt.NDArray[np.int32] = items[items >= 0]
        return touched


def _copy_rows(source: Tables, source_rows: Rows, target: Tables, target_rows: Rows) -> None:
    """Copy rows of all tables: [0] of those of the users, [1] of those of the items."""
    for number, (here, there) in enumerate(zip(source, target, strict=True)):
        there[target_rows[number % 2]] = here[source_rows[number % 2]]
