"""What every attribution method is: bound to a fitted model, and sure of what it may be asked."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self, cast

import numpy as np
import numpy.typing as npt

from fastinfluence import dispatch
from fastinfluence.attribution.base_explanations import BaseExplanations
from fastinfluence.attribution.counterfactuals import counterfactual
from fastinfluence.attribution.explanations import Explanations
from fastinfluence.attribution.objectives import Objective
from fastinfluence.attribution.quantities import Quantity
from fastinfluence.attribution.sets import explain_set
from fastinfluence.errors import ParameterError
from fastinfluence.models.base import Model, trajectory_of
from fastinfluence.models.matrix_factorization import MatrixFactorization

if TYPE_CHECKING:
    from scipy.sparse import csr_array

__all__ = ["Attribution", "check_result", "main_pairs"]

Codes = npt.NDArray[np.int32]


class Attribution(ABC):
    """A way to say what every training example did to a prediction of a model.

    A method has one class for users and items, and a variant of it for every other kind of
    model (``class GradientRollback(..., pairs.GradientRollback, of=KnowledgeGraphModel)``):
    calling the former makes the one that fits the model.

    Parameters
    ----------
    model : Model
        Fitted.
    n_threads : int, optional
        All processors by default; it never changes a result.
    device : str, default "auto"
        See `fastinfluence.dispatch.choose`; each method says which it has kernels for.
    """

    name: str
    units: Literal["effect", "rank"]
    explains: ClassVar[type[Model]] = MatrixFactorization
    explanations: ClassVar[type[BaseExplanations[Any]]] = Explanations
    served: ClassVar[tuple[str, ...]] = ("cpu",)
    """Backends that have the kernels of this method; see `dispatch.choose`."""

    _variants: ClassVar[dict[type[Model], type[Attribution]]] = {}
    _options: dict[str, Any]

    explain_set = explain_set
    counterfactual = counterfactual

    def __init_subclass__(cls, *, of: type[Model] | None = None, **options: Any) -> None:
        super().__init_subclass__(**options)
        if of is None:
            cls._variants = {}
        else:
            method: Any = next(base for base in cls.__mro__[1:] if "name" in vars(base))
            method._variants[of] = cls
            cls.explains = of

    def __new__(cls, model: object = None, **options: Any) -> Self:
        """Make the variant for this kind of model; keep the options, to make it of another one."""
        method: Self = super().__new__(cast("type[Self]", cls.variant(model)))
        method._options = options
        return method

    def __init__(self, model: Any, *, n_threads: int | None = None, device: str = "auto") -> None:
        if not isinstance(model, self.explains):
            raise ParameterError(
                f"a {self.explains.__name__} is needed, not {type(model).__name__}"
            )
        trajectory_of(model, "explaining it")
        self._device, _ = dispatch.choose(device, self.served)
        self.model: Any = model
        self.data = model.data_
        self._n_threads = dispatch.thread_count(n_threads)

    @classmethod
    def variant(cls, model: object) -> type[Attribution]:
        """Return the class that explains models of this kind."""
        variants = cls._variants.items()
        return next((found for kind, found in variants if isinstance(model, kind)), cls)

    @abstractmethod
    def influence(
        self, queries: Any, *, dense: bool = False
    ) -> csr_array | npt.NDArray[np.floating[Any]]:
        """Influence (n_queries, n_train) of every training example on every query."""

    def on(self, model: Any, queries: Any = None) -> Self:
        """Make the same method, with the same options, of another model.

        Parameters
        ----------
        model : Model
            Fitted, of the same kind.
        queries : as for `explain`, optional
            Only these will be asked about: rows that they do not need are left out where that
            is faster.
        """
        return type(self)(model, **self._options_for(queries))

    def _options_for(self, queries: Any) -> dict[str, Any]:
        return self._options | {"show_progress": False}

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.model!r})"

    @classmethod
    def kinds(cls) -> tuple[type[Model], ...]:
        """Return the kinds of models that the method explains, itself or by a variant."""
        return (cls.explains, *cls._variants)

    @property
    def _parameters(self) -> tuple[Any, float]:
        return self.model.trajectory_.end.tables, self.model.global_mean_

    def _bind(self, objective: Objective) -> Any:
        """The quantity the objective is for this model, its own answers filled in."""
        return objective.answered(self.model).bind(self.data, self.model.trajectory_.recipe)

    def _check_whole(self, otherwise: str = "") -> None:
        """Raise ParameterError unless the Trajectory leads from the start to the end.

        Parameters
        ----------
        otherwise : str
            What else there is to do than to train again, as the error says it.
        """
        trajectory = self.model.trajectory_
        missing = {0, trajectory.n_epochs} - set(trajectory.checkpoints)
        if missing:
            raise ParameterError(
                f"{type(self).__name__} goes through the whole run, but the Trajectory holds no "
                f"parameters after epoch {min(missing)}: train again{otherwise}"
            )

    def _check_named(self, quantity: Any, objective: Objective) -> None:
        """Raise ParameterError unless the quantity is about predictions that can be named."""
        main_pairs(quantity, objective)

    def _explained(
        self,
        quantity: Any,
        top: tuple[npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any]],
        proponents: bool,
        /,
        **more: Any,
    ) -> Any:
        """Explanations from the lists (train_index, influence, total_influence) of a quantity."""
        train_index, influence, total_influence = top
        explanations: Any = self.explanations
        return explanations(
            **{place.codes: getattr(quantity, place.codes) for place in explanations.PLACES},
            prediction=quantity.values(*self._parameters),
            train_index=train_index,
            influence=influence,
            total_influence=total_influence,
            data=self.data,
            method=self.name,
            units=self.units,
            proponents=proponents,
            **more,
        )


def main_pairs(quantity: Quantity, objective: Objective) -> tuple[Codes, Codes]:
    """Return the pairs (users, items) that predictions of an objective are about.

    Raises
    ------
    ParameterError
        It is not about pairs.
    """
    if quantity.users is None or quantity.items is None:
        raise ParameterError(
            f"{type(objective).__name__} is not about pairs of a user and an item, so there are "
            "no predictions to explain: use influence()"
        )
    return quantity.users, quantity.items


def check_result(n_queries: int, needed: int, budget: int, *, dense: bool = False) -> None:
    """Raise ParameterError unless a matrix of influences of `needed` bytes fits the budget."""
    if needed > budget:
        raise ParameterError(
            f"the influence of {n_queries:,} queries takes {needed / 2**20:,.1f} MiB, more "
            f"than the memory budget of {budget / 2**20:,.1f} MiB: ask for fewer queries"
            + (", dense=False," if dense else "")
            + " or use explain, which keeps only the k most influential"
        )
