"""Which entities a question of a knowledge graph may be answered with, and which answers best."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import numpy as np
import numpy.typing as npt

from fastinfluence.attribution.triple_quantity import TripleQuantity
from fastinfluence.data import Triples
from fastinfluence.kernels.structures import Exclusions, Graph, GraphTables, Links
from fastinfluence.models.link_scores import top_entities

__all__ = ["Candidates"]

Codes = npt.NDArray[np.int32]


class Candidates:
    """The entities that compete for the place asked for in each of n queries.

    The query's own, and all that no training or validation triple holds there. A triple that is
    left out of training keeps its entity out all the same: an answer does not change because
    a known one became free.

    Parameters
    ----------
    data : Triples
    graph : Graph
    quantity : TripleQuantity
        About triples.

    Attributes
    ----------
    others : list of n (m,) int32
        Codes of the entities that are no candidates, ascending.
    """

    def __init__(self, data: Triples, graph: Graph, quantity: TripleQuantity) -> None:
        assert quantity.links is not None
        self._graph, self._links = graph, quantity.links
        self.others = list(_known_others(data, quantity))
        ends = np.cumsum([0, *map(len, self.others)])
        self._excluded = Exclusions(ends[:-1], ends[1:], np.concatenate(self.others))

    @property
    def counts(self) -> npt.NDArray[np.int64]:
        """(n,) int64: candidates of each query, at least 1."""
        return self._graph.n_entities - np.array([len(known) for known in self.others])

    def best(self, tables: GraphTables, k: int = 1) -> Codes:
        """Codes (n, k) of the best candidates; ties by code.

        Raises
        ------
        ParameterError
            A query has fewer than k.
        """
        return top_entities(self._graph, tables, self._links, k, excluded=self._excluded)[0]

    def links(self, answers: Codes) -> Links:
        """The same questions with other answers (n,)."""
        return self._links._replace(targets=answers)


def _known_others(data: Triples, quantity: TripleQuantity) -> Iterator[Codes]:
    """Yield, for each query, the known answers other than its own."""
    known = data.taught
    for head, relation, tail, predict_head in zip(*quantity.codes.values(), strict=True):
        given, own = (tail, head) if predict_head else (head, tail)
        side: Literal["tail", "head"] = "head" if predict_head else "tail"
        (start,), (stop,) = known.answers(side, [given], [relation])
        answers = known.known(side).answers[start:stop]
        yield answers[answers != own]
