"""What all models share: hyper-parameters, fitted state, the run directory they are saved to."""

from __future__ import annotations

import inspect
import os
from abc import ABC, abstractmethod
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np
import numpy.typing as npt

from fastinfluence.errors import NotFittedError, RunDirectoryError
from fastinfluence.storage import read_run, write_run
from fastinfluence.training import Trajectory

__all__ = ["Model", "Parts", "load", "trajectory_of"]


class Parts(NamedTuple):
    """What a kind of model is trained with."""

    data: type[Any]
    recipe: type[Any]
    program: type[Any]
    state: type[Any]


class Model(ABC):
    """A factorization model: hyper-parameters, and once fitted the Trajectory of its training.

    Attributes
    ----------
    data_ : Interactions or Triples
        Training data.
    trajectory_ : Trajectory
    n_epochs_ : int
        Epochs that led to these parameters.
    """

    kind: ClassVar[str]  # as run directories name it
    kinds: ClassVar[dict[str, type[Model]]] = {}
    parts: ClassVar[Parts]

    data_: Any
    trajectory_: Trajectory
    n_epochs_: int
    global_mean_: float
    n_threads: int | None

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "kind" in cls.__dict__:
            Model.kinds[cls.kind] = cls

    def get_params(self) -> dict[str, Any]:
        """Hyper-parameters by name."""
        return {name: getattr(self, name) for name in inspect.signature(type(self)).parameters}

    def __repr__(self) -> str:
        defaults = inspect.signature(type(self)).parameters
        changed = {n: v for n, v in self.get_params().items() if v != defaults[n].default}
        inside = ", ".join(f"{name}={value!r}" for name, value in changed.items())
        name = f"{type(self).__name__}({inside})"
        return f"{name}, fitted on {self._fitted_on()}" if self.is_fitted else name

    @property
    def is_fitted(self) -> bool:
        """Whether the model has parameters."""
        return hasattr(self, "data_")

    @abstractmethod
    def _fitted_on(self) -> str:
        """What the model was fitted on, in words."""

    @abstractmethod
    def _take(self, trajectory: Trajectory) -> Self:
        """Become the model at the end of a trajectory."""

    def save(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        """Write the run directory `path`: parameters, checkpoints, data and hyper-parameters.

        The directory appears whole or not at all. `fastinfluence.load` reads it back.

        Raises
        ------
        RunDirectoryError
            `path` exists and `overwrite` is false.
        """
        trajectory = trajectory_of(self, "saving it")
        parameters = self.get_params() | {"rng": trajectory.recipe.seed}
        for name, value in parameters.items():
            if isinstance(value, np.generic):
                parameters[name] = value.item()
        arrays: dict[str, npt.ArrayLike] = {
            f"data/{name}": array for name, array in trajectory.data.arrays().items()
        }
        arrays["weights"] = trajectory.program.weights
        for epoch, state in trajectory.checkpoints.items():
            for name, array in state.arrays().items():
                arrays[f"checkpoints/{epoch:05d}/{name}"] = array
        meta = {
            "recipe": trajectory.recipe.to_dict(),
            "parameters": parameters,
            "losses": trajectory.losses,
            "validation_losses": trajectory.validation_losses,
        }
        write_run(path, kind=self.kind, meta=meta, arrays=arrays, overwrite=overwrite)


def trajectory_of(model: Model, purpose: str) -> Trajectory:
    """Return the Trajectory of a fitted model.

    Parameters
    ----------
    model : Model
    purpose : str
        What it is needed for, as an error says it: "explaining it".

    Raises
    ------
    NotFittedError
        The model is not fitted, or its parameters are not those training ended in.
    """
    if hasattr(model, "trajectory_"):
        return model.trajectory_
    if not model.is_fitted:
        raise NotFittedError(f"the model is not fitted yet: call fit before {purpose}")
    raise NotFittedError(
        f"{purpose} needs a Trajectory, and no training run ended in the parameters of this "
        "model, which unlearn() made: predict and recommend are possible; for more use the "
        "model it was made from, or train without the examples: "
        "fit(data, sample_weight=weights) with their weights 0"
    )


def load(path: str | os.PathLike[str]) -> Any:
    """Load the model of a run directory, with its Trajectory.

    Parameters
    ----------
    path : path-like
        Written by ``model.save`` or by ``fastinfluence train``.

    Returns
    -------
    MatrixFactorization, DistMult or ComplEx

    Raises
    ------
    RunDirectoryError
        The directory is absent, half-written, damaged or of another format version.
    """
    from fastinfluence import models  # noqa: F401  (registers every kind)

    run = read_run(path)
    if run.kind not in Model.kinds:
        raise RunDirectoryError(
            f"{run.path} is a {run.kind}, not a run of a model ({', '.join(Model.kinds)})"
        )
    kind = Model.kinds[run.kind]
    try:
        program = kind.parts.program(
            kind.parts.data.from_parts(_below("data/", run.arrays)),
            run.arrays["weights"],
            kind.parts.recipe(**run.meta["recipe"]),
        )
        epochs = sorted({int(n.split("/")[1]) for n in run.arrays if n.startswith("checkpoints/")})
        checkpoints = {
            epoch: kind.parts.state.from_arrays(_below(f"checkpoints/{epoch:05d}/", run.arrays))
            for epoch in epochs
        }
        losses = run.meta["losses"], run.meta["validation_losses"]
        trajectory = Trajectory(program, checkpoints, *losses)
        trajectory.end  # noqa: B018  (a run without its last checkpoint is damaged)
        return kind(**run.meta["parameters"])._take(trajectory)
    except (KeyError, TypeError) as missing:
        raise RunDirectoryError(f"{run.path} is no complete run of a model: {missing}") from missing


def _below(folder: str, arrays: dict[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
    return {n.removeprefix(folder): array for n, array in arrays.items() if n.startswith(folder)}
