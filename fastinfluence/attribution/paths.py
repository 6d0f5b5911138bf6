"""`Path`: triples that lead from one entity to another."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt

from fastinfluence.errors import ParameterError

if TYPE_CHECKING:
    from fastinfluence.data import Triples

__all__ = ["MAX_LENGTH", "Path", "connect"]

MAX_LENGTH = 3  # longer chains of triples explain nothing to anyone

Links: TypeAlias = dict[int, dict[int, int]]  # of an entity: its neighbours, and by which place


@dataclass(frozen=True, eq=False, repr=False)
class Path:
    """Training triples, end to end, from the head of a query to its tail.

    Shows itself as text: "brazil —ally→ usa ←exports— china  (+0.12)", where an arrow points
    from the head of a triple to its tail.

    Attributes
    ----------
    entities : (m + 1,) int32
        Codes of the entities it passes, the query's head first, its tail last.
    train_index : (m,) int
        Rows of `data`, in the order of the path.
    forward : (m,) bool
        Whether the path takes a triple from its head to its tail, or the other way.
    influences : (m,) float
        Influence of each triple on the prediction.
    data : Triples
        The training data.
    """

    entities: npt.NDArray[np.int32]
    train_index: npt.NDArray[np.integer[Any]]
    forward: npt.NDArray[np.bool_]
    influences: npt.NDArray[np.floating[Any]]
    data: Triples

    def __len__(self) -> int:
        return len(self.train_index)

    @property
    def influence(self) -> float:
        """Sum of the influences of its triples."""
        return float(self.influences.sum(dtype=np.float64))

    @property
    def relation_names(self) -> list[str]:
        """The relations by name, in the order of the path."""
        return [self.data.relation_name(r) for r in self.data.relations[self.train_index].tolist()]

    def __str__(self) -> str:
        first, *others = map(self.data.entity_name, self.entities.tolist())
        steps = zip(self.relation_names, self.forward.tolist(), others, strict=True)
        return first + "".join(
            f" —{relation}→ {entity}" if forward else f" ←{relation}— {entity}"
            for relation, forward, entity in steps
        )

    def __repr__(self) -> str:
        return f"{self}  ({self.influence:+.3g})"


def connect(
    data: Triples,
    ends: tuple[int, int],
    train_index: npt.NDArray[np.integer[Any]],
    influence: npt.NDArray[np.floating[Any]],
    max_length: int,
) -> list[Path]:
    """Find the ways from one entity to another over some triples, through other entities.

    No way passes an entity twice. Where several triples link the same two entities, the one of
    most absolute influence, the first of equals, stands for them.

    Parameters
    ----------
    data : Triples
    ends : (start, goal)
        Codes of entities; from an entity to itself there is no way.
    train_index : (m,) int
        The triples that may be used, most influential first.
    influence : (m,) float
    max_length : {2, 3}
        The most triples in a way.

    Returns
    -------
    list of Path
        The shortest first; of one length, that of most absolute influence in sum.

    Raises
    ------
    ParameterError
        Another `max_length`.
    """
    if isinstance(max_length, bool) or max_length not in range(2, MAX_LENGTH + 1):
        raise ParameterError(f"max_length must be 2 or {MAX_LENGTH}, not {max_length!r}")
    if ends[0] == ends[1]:
        return []
    heads, tails = data.heads[train_index], data.tails[train_index]
    links = _links(heads.tolist(), tails.tolist(), np.argsort(-np.abs(influence), kind="stable"))
    paths = []
    for way in _ways(links, [ends[0]], ends[1], max_length):
        places = [links[a][b] for a, b in pairwise(way)]
        forward = heads[places] == way[:-1]
        entities = np.array(way, np.int32)
        paths.append(Path(entities, train_index[places], forward, influence[places], data))
    return sorted(paths, key=lambda path: (len(path), -abs(path.influence)))


def _links(heads: list[int], tails: list[int], order: npt.NDArray[np.intp]) -> Links:
    """Which entities are linked, by the first triple of the order that links them."""
    links: Links = {}
    for place in order.tolist():
        head, tail = heads[place], tails[place]
        links.setdefault(head, {}).setdefault(tail, place)
        links.setdefault(tail, {}).setdefault(head, place)
    return links


def _ways(links: Links, way: list[int], goal: int, n_left: int) -> Iterator[list[int]]:
    """Continue a way to the goal by at most so many links, directly only from elsewhere."""
    for entity in links.get(way[-1], {}):
        if entity == goal:
            if len(way) > 1:
                yield [*way, goal]
        elif n_left > 1 and entity not in way:
            yield from _ways(links, [*way, entity], goal, n_left - 1)
