"""The errors fastinfluence raises: each says what is wrong and what would be right.

All derive from `FastInfluenceError`, so one ``except`` catches them; each also derives
from the built-in error a caller would expect (`ValueError`, `KeyError`, ...).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from fastinfluence.kernels.errors import DeviceError, DeviceMemoryError, FastInfluenceError

if TYPE_CHECKING:
    from fastinfluence.training import Trajectory

__all__ = [
    "ChaosWarning",
    "ConvergenceWarning",
    "DataError",
    "DeviceError",
    "DeviceMemoryError",
    "DivergenceError",
    "FastInfluenceError",
    "MissingExtraError",
    "NegativeCurvature",
    "NotFittedError",
    "ParameterError",
    "ReplayMismatch",
    "RunDirectoryError",
    "UnknownIdError",
    "UnseenWarning",
]


class DataError(FastInfluenceError, ValueError):
    """Input data that cannot be used: NaN, mismatched lengths, a missing column, ..."""


class ParameterError(FastInfluenceError, ValueError):
    """A hyper-parameter or argument outside its range, or one that does not fit the data."""


class NotFittedError(FastInfluenceError, AttributeError):
    """A model was asked for something it only has after ``fit``."""


class RunDirectoryError(FastInfluenceError, OSError):
    """A run directory that is absent, half-written, damaged or of another format version."""


class ReplayMismatch(FastInfluenceError, RuntimeError):
    """Replaying a Trajectory did not end in the parameters that training left."""


class ChaosWarning(UserWarning):
    """A training run that amplifies small changes: derivatives say little about retraining it."""


class ConvergenceWarning(UserWarning):
    """An iteration that was stopped before it reached its tolerance: results are rough."""


class NegativeCurvature(FastInfluenceError, ArithmeticError):
    """A Hessian that is not positive definite: a solve with it would mean nothing."""


class DivergenceError(FastInfluenceError, ArithmeticError):
    """Training left the finite numbers.

    Attributes
    ----------
    trajectory : Trajectory or None
        The run up to its last checkpoint, where `fit` was training.
    """

    trajectory: Trajectory | None = None


class MissingExtraError(FastInfluenceError, ImportError):
    """A feature needs an optional dependency; the message holds the install command."""

    def __init__(self, feature: str, package: str, extra: str | None = None) -> None:
        what = package if extra is None else f"'fastinfluence[{extra}]'"
        super().__init__(f"{feature} needs {package}, which is not installed: pip install {what}")


class UnknownIdError(FastInfluenceError, KeyError):
    """An id that was not in the training data.

    Parameters
    ----------
    kind : str
        What the ids name: ``"user"``, ``"item"``, ...
    unknown : sequence
        The distinct unknown ids, in order of first appearance.
    nearest : iterable of str, optional
        Known ids that resemble the first unknown one.
    """

    def __init__(self, kind: str, unknown: Sequence[object], nearest: Iterable[str] = ()) -> None:
        self.kind = kind
        self.unknown = list(unknown)
        others = len(self.unknown) - 1
        message = f"unknown {kind} {self.unknown[0]!r}"
        if others:
            message += f" and {others} other unknown {plural(kind, others)}"
        nearest = list(nearest)
        if nearest:
            message += f"; nearest known: {', '.join(nearest)}"
        super().__init__(message)

    def __str__(self) -> str:  # KeyError would show the repr of the message
        return str(self.args[0])


class UnseenWarning(UserWarning):
    """A prediction about an entity or relation that no training example holds."""


def plural(kind: str, count: int = 2) -> str:
    """The word for `count` things of a kind: ``"entity"``, ``"entities"``."""
    if count == 1:
        return kind
    return f"{kind[:-1]}ies" if kind.endswith("y") else f"{kind}s"
