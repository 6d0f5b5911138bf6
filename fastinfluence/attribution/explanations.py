"""`Explanations`: which training examples made each prediction, and by how much."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from fastinfluence.attribution.base_explanations import BaseExplanations, Columns, Place
from fastinfluence.attribution.explanation import COLORS, IN_WORDS, SIDES, Explanation

if TYPE_CHECKING:
    from fastinfluence.data.interactions import Interactions

__all__ = ["Explanations"]


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class Explanations(BaseExplanations[Explanation]):
    """The k most influential training examples of each of n predictions.

    A sequence: ``len(ex)`` is n, ``ex[i]`` one prediction's `Explanation`, ``ex[10:20]``
    Explanations again. Influence is positive where training on the example raised the
    prediction.

    Attributes
    ----------
    users, items : (n,) int32
        Codes of the explained pairs in `data`.
    prediction : (n,) float
    train_index : (n, k) int
        Rows of `data`, most influential first, -1 where a query has fewer than k.
    influence : (n, k) float
        NaN where a query has fewer than k.
    total_influence : (n,) float, or None
        Sum of the absolute influence of all candidates, shown or not.
    data : Interactions
        The training data.
    method : str
        The method that found them.
    units : {"effect", "rank"}
        Whether influence is in the units of the prediction, or only orders the examples.
    proponents : bool
        Whether the examples that raised the prediction come first, or those that lowered it.
    side : (n, k) str
        What the example has in common with the query: "user", "item", "both" (the example is
        the explained pair), "other" (neither, which only methods that look beyond the query's
        own rows return), "" where there is none.

    Notes
    -----
    The columns of tables and files: ``query`` (position in this object), ``user``, ``item``,
    ``prediction``, ``rank`` (from 1), ``train_index``, ``train_user``, ``train_item``,
    ``train_value``, ``influence``, ``side``, ``coverage``, and ``user_label``,
    ``train_user_label``, ``item_label``, ``train_item_label`` where the data have labels. Users
    and items are raw ids.
    """

    EXPLAINED = "pair"
    PLACES = (Place("user", "users", "user"), Place("item", "items", "item"))
    SIDES = SIDES
    IN_WORDS = IN_WORDS
    COLORS = COLORS
    _CHECKED = ("users", "items", "values", "user_ids", "item_ids")

    users: npt.NDArray[np.int32]
    items: npt.NDArray[np.int32]
    data: Interactions

    def _single(self) -> Explanation:
        return Explanation(self)

    def _common(self, example: npt.NDArray[np.integer[Any]]) -> npt.NDArray[np.int8]:
        same_user = self.data.users[example] == self.users[:, None]
        same_item = self.data.items[example] == self.items[:, None]
        side: npt.NDArray[np.int8] = same_user + np.int8(2) * same_item
        side[side == 0] = 4
        return side

    def _example_columns(self, example: npt.NDArray[np.integer[Any]]) -> Columns:
        return {"train_value": self.data.values[example]}
