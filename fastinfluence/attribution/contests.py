"""Contests: is an answer of a model ahead of all others, or of one?"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fastinfluence.attribution.explanation import pair_name
from fastinfluence.attribution.objectives import Margin, Score
from fastinfluence.attribution.queries import query_codes
from fastinfluence.attribution.sets import as_queries, value_of
from fastinfluence.attribution.subjects import subject_of
from fastinfluence.attribution.triple_answers import Candidates
from fastinfluence.data import Triples
from fastinfluence.errors import ParameterError
from fastinfluence.kernels.structures import Links
from fastinfluence.models.base import Model
from fastinfluence.models.link_scores import score_links

__all__ = ["Contest", "Standing", "contest_of"]


class Standing(NamedTuple):
    """How an answer stands in a model."""

    replacement: int  # code of the answer ahead of it, or closest behind
    lead: float
    changed: bool


class Contest(ABC):
    """An answer of a model, against all others that are not known, or against one: by codes.

    Parameters
    ----------
    model : Model
        Fitted.
    query : as for `counterfactual`
        With the answer.
    target : raw id, optional
        The one it is compared with.

    Raises
    ------
    UnknownIdError
    ParameterError
        There is nothing to ask: the answer is not the best, or not ahead of the target; there
        is no other, or the target is known.
    """

    noun: str  # an answer is an ...
    verb: str  # the model ...s it
    where_known: str

    answer: int
    quantity: Any  # score of the query

    def __init__(self, model: Any, query: Any, target: Any) -> None:
        self.data = model.data_
        self._ask(model, query)
        self.target = None if target is None else self._target_code(target)
        self._check(model)

    @abstractmethod
    def _ask(self, model: Any, query: Any) -> None:
        """Look up the query."""

    @abstractmethod
    def code(self, raw: Any) -> npt.NDArray[np.int32]:
        """Codes of answers."""

    @property
    @abstractmethod
    def asked(self) -> dict[str, Any]:
        """Raw ids of the query, by the names of the parts of a counterfactual."""

    @abstractmethod
    def raw(self, answer: int) -> Any:
        """Raw id of an answer."""

    @abstractmethod
    def name(self, answer: int) -> str:
        """The query with an answer, by name."""

    @abstractmethod
    def answer_name(self, answer: int) -> str:
        """An answer by name."""

    @property
    @abstractmethod
    def known(self) -> npt.NDArray[np.int32]:
        """Answers that are no candidates, distinct."""

    @property
    @abstractmethod
    def n_answers(self) -> int:
        """All answers there are, known ones included."""

    @abstractmethod
    def best(self, model: Any, k: int) -> list[int]:
        """The k best candidates."""

    @abstractmethod
    def _behind(self, model: Any, other: int) -> bool:
        """Whether the model predicts less for the answer than for another."""

    @abstractmethod
    def margin(self, others: list[int]) -> Margin:
        """The lead over each of some others."""

    @abstractmethod
    def _holds(self, train_index: npt.NDArray[np.int64], answer: int) -> npt.NDArray[np.bool_]:
        """Whether examples are of an answer."""

    def standing(self, model: Model) -> Standing:
        """How the answer stands, by the scores that the model predicts by."""
        if self.target is None:
            first, second = self.best(model, 2)
            changed = first != self.answer
            other = first if changed else second
        else:
            other, changed = self.target, self._behind(model, self.target)
        return Standing(other, self.lead(model, other), changed)

    def lead(self, model: Model, other: int) -> float:
        """Score of the answer minus that of another."""
        quantity = self.margin([other]).bind(self.data, model.trajectory_.recipe)
        return value_of(quantity, model)

    def replacements(self, model: Model, n: int) -> list[int]:
        """At most n others to try."""
        if self.target is not None:
            return [self.target]
        return self.best(model, min(1 + n, self.n_answers - len(self.known)))[1:]

    def lines(self, train_index: npt.NDArray[np.int64], replacement: int) -> list[str]:
        """Examples as lines of text, with what they have to do with it."""
        subject = subject_of(self.quantity, self.data)
        remarks = [
            f"of the {self.noun} ahead" if of_other else remark
            for of_other, remark in zip(
                self._holds(train_index, replacement), subject.remarks(train_index), strict=True
            )
        ]
        return subject.lines(train_index, remarks)

    def _target_code(self, target: Any) -> int:
        codes = self.code(target)
        if len(codes) != 1:
            raise ParameterError(f"target is one {self.noun}, not {len(codes):,}")
        code = int(codes[0])
        name = f"the target, {self.answer_name(code)},"
        if code == self.answer:
            raise ParameterError(f"{name} is the query's own {self.noun}")
        if code in self.known:
            raise ParameterError(
                f"{name} cannot be {self.verb}ed: {self.name(code)} is in {self.where_known}"
            )
        return code

    def _check(self, model: Model) -> None:
        name = self.name(self.answer)
        if self.target is not None:
            if self._behind(model, self.target):
                raise ParameterError(
                    f"the target, {self.answer_name(self.target)}, is ahead of {name} already"
                )
            return
        if self.n_answers - len(self.known) < 2:
            raise ParameterError(f"{name} is all that is left to {self.verb}")
        if (best := self.best(model, 1)[0]) != self.answer:
            raise ParameterError(
                f"{name} is not what is {self.verb}ed: that is {self.name(best)}; explain that, "
                "or give the target to compare with"
            )


class _ItemContest(Contest):
    """An item, among those that the user has no example of."""

    noun, verb, where_known = "item", "recommend", "the training data"

    def _ask(self, model: Any, query: Any) -> None:
        data = self.data
        users, items = query_codes(as_queries(query), data)
        _check_one(len(users))
        self._user, self.answer = int(users[0]), int(items[0])
        self._pair = data.user_ids[self._user], data.item_ids[self.answer]
        self.quantity = Score([self._pair]).bind(data, model.trajectory_.recipe)
        self._known = np.unique(data.items[data.users == self._user])
        if self.answer in self._known:
            raise ParameterError(
                f"{self.name(self.answer)} is in the training data, so it is no recommendation"
            )

    def code(self, raw: Any) -> npt.NDArray[np.int32]:
        codes: npt.NDArray[np.int32] = self.data.item_index(raw)
        return codes

    @property
    def asked(self) -> dict[str, Any]:
        user, item = self._pair
        return {"user": user.item(), "item": item.item()}

    def raw(self, answer: int) -> Any:
        return self.data.item_ids[answer].item()

    def name(self, answer: int) -> str:
        return pair_name(self.data, self._user, answer)

    def answer_name(self, answer: int) -> str:
        return str(self.data.item_name(answer))

    @property
    def known(self) -> npt.NDArray[np.int32]:
        return self._known

    @property
    def n_answers(self) -> int:
        return int(self.data.n_items)

    def best(self, model: Any, k: int) -> list[int]:
        items, _ = model.recommend(self._pair[0], k)
        codes: list[int] = self.code(items[0]).tolist()
        return codes

    def _behind(self, model: Any, other: int) -> bool:
        own, its = model.predict(self._pair[0], self.data.item_ids[[self.answer, other]])
        return bool(own < its)

    def margin(self, others: list[int]) -> Margin:
        return Margin([self._pair] * len(others), self.data.item_ids[others])

    def _holds(self, train_index: npt.NDArray[np.int64], answer: int) -> npt.NDArray[np.bool_]:
        found: npt.NDArray[np.bool_] = self.data.items[train_index] == answer
        return found


class _EntityContest(Contest):
    """An entity in the place asked for, among those that are not known there."""

    noun, verb, where_known = "entity", "predict", "the training or validation triples"

    def _ask(self, model: Any, query: Any) -> None:
        objective = query if isinstance(query, Score) else Score(as_queries(query))
        objective = objective.answered(model)
        self.quantity = objective.bind(self.data, model.trajectory_.recipe)
        _check_one(len(self.quantity))
        self._triple = {name: int(code[0]) for name, code in self.quantity.codes.items()}
        self._place = "head" if self._triple.pop("predict_head") else "tail"
        self.answer = self._triple[self._place]
        self._candidates = Candidates(self.data, model.graph_, self.quantity)

    def code(self, raw: Any) -> npt.NDArray[np.int32]:
        codes: npt.NDArray[np.int32] = self.data.entity_index(raw)
        return codes

    @property
    def asked(self) -> dict[str, Any]:
        columns = self.quantity.columns(self.data)
        return {name: column[0].item() for name, column in columns.items()}

    def raw(self, answer: int) -> Any:
        return self.data.entity_ids[answer].item()

    def name(self, answer: int) -> str:
        name = str(self.data.name(**(self._triple | {self._place: answer})))
        return name if self._place == "tail" else f"{name} ({self.answer_name(answer)} as head)"

    def answer_name(self, answer: int) -> str:
        return str(self.data.entity_name(answer))

    @property
    def known(self) -> npt.NDArray[np.int32]:
        return self._candidates.others[0]

    @property
    def n_answers(self) -> int:
        return int(self.data.n_entities)

    def best(self, model: Any, k: int) -> list[int]:
        codes: list[int] = self._candidates.best(model.trajectory_.end.tables, k)[0].tolist()
        return codes

    def _behind(self, model: Any, other: int) -> bool:
        both = Links(*(column.repeat(2) for column in self.quantity.links))
        both.targets[1] = other
        own, its = score_links(model.graph_, model.trajectory_.end.tables, both)
        return bool(own < its)

    def margin(self, others: list[int]) -> Margin:
        asked = self.asked
        side = asked.pop("predicted")
        return Margin([tuple(asked.values())] * len(others), self.data.entity_ids[others], side)

    def _holds(self, train_index: npt.NDArray[np.int64], answer: int) -> npt.NDArray[np.bool_]:
        heads, tails = self.data.heads[train_index], self.data.tails[train_index]
        found: npt.NDArray[np.bool_] = (heads == answer) | (tails == answer)
        return found


def contest_of(model: Any, query: Any, target: Any) -> Contest:
    """The contest that a query asks about."""
    kind = _EntityContest if isinstance(model.data_, Triples) else _ItemContest
    return kind(model, query, target)


def _check_one(n: int) -> None:
    if n != 1:
        raise ParameterError(f"a counterfactual is of one query, not of {n:,}")
