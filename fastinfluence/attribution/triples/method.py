"""What every attribution method for models of triples is."""

from __future__ import annotations

import warnings
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from fastinfluence.attribution.base_explanations import BaseExplanations
from fastinfluence.attribution.method import Attribution
from fastinfluence.attribution.objectives import Objective, Score
from fastinfluence.attribution.triple_explanations import AMPLIFICATION_LIMIT, TripleExplanations
from fastinfluence.errors import ChaosWarning, ParameterError, plural

__all__ = ["TripleAttribution", "refuse_unit_norm", "warn_of_chaos"]

Array = npt.NDArray[Any]


class TripleAttribution(Attribution):
    """Attribution of a DistMult or ComplEx model; stands before the method it is a variant of."""

    explanations: ClassVar[type[BaseExplanations[Any]]] = TripleExplanations

    def _check_named(self, quantity: Any, objective: Objective) -> None:
        """Raise ParameterError unless the quantity is about triples."""
        if quantity.heads is None:
            raise ParameterError(
                f"{type(objective).__name__} is not about triples, so there are no predictions to "
                "explain: use influence()"
            )

    def _own(self, examples: npt.NDArray[np.int64]) -> Any:
        """The scores of the training triples themselves, of their tails."""
        columns = self.data.columns(examples)
        return self._bind(Score(np.column_stack([*columns.values()])))

    def _explained(
        self,
        quantity: Any,
        top: tuple[Array, Array, Array],
        proponents: bool,
        /,
        **more: Any,
    ) -> Any:
        asked = {"predict_head": quantity.predict_head, "quantity": quantity.kind}
        return super()._explained(quantity, top, proponents, **asked, **more)


def refuse_unit_norm(method: Attribution) -> None:
    """Raise ParameterError where rows were brought back to length 1 after every step."""
    if method.model.trajectory_.recipe.unit_norm:
        raise ParameterError(
            f"{type(method).__name__} follows steps along gradients, but with unit_norm=True "
            "training also projected the rows: train with unit_norm=False, or use "
            "GradientRollback(model, credit='update'), which takes back the changes as they were"
        )


def warn_of_chaos(amplification: Array, recipe: Any) -> None:
    """Warn (ChaosWarning) where training amplified small changes beyond the limit."""
    chaotic = int(np.count_nonzero(~(amplification <= AMPLIFICATION_LIMIT)))
    if not chaotic:
        return
    worst = float(np.max(amplification))
    often = f"{worst:.1e} times" if np.isfinite(worst) else "immeasurably"
    calmer = [f"lower learning_rate (now {recipe.learning_rate:g})"]
    if recipe.learning_rate_decay == "constant":
        calmer.append("let it decline (learning_rate_decay='linear')")
    calmer.append(f"raise regularization (now {recipe.regularization:g})")
    warnings.warn(
        f"training amplifies small changes: to {chaotic:,} of {len(amplification):,} "
        f"{plural('query', len(amplification))} it matters up to {often} as much what the rows "
        f"were early in training as what they are at its end (limit {AMPLIFICATION_LIMIT:g}). A "
        f"derivative says little about leaving a triple out of such a run: {', or '.join(calmer)}",
        ChaosWarning,
        stacklevel=4,
    )
