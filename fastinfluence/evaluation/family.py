"""What evaluation has to know of a kind of data: pairs of users and items, or triples."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, TypeAlias

import numpy as np
import numpy.typing as npt

from fastinfluence.attribution.objective import QueryObjective

__all__ = ["BestAnswers", "Codes", "Family", "Mask", "draw", "other_answers"]

Codes = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]
BestAnswers: TypeAlias = Callable[[Any, float], npt.NDArray[np.integer[Any]]]


class Family(ABC):
    """Neighbours of queries, the answers they compete with, and what can be made of the data.

    Attributes
    ----------
    deleted : kind of QueryObjective
        What plain queries mean where explanations are deleted.
    """

    deleted: ClassVar[type[QueryObjective]]

    @abstractmethod
    def adjacent(self, model: Any, quantity: Any, train_index: Codes) -> Mask:
        """Whether (n_queries, m) the example touches what the query depends on directly."""

    @abstractmethod
    def neighbours(self, model: Any, quantity: Any) -> list[Codes]:
        """Training indices with a weight that are adjacent to each query, ascending."""

    @abstractmethod
    def sample_queries(
        self, model: Any, n: int, generator: np.random.Generator
    ) -> list[tuple[Any, ...]]:
        """Draw n predictions worth explaining, as raw ids."""

    @abstractmethod
    def best_answers(self, model: Any, quantity: Any) -> BestAnswers:
        """Return what gives, of tables and mean, the code (n,) of each query's best answer.

        Of the answers that are not known already, in the data of the model, what is left out
        included: an answer does not change because a known one became free. -1 where there is
        none. Called from several threads at once.

        Raises
        ------
        ParameterError
            The queries are not about pairs, or not about triples.
        """

    @abstractmethod
    def corrupted(
        self, data: Any, chosen: Codes, generator: np.random.Generator
    ) -> tuple[Any, Codes]:
        """Replace chosen examples by noise; the data then, and those that could be replaced.

        Raises
        ------
        DataError
            None could.
        """


def draw(examples: Codes, n: int, generator: np.random.Generator) -> Codes:
    """Draw n of some examples, or all where there are fewer, each at most once."""
    return generator.choice(examples, min(n, len(examples)), replace=False)


def other_answers(
    groups: npt.NDArray[np.integer[Any]],
    known: Callable[[int], npt.NDArray[np.integer[Any]]],
    answers: npt.NDArray[np.integer[Any]],
    generator: np.random.Generator,
) -> tuple[Codes, npt.NDArray[np.int32]]:
    """Draw an answer that is not known for each of m examples, in a group none twice.

    Parameters
    ----------
    groups : (m,) int
        Examples of one group have the same known answers.
    known : callable
        Known answers of a group.
    answers : (l,) int
        What to draw from.
    generator : Generator

    Returns
    -------
    places : (p,) int64
        Of the examples that could be given one, group by group.
    drawn : (p,) int32
    """
    places, drawn = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for group in np.unique(groups).tolist():
        own = np.flatnonzero(groups == group)
        given = draw(np.setdiff1d(answers, known(group)), len(own), generator)
        places.append(own[: len(given)])
        drawn.append(given)
    return np.concatenate(places), np.concatenate(drawn).astype(np.int32)
