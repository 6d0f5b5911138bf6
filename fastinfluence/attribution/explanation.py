"""`Explanation`: one prediction and the training examples that made it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from fastinfluence.errors import ParameterError

if TYPE_CHECKING:
    from fastinfluence.attribution.explanations import Explanations
    from fastinfluence.data.interactions import Interactions

__all__ = ["Explanation", "example_names", "pair_name"]

SIDES = np.array(["", "user", "item", "both", "other"])  # "" where there is no example
IN_WORDS = {
    "user": "same user",
    "item": "same item",
    "both": "this very pair",
    "other": "neither in common",
}
COLORS = {"user": "#0072b2", "item": "#e69f00", "both": "#009e73", "other": "#999999"}


@dataclass(frozen=True, eq=False, repr=False)
class Explanation:
    """One prediction and the training examples behind it: ``ex[i]`` of `Explanations`.

    Shows itself as text; the arrays leave the padding out.
    """

    _one: Explanations  # of this prediction alone

    def __len__(self) -> int:
        return int(np.count_nonzero(self._one.train_index[0] >= 0))

    @property
    def name(self) -> str:
        """The explained pair by name: "user → item"."""
        return pair_name(self._one.data, *self._pair)

    @property
    def user(self) -> Any:
        """Raw id of the user."""
        return self._one.data.user_ids[self._pair[0]]

    @property
    def item(self) -> Any:
        """Raw id of the item."""
        return self._one.data.item_ids[self._pair[1]]

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
        """(m,) str: what each example has in common with the pair, as in `Explanations.side`."""
        side: npt.NDArray[np.str_] = SIDES[self._valid(self._one._side_codes)]
        return side

    @property
    def coverage(self) -> float:
        """Share of all absolute influence that these examples hold; NaN where not known."""
        return float(self._one.coverage[0])

    @property
    def example_names(self) -> list[str]:
        """The examples by name, with their value where the data have values."""
        return example_names(self._one.data, self.train_index)

    def because(self, n: int = 3) -> str:
        """Return the prediction and at most `n` reasons for it as text."""
        reasons = self.reasons(n)
        text = f"{self.name}: predicted {self.prediction:.4g}"
        if not reasons:
            return f"{text}; {self._why_nothing()}."
        widths = [max(map(len, column)) for column in zip(*reasons, strict=True)]
        lines = [
            f"{text}, {'because of' if self._one.proponents else 'in spite of'}",
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
        return "\n".join(lines)

    def __repr__(self) -> str:
        return self.because(max(1, len(self)))

    @property
    def _pair(self) -> tuple[int, int]:
        return int(self._one.users[0]), int(self._one.items[0])

    def _valid(self, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        valid: npt.NDArray[Any] = array[0][self._one.train_index[0] >= 0]
        return valid

    def _worked(self) -> npt.NDArray[np.intp]:
        """Places of the examples that worked in the direction asked for."""
        influence = self.influence
        return np.flatnonzero(influence > 0 if self._one.proponents else influence < 0)

    def reasons(self, n: int) -> list[tuple[str, str, str]]:
        """Return at most `n` reasons: influence, example, what it has in common."""
        if n < 1:
            raise ParameterError(f"n is the number of reasons to show, at least 1, not {n}")
        names, sides = self.example_names, self.side
        return [
            (f"{self.influence[j]:+.3g}", names[j], f"({IN_WORDS[sides[j]]})")
            for j in self._worked()[:n]
        ]

    def _why_nothing(self) -> str:
        user, item = self._pair
        data = self._one.data
        if len(self) or (data.users == user).any() or (data.items == item).any():
            return f"no training example {'raised' if self._one.proponents else 'lowered'} it"
        return "no training example shares its user or its item"


def pair_name(data: Interactions, user: int, item: int) -> str:
    """A pair of codes by name: "user → item"."""
    return f"{data.user_name(user)} → {data.item_name(item)}"


def example_names(data: Interactions, train_index: npt.NDArray[np.integer[Any]]) -> list[str]:
    """Training examples by name, with their value where the data have values."""
    names = []
    for row in train_index.tolist():
        value = f": {data.values[row]:.4g}" if data.has_values else ""
        names.append(pair_name(data, int(data.users[row]), int(data.items[row])) + value)
    return names
