"""The hyper-parameters of a training run, checked once."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from numbers import Integral, Real
from typing import Any

import numpy as np

from fastinfluence.errors import ParameterError

__all__ = [
    "DTYPES",
    "LOSSES",
    "OPTIMIZERS",
    "Recipe",
    "check_choices",
    "check_counts",
    "check_reals",
    "seed_of",
]

LOSSES = ("squared", "logistic", "bpr")  # the position is the kernels' code
OPTIMIZERS = ("sgd", "adagrad")
DTYPES = ("float32", "float64")
_DEFAULT_NEGATIVES = {"squared": 0, "logistic": 4, "bpr": 1}
_ADAGRAD_EPSILON = 1e-8


def seed_of(rng: int | np.random.Generator | None) -> int:
    """A seed: the integer itself, one drawn from the generator, or a fresh random one."""
    if isinstance(rng, np.random.Generator):
        return int(rng.integers(2**62))
    if rng is None:
        return int(np.random.default_rng().integers(2**62))
    if isinstance(rng, bool) or not isinstance(rng, Integral) or rng < 0:
        raise ParameterError(f"rng must be an integer >= 0, a numpy Generator or None, not {rng!r}")
    return int(rng)


# The checks leave plain numbers behind: a recipe travels through JSON unchanged.


def check_counts(recipe: Any, *names: str) -> None:
    """Raise ParameterError unless these fields are integers >= 1."""
    for name in names:
        value = getattr(recipe, name)
        if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
            raise ParameterError(f"{name} must be an integer >= 1, not {value!r}")
        object.__setattr__(recipe, name, int(value))


def check_choices(recipe: Any, **choices: tuple[str, ...]) -> None:
    """Raise ParameterError unless each of these fields is one of its choices."""
    for name, allowed in choices.items():
        if getattr(recipe, name) not in allowed:
            raise ParameterError(
                f"{name}={getattr(recipe, name)!r} is not known: use one of {', '.join(allowed)}"
            )


def check_reals(recipe: Any, *names: str, above_zero: bool = False) -> None:
    """Raise ParameterError unless these fields are finite and >= 0, or > 0."""
    for name in names:
        value = getattr(recipe, name)
        fits = isinstance(value, Real) and np.isfinite(float(value))
        if not fits or float(value) < 0 or (above_zero and float(value) == 0):
            bound = "> 0" if above_zero else ">= 0"
            raise ParameterError(f"{name} must be a finite number {bound}, not {value!r}")
        object.__setattr__(recipe, name, float(value))


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that determines a training run besides the data, in plain numbers."""

    n_factors: int
    loss: str
    optimizer: str
    n_epochs: int
    learning_rate: float
    learning_rate_decay: float
    regularization: float
    n_negatives: int | None
    init_scale: float
    dtype: str
    seed: int

    def __post_init__(self) -> None:
        check_counts(self, "n_factors", "n_epochs")
        check_choices(self, loss=LOSSES, optimizer=OPTIMIZERS, dtype=DTYPES)
        check_reals(self, "learning_rate", "learning_rate_decay", above_zero=True)
        check_reals(self, "regularization", "init_scale")
        n_negatives = self.n_negatives
        if n_negatives is None:
            n_negatives = _DEFAULT_NEGATIVES[self.loss]
        elif isinstance(n_negatives, bool) or not isinstance(n_negatives, Integral):
            raise ParameterError(f"n_negatives must be an integer or None, not {n_negatives!r}")
        elif n_negatives < (1 if self.loss == "bpr" else 0):
            least_negatives = "1 (bpr compares with them)" if self.loss == "bpr" else "0"
            raise ParameterError(f"n_negatives must be >= {least_negatives}, not {n_negatives}")
        object.__setattr__(self, "n_negatives", int(n_negatives))

    @property
    def loss_code(self) -> int:
        """The loss as the kernels number it."""
        return LOSSES.index(self.loss)

    @property
    def epsilon(self) -> float:
        """Adagrad's addend to the root."""
        return _ADAGRAD_EPSILON

    def rate(self, epoch: int) -> float:
        """Learning rate of an epoch, counted from 0."""
        return self.learning_rate * self.learning_rate_decay**epoch

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for a manifest."""
        return asdict(self)
