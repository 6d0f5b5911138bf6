"""The hyper-parameters of a training run on triples, checked once."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from numbers import Integral
from typing import Any

from fastinfluence.errors import ParameterError
from fastinfluence.training.recipe import DTYPES, check_choices, check_counts, check_reals

__all__ = [
    "DECAYS",
    "GRAPH_LOSSES",
    "GRAPH_OPTIMIZERS",
    "INITS",
    "SIDES",
    "GraphRecipe",
]

MODELS = ("distmult", "complex")
GRAPH_LOSSES = ("softmax", "logistic")  # the position is the kernels' code
GRAPH_OPTIMIZERS = ("sgd", "adagrad", "adam", "adam-dense")  # the same
SIDES = ("both", "tail")
DECAYS = ("linear", "constant")
INITS = ("normal", "uniform")
_BETAS = (0.9, 0.999)


@dataclass(frozen=True, kw_only=True)
class GraphRecipe:
    """Everything that determines a training run besides the triples, in plain numbers."""

    model: str
    n_factors: int
    loss: str
    n_negatives: int | str
    sides: str
    reciprocal: bool
    n_epochs: int
    learning_rate: float
    learning_rate_decay: str
    regularization: float
    optimizer: str
    epsilon: float
    fixed_negatives: bool
    shuffle: bool
    unit_norm: bool
    init: str
    init_scale: float
    dtype: str
    seed: int

    def __post_init__(self) -> None:
        check_counts(self, "n_factors", "n_epochs")
        check_choices(
            self,
            model=MODELS,
            loss=GRAPH_LOSSES,
            sides=SIDES,
            learning_rate_decay=DECAYS,
            optimizer=GRAPH_OPTIMIZERS,
            init=INITS,
            dtype=DTYPES,
        )
        check_reals(self, "learning_rate", "epsilon", above_zero=True)
        check_reals(self, "regularization", "init_scale")
        if self.complex and self.n_factors % 2:
            raise ParameterError(
                f"n_factors={self.n_factors}: a row of ComplEx holds n_factors / 2 complex "
                "numbers, so it must be even"
            )
        if self.n_negatives != "all":
            wanted = self.n_negatives
            if isinstance(wanted, bool) or not isinstance(wanted, Integral) or wanted < 1:
                raise ParameterError(
                    f"n_negatives must be an integer >= 1 or 'all' (every entity is a candidate), "
                    f"not {wanted!r}"
                )
            object.__setattr__(self, "n_negatives", int(wanted))
        for name in ("reciprocal", "fixed_negatives", "shuffle", "unit_norm"):
            if not isinstance(getattr(self, name), bool):
                raise ParameterError(f"{name} must be True or False, not {getattr(self, name)!r}")

    @property
    def complex(self) -> bool:
        """Whether rows hold complex numbers."""
        return self.model == "complex"

    @property
    def n_sides(self) -> int:
        """Steps of a triple in an epoch."""
        return 2 if self.sides == "both" else 1

    @property
    def has_reciprocals(self) -> bool:
        """Whether heads are predicted by relation rows of their own."""
        return self.reciprocal and self.sides == "both"

    @property
    def betas(self) -> tuple[float, float]:
        """Adam's decays of the first and the second moment."""
        return _BETAS

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for a manifest."""
        return asdict(self)
