"""What one query is about, and what training examples have in common with it: names, sides."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from fastinfluence.attribution.base_explanations import BaseExplanations
from fastinfluence.attribution.explanation import example_names
from fastinfluence.attribution.explanations import Explanations
from fastinfluence.attribution.triple_explanations import TripleExplanations
from fastinfluence.data import Interactions, Triples

__all__ = ["Subject", "subject_of"]

Array = npt.NDArray[Any]
Listed: TypeAlias = BaseExplanations[Any] | None

_PLAIN = ("Score", "Margin")  # objectives that need not be named


class Subject(ABC):
    """The pair or the triple that a quantity of one query is about, if it is about one.

    Parameters
    ----------
    quantity : Quantity
    data : Interactions or Triples
        The training data.
    """

    kind: type[BaseExplanations[Any]]

    def __init__(self, quantity: Any, data: Any) -> None:
        self._quantity, self._data = quantity, data

    @abstractmethod
    def example_names(self, train_index: Array) -> list[str]:
        """Training examples by name."""

    @abstractmethod
    def _asked(self) -> str:
        """What is asked, by name, of a quantity that is about a pair or triple."""

    @abstractmethod
    def _columns(self) -> dict[str, Any]:
        """Attributes that its explanations have of their own."""

    def explained(self, objective: str) -> str:
        """The quantity by name; `objective` is what its kind is called."""
        if not self._quantity.codes:
            return objective
        return self._asked() if objective in _PLAIN else f"{objective} of {self._asked()}"

    def side(self, train_index: Array) -> npt.NDArray[np.str_]:
        """(m,) str: what examples have in common with it, as the `side` of explanations."""
        if not self._quantity.codes:
            return np.full(len(train_index), "")
        listed = self.kind(
            **self._columns(),
            prediction=np.zeros(1),
            train_index=train_index[None],
            influence=np.zeros((1, len(train_index))),
            total_influence=None,
            data=self._data,
            method="",
            units="rank",
            proponents=True,
        )
        side: npt.NDArray[np.str_] = listed.side[0]
        return side

    def remarks(self, train_index: Array) -> list[str]:
        """What examples have in common with it, in words; "" where nobody knows."""
        return [self.kind.IN_WORDS.get(side, "") for side in self.side(train_index).tolist()]

    def lines(self, train_index: Array, remarks: list[str]) -> list[str]:
        """Examples as lines of text, the remarks below each other."""
        names = self.example_names(train_index)
        width = max(map(len, names), default=0)
        return [
            f"{name:<{width}}  ({remark})" if remark else name
            for name, remark in zip(names, remarks, strict=True)
        ]

    def columns(self, train_index: Array) -> dict[str, Array]:
        """Examples as columns of raw ids (and values): ``train_user`` or ``train_head``, ..."""
        found = self._data.columns(train_index)
        return {f"train_{name}": column for name, column in found.items()}

    def labels(self, train_index: Array) -> dict[str, Array]:
        """The labels that the data have of examples, by column."""
        columns = {}
        for name, codes, kind in self.kind.PLACES:
            labels = getattr(self._data, f"{kind}_labels")
            if labels is not None:
                columns[f"train_{name}_label"] = labels[getattr(self._data, codes)[train_index]]
        return columns


class _Pair(Subject):
    kind = Explanations

    def example_names(self, train_index: Array) -> list[str]:
        return example_names(self._data, train_index)

    def _asked(self) -> str:
        data, quantity = self._data, self._quantity
        name = f"{data.user_name(quantity.users[0])} → {data.item_name(quantity.items[0])}"
        over = getattr(quantity, "over", None)
        return name if over is None else f"{name} over {data.item_name(over[0])}"

    def _columns(self) -> dict[str, Any]:
        return {"users": self._quantity.users, "items": self._quantity.items}


class _Triple(Subject):
    kind = TripleExplanations

    def example_names(self, train_index: Array) -> list[str]:
        return [self._data.triple_name(row) for row in train_index.tolist()]

    def _asked(self) -> str:
        data, quantity = self._data, self._quantity
        head, relation, tail = (
            int(codes[0]) for codes in (quantity.heads, quantity.relations, quantity.tails)
        )
        name = data.name(head, relation, tail)
        if quantity.predict_head[0]:
            name += f" ({data.entity_name(head)} as head)"
        over = quantity.over
        return name if over is None else f"{name} over {data.entity_name(int(over.targets[0]))}"

    def _columns(self) -> dict[str, Any]:
        names = ("heads", "relations", "tails", "predict_head")
        columns = {name: getattr(self._quantity, name) for name in names}
        return columns | {"quantity": self._quantity.kind}


def subject_of(quantity: Any, data: Interactions | Triples) -> Subject:
    """What a quantity of a model that was trained on the data is about."""
    return (_Triple if isinstance(data, Triples) else _Pair)(quantity, data)
