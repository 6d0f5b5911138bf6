"""`Explanation`: one prediction and the training examples that made it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from fastinfluence.attribution.base_explanation import BaseExplanation

if TYPE_CHECKING:
    from fastinfluence.attribution.explanations import Explanations
    from fastinfluence.data.interactions import Interactions

__all__ = ["COLORS", "IN_WORDS", "SIDES", "Explanation", "example_names", "pair_name"]

SIDES = np.array(["", "user", "item", "both", "other"])  # "" where there is no example
IN_WORDS = {
    "user": "same user",
    "item": "same item",
    "both": "this very pair",
    "other": "neither in common",
}
COLORS = {"user": "#0072b2", "item": "#e69f00", "both": "#009e73", "other": "#999999"}


@dataclass(frozen=True, eq=False, repr=False)
class Explanation(BaseExplanation):
    """One prediction and the training examples behind it: ``ex[i]`` of `Explanations`.

    Shows itself as text; the arrays leave the padding out.
    """

    _one: Explanations  # of this prediction alone

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
    def example_names(self) -> list[str]:
        """The examples by name, with their value where the data have values."""
        return example_names(self._one.data, self.train_index)

    @property
    def _pair(self) -> tuple[int, int]:
        return int(self._one.users[0]), int(self._one.items[0])

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
