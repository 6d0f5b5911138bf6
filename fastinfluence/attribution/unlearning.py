"""Unlearning: parameters with what some examples did to their rows taken back."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from fastinfluence import dispatch
from fastinfluence.attribution.base import RowAttribution
from fastinfluence.attribution.curvature_rollback import CurvatureRollback
from fastinfluence.attribution.gradient_rollback import GradientRollback
from fastinfluence.errors import DataError, ParameterError
from fastinfluence.kernels.structures import Side, Tables
from fastinfluence.models.base import trajectory_of
from fastinfluence.models.matrix_factorization import MatrixFactorization
from fastinfluence.training.trajectory import training_indices

__all__ = ["examples_to_unlearn", "unlearned"]

Codes = npt.NDArray[np.int32]
Indices = npt.NDArray[np.int64]


def unlearned(
    model: MatrixFactorization, examples: npt.ArrayLike, method: str | RowAttribution
) -> MatrixFactorization:
    """Return another model, without what `method` credits the examples with.

    `MatrixFactorization.unlearn` says more.
    """
    trajectory = trajectory_of(model, "unlearning")
    chosen = examples_to_unlearn(examples, len(model.data_))
    rows = _method(model, chosen, method).rows
    users, items = model.data_.users[chosen], model.data_.items[chosen]
    p, q, b, c = (table.copy() for table in trajectory.end.tables)
    for factors, biases, codes, side in (
        (p, b, users, rows.user_side),
        (q, c, items, rows.item_side),
    ):
        touched, credited = _credited(side, chosen, codes, len(model.data_), factors.shape[1] + 1)
        # The subtraction too is in float64: what is taken back entirely leaves no rounding.
        factors[touched] = factors[touched].astype(np.float64) - credited[:, :-1]
        biases[touched] = biases[touched].astype(np.float64) - credited[:, -1]
    parameters = model.get_params() | {"rng": trajectory.recipe.seed}
    return MatrixFactorization(**parameters)._hold(trajectory, Tables(p, q, b, c))


def examples_to_unlearn(examples: npt.ArrayLike, n: int) -> Indices:
    """Distinct training indices, ascending; DataError where there are none."""
    chosen: Indices = np.unique(training_indices(examples, n, "examples"))
    if len(chosen) == 0:
        raise DataError("examples is empty: there is nothing to unlearn")
    return chosen


def _method(model: MatrixFactorization, examples: Indices, method: Any) -> RowAttribution:
    """Rows of the examples' users and items, credited by a method of this model."""
    data, threads = model.data_, model.n_threads
    users, items = data.users[examples], data.items[examples]
    if isinstance(method, RowAttribution):
        trajectory = method.model.trajectory_
        if (
            trajectory is not model.trajectory_
            and trajectory.fingerprint() != model.trajectory_.fingerprint()
        ):
            raise ParameterError(
                f"the {type(method).__name__} is of another model: make one of this model, or "
                f"give its name, {method.name!r}"
            )
        method._check_held(users, items)
        return method
    if isinstance(method, str) and method == GradientRollback.name:
        return GradientRollback(model, n_threads=threads, show_progress=False)
    if isinstance(method, str) and method == CurvatureRollback.name:
        pairs = list(zip(data.user_ids[users], data.item_ids[items], strict=True))
        return CurvatureRollback(model, rows=pairs, n_threads=threads, show_progress=False)
    given = repr(method) if isinstance(method, str) else type(method).__name__
    raise ParameterError(
        f"{given} does not credit examples with changes of rows, which unlearning takes back: "
        f"use {CurvatureRollback.name!r}, {GradientRollback.name!r} or an object of theirs"
    )


def _credited(
    side: Side, examples: Indices, codes: Codes, n_train: int, width: int
) -> tuple[Codes, npt.NDArray[np.float64]]:
    """Codes of the rows that examples touch, and the sums (m, width) of their changes."""
    places = np.full(n_train, -1)
    places[side.order] = np.arange(len(side.order))
    touched, targets = np.unique(codes, return_inverse=True)
    sums = np.zeros((len(touched), width))
    dispatch.kernels("rows").add_rows(side, codes, places[examples], targets, sums)
    return touched, sums
