"""What all models share: fitted state, and the run directory they are saved to."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import numpy.typing as npt

from fastinfluence.data import Interactions
from fastinfluence.errors import NotFittedError, RunDirectoryError
from fastinfluence.kernels.structures import Tables
from fastinfluence.storage import read_run, write_run
from fastinfluence.training import Program, Recipe, State, Trajectory

if TYPE_CHECKING:
    from fastinfluence.models.matrix_factorization import MatrixFactorization

__all__ = ["load", "load_trajectory", "save_trajectory", "trajectory_of"]

KIND = "matrix-factorization"


def trajectory_of(model: MatrixFactorization, purpose: str) -> Trajectory:
    """Return the Trajectory of a fitted model.

    Parameters
    ----------
    model : MatrixFactorization
    purpose : str
        What it is needed for, as an error says it: "explaining it".

    Raises
    ------
    NotFittedError
        The model is not fitted, or its parameters are not those training ended in.
    """
    if hasattr(model, "trajectory_"):
        return model.trajectory_
    if not hasattr(model, "user_factors_"):
        raise NotFittedError(f"the model is not fitted yet: call fit before {purpose}")
    raise NotFittedError(
        f"{purpose} needs a Trajectory, and no training run ended in the parameters of this "
        "model, which unlearn() made: predict and recommend are possible; for more use the "
        "model it was made from, or train without the examples: "
        "fit(data, sample_weight=weights) with their weights 0"
    )


def save_trajectory(
    path: str | os.PathLike[str],
    trajectory: Trajectory,
    parameters: dict[str, Any],
    overwrite: bool,
) -> None:
    """Write a run directory: data, weights, hyper-parameters and checkpoints."""
    arrays: dict[str, npt.ArrayLike] = {
        f"data/{name}": array for name, array in trajectory.data.arrays().items()
    }
    arrays["weights"] = trajectory.program.weights
    for epoch, state in trajectory.checkpoints.items():
        for part, tables in zip(State._fields, state, strict=True):
            if tables is not None:
                for name, array in tables._asdict().items():
                    arrays[f"checkpoints/{epoch:05d}/{part}/{name}"] = array
    meta = {
        "recipe": trajectory.recipe.to_dict(),
        "parameters": parameters,
        "losses": trajectory.losses,
        "validation_losses": trajectory.validation_losses,
    }
    write_run(path, kind=KIND, meta=meta, arrays=arrays, overwrite=overwrite)


def load_trajectory(path: str | os.PathLike[str]) -> tuple[Trajectory, dict[str, Any]]:
    """Read a run directory: the Trajectory and the hyper-parameters of the model."""
    run = read_run(path, kind=KIND)
    try:
        arrays, meta = run.arrays, run.meta
        prefix = "data/"
        parts = {n.removeprefix(prefix): a for n, a in arrays.items() if n.startswith(prefix)}
        data = Interactions.from_parts(parts)
        program = Program(data, arrays["weights"], Recipe(**meta["recipe"]))
        epochs = sorted({int(n.split("/")[1]) for n in arrays if n.startswith("checkpoints/")})
        checkpoints = {epoch: _read_state(arrays, epoch) for epoch in epochs}
        trajectory = Trajectory(program, checkpoints, meta["losses"], meta["validation_losses"])
        trajectory.end  # noqa: B018  (a run without its last checkpoint is damaged)
        return trajectory, meta["parameters"]
    except (KeyError, TypeError) as missing:
        raise RunDirectoryError(f"{run.path} is no complete run of a model: {missing}") from missing


def _read_state(arrays: dict[str, npt.NDArray[Any]], epoch: int) -> State:
    def tables(part: str) -> Tables:
        return Tables(*(arrays[f"checkpoints/{epoch:05d}/{part}/{n}"] for n in Tables._fields))

    has_squares = f"checkpoints/{epoch:05d}/squares/user_factors" in arrays
    return State(tables("tables"), tables("squares") if has_squares else None)


def load(path: str | os.PathLike[str]) -> MatrixFactorization:
    """Load the model of a run directory, with its Trajectory.

    Parameters
    ----------
    path : path-like
        Written by ``model.save`` or by ``fastinfluence train``.

    Raises
    ------
    RunDirectoryError
        The directory is absent, half-written, damaged or of another format version.
    """
    from fastinfluence.models.matrix_factorization import MatrixFactorization

    trajectory, parameters = load_trajectory(path)
    return MatrixFactorization(**parameters)._take(trajectory)
