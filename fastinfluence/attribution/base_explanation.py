"""`BaseExplanation`: what an explained prediction is, whatever the model predicts."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from fastinfluence.errors import ParameterError

if TYPE_CHECKING:
    from fastinfluence.attribution.base_explanations import BaseExplanations

__all__ = ["BaseExplanation"]


@dataclass(frozen=True, eq=False, repr=False)
class BaseExplanation(ABC):
    """One prediction and the training examples behind it: ``ex[i]`` of `BaseExplanations`.

    Shows itself as text; the arrays leave the padding out.
    """

    _one: BaseExplanations[Any]  # of this prediction alone

    def __len__(self) -> int:
        return int(np.count_nonzero(self._one.train_index[0] >= 0))

    # ---------------------------------------------------------------- what a family says itself

    @property
    @abstractmethod
    def name(self) -> str:
        """What is explained, by name."""

    @property
    @abstractmethod
    def example_names(self) -> list[str]:
        """The examples by name."""

    @property
    def predicted(self) -> str:
        """The prediction for people to read, under a heading that says so."""
        return f"{self.prediction:.4g}"

    @property
    def headline(self) -> str:
        """What is explained, and the prediction."""
        return f"{self.name}: predicted {self.predicted}"

    @abstractmethod
    def _why_nothing(self) -> str:
        """Why there is no reason to give."""

    def _remarks(self, n: int) -> list[str]:
        """Lines below `n` reasons, of what the family has to add."""
        return []

    # ---------------------------------------------------------------- arrays

    @property
    def prediction(self) -> float:
        """The explained quantity."""
        return float(self._one.prediction[0])

    @property
    def train_index(self) -> npt.NDArray[np.integer[Any]]:
        """(m,) int: rows of the training data, most influential first."""
        return self._valid(self._one.train_index)

    @property
    def influence(self) -> npt.NDArray[np.floating[Any]]:
        """(m,) float."""
        return self._valid(self._one.influence)

    @property
    def side(self) -> npt.NDArray[np.str_]:
        """(m,) str: what each example has in common with what is explained, as in `ex.side`."""
        return self._valid(self._one.side)

    @property
    def coverage(self) -> float:
        """Share of all absolute influence that these examples hold; NaN where not known."""
        return float(self._one.coverage[0])

    # ---------------------------------------------------------------- for people

    def because(self, n: int = 3) -> str:
        """Return the prediction and at most `n` reasons for it as text."""
        reasons = self.reasons(n)
        if not reasons:
            return "\n".join([f"{self.headline}; {self._why_nothing()}.", *self._remarks(n)])
        widths = [max(map(len, column)) for column in zip(*reasons, strict=True)]
        lines = [
            f"{self.headline}, {'because of' if self._one.proponents else 'in spite of'}",
            *(
                f"  {number:>{widths[0]}}  {name:<{widths[1]}}  {common}"
                for number, name, common in reasons
            ),
        ]
        if self._one.total_influence is not None and self._one.total_influence[0] > 0:
            shown = float(np.abs(self.influence[self._worked()[:n]]).sum(dtype=np.float64))
            share = min(1.0, shown / float(self._one.total_influence[0]))
            lines.append(f"  ({share:.0%} of the influence of all its training examples)")
        if self._one.units == "rank":
            lines.append("  (these numbers order the examples; they do not measure a change)")
        if self._one.converged is not None and not self._one.converged[0]:
            residual = self._one.residual
            left = "" if residual is None else f": {float(residual[0]):.2g} of it is left"
            lines.append(f"  (the system behind these numbers was not solved{left})")
        return "\n".join([*lines, *self._remarks(n)])

    def __repr__(self) -> str:
        return self.because(max(1, len(self)))

    def reasons(self, n: int) -> list[tuple[str, str, str]]:
        """Return at most `n` reasons: influence, example, what it has in common."""
        if n < 1:
            raise ParameterError(f"n is the number of reasons to show, at least 1, not {n}")
        names, sides = self.example_names, self.side
        return [
            (f"{self.influence[j]:+.3g}", names[j], f"({self._one.IN_WORDS[sides[j]]})")
            for j in self._worked()[:n]
        ]

    def _worked(self) -> npt.NDArray[np.intp]:
        """Places of the examples that worked in the direction asked for."""
        influence = self.influence
        return np.flatnonzero(influence > 0 if self._one.proponents else influence < 0)

    def _valid(self, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        valid: npt.NDArray[Any] = array[0][self._one.train_index[0] >= 0]
        return valid
