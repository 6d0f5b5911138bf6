"""`TripleExplanation`: one prediction of a knowledge graph and the triples that made it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from fastinfluence.attribution.base_explanation import BaseExplanation
from fastinfluence.attribution.paths import MAX_LENGTH, Path, connect

if TYPE_CHECKING:
    from fastinfluence.attribution.triple_explanations import TripleExplanations

__all__ = ["AMPLIFICATION_LIMIT", "TripleExplanation"]

# Training that amplifies small changes more than this is chaotic: its derivatives say little
# about what retraining does.
AMPLIFICATION_LIMIT = 1e3


@dataclass(frozen=True, eq=False, repr=False)
class TripleExplanation(BaseExplanation):
    """One prediction and the training triples behind it: ``ex[i]`` of `TripleExplanations`.

    Shows itself as text; the arrays leave the padding out.
    """

    _one: TripleExplanations  # of this prediction alone

    @property
    def name(self) -> str:
        """The explained triple by name: "brazil — exports → china"."""
        return self._one.data.name(*self._triple)

    @property
    def head(self) -> Any:
        """Raw id of the head."""
        return self._one.data.entity_ids[self._triple[0]]

    @property
    def relation(self) -> Any:
        """Raw id of the relation."""
        return self._one.data.relation_ids[self._triple[1]]

    @property
    def tail(self) -> Any:
        """Raw id of the tail."""
        return self._one.data.entity_ids[self._triple[2]]

    @property
    def asked(self) -> str:
        """Which end of the triple is predicted: "tail" or "head"."""
        return "head" if self._one.predict_head[0] else "tail"

    @property
    def amplification(self) -> float:
        """How much training amplifies small changes of this prediction; NaN where not known."""
        found = self._one.amplification
        return float("nan") if found is None else float(found[0])

    @property
    def example_names(self) -> list[str]:
        """The training triples by name."""
        return [self._one.data.triple_name(row) for row in self.train_index.tolist()]

    @property
    def predicted(self) -> str:
        """The prediction and what it is: "probability 0.61"; of a head it says so."""
        text = f"{self._one.quantity} {self.prediction:.4g}"
        if self.asked == "tail":
            return text
        return f"{text} of {self._one.data.entity_name(self._triple[0])} as head"

    @property
    def headline(self) -> str:
        """The explained triple, and the prediction."""
        return f"{self.name}: {self.predicted}"

    def paths(self, max_length: int = MAX_LENGTH) -> list[Path]:
        """Ways from head to tail over the triples, as `TripleExplanations.paths` returns them."""
        worked = self._worked()
        head, _, tail = self._triple
        return connect(
            self._one.data,
            (head, tail),
            self.train_index[worked],
            self.influence[worked],
            max_length,
        )

    @property
    def _triple(self) -> tuple[int, int, int]:
        one = self._one
        return int(one.heads[0]), int(one.relations[0]), int(one.tails[0])

    def _why_nothing(self) -> str:
        if self.amplification == np.inf:
            return "influence on it is beyond all numbers"
        if len(self) or self._shared().any():
            return f"no training triple {'raised' if self._one.proponents else 'lowered'} it"
        return "no training triple shares its head, its relation or its tail"

    def _shared(self) -> npt.NDArray[np.bool_]:
        """(n_train,) bool: triples that hold one of its entities anywhere, or its relation."""
        data, (head, relation, tail) = self._one.data, self._triple
        ends = (head, tail)
        entity = np.isin(data.heads, ends) | np.isin(data.tails, ends)
        shared: npt.NDArray[np.bool_] = entity | (data.relations == relation)
        return shared

    def _remarks(self, n: int) -> list[str]:
        lines = []
        if paths := self.paths():
            lines = ["  by way of", *(f"    {path!r}" for path in paths[:n])]
        lines += [f"  (no training triple holds {name})" for name in self._unseen()]
        if self.amplification > AMPLIFICATION_LIMIT:
            lines.append(
                f"  (this training run amplifies small changes {self.amplification:.2g} times, "
                f"more than {AMPLIFICATION_LIMIT:g}: retraining may tell otherwise)"
            )
        return lines

    def _unseen(self) -> list[str]:
        """Names of what the query holds and no training triple does."""
        data, (head, relation, tail) = self._one.data, self._triple
        ends = [e for e in dict.fromkeys((head, tail)) if e in data.unseen_entities]
        names = [data.entity_name(entity) for entity in ends]
        if relation in data.unseen_relations:
            names.append(data.relation_name(relation))
        return names
