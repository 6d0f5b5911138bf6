"""`TripleExplanations`: which training triples made each prediction, and by how much."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from fastinfluence.attribution.base_explanations import BaseExplanations, Columns, Place
from fastinfluence.attribution.path_picture import draw_paths
from fastinfluence.attribution.paths import MAX_LENGTH, Path
from fastinfluence.attribution.triple_explanation import AMPLIFICATION_LIMIT, TripleExplanation
from fastinfluence.storage import tables

if TYPE_CHECKING:
    from fastinfluence.data import Triples

__all__ = ["AMPLIFICATION_LIMIT", "TripleExplanations"]

# Entities shared, without and with the relation: the side, the words for it, the color. The
# paler color is that of the entities alone.
_SIDES = {
    "other": ("nothing in common", "#999999"),
    "same head": ("same head", "#8fc1e3"),
    "same tail": ("same tail", "#f5cf80"),
    "head and tail": ("same head and tail", "#8fd3bd"),
    "head as tail": ("its head, as tail", "#e3b0cd"),
    "tail as head": ("its tail, as head", "#edae85"),
    "reversed": ("head and tail reversed", "#b9b3dd"),
    "same relation": ("same relation", "#444444"),
    "head and relation": ("same head and relation", "#0072b2"),
    "relation and tail": ("same relation and tail", "#e69f00"),
    "this very triple": ("this very triple", "#009e73"),
    "relation, head as tail": ("same relation; its head, as tail", "#cc79a7"),
    "relation, tail as head": ("same relation; its tail, as head", "#d55e00"),
    "relation, reversed": ("same relation, head and tail reversed", "#5e4fa2"),
}
_IN_WORDS = {side: words for side, (words, _) in _SIDES.items()}
_COLORS = {side: color for side, (_, color) in _SIDES.items()}
_ENDS = np.array(["tail", "head"])


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class TripleExplanations(BaseExplanations[TripleExplanation]):
    """The k most influential training triples of each of n predictions of a knowledge graph.

    A sequence: ``len(ex)`` is n, ``ex[i]`` one prediction's `TripleExplanation`, ``ex[10:20]``
    TripleExplanations again. Influence is positive where training on the triple raised the
    prediction.

    Attributes
    ----------
    heads, relations, tails : (n,) int32
        Codes of the explained triples in `data`.
    predict_head : (n,) bool
        Whether the head is predicted, given relation and tail; else the tail is.
    prediction : (n,) float
    quantity : str
        What `prediction` is: "score", "log-probability", "probability", "margin", ...
    train_index : (n, k) int
        Rows of `data`, most influential first, -1 where a query has fewer than k.
    influence : (n, k) float
        NaN where a query has fewer than k.
    total_influence : (n,) float, or None
        Sum of the absolute influence of all candidates, shown or not.
    amplification : (n,) float, or None
        How many times training amplifies small changes on their way to the prediction; NaN
        where that is not known. Above `AMPLIFICATION_LIMIT`, 1000, the
        explanation carries a note.
    data : Triples
        The training data.
    method : str
        The method that found them.
    units : {"effect", "rank"}
        Whether influence is in the units of the prediction, or only orders the triples.
    proponents : bool
        Whether the triples that raised the prediction come first, or those that lowered it.
    side : (n, k) str
        What the training triple has in common with the query, "" where there is none; see Notes.

    Notes
    -----
    `side` says which entities of the query the training triple holds, and where, and whether
    its relation is the same:

    ============================  ===================  ========================
    entities                      another relation     the same relation
    ============================  ===================  ========================
    none                          "other"              "same relation"
    the head, in its place        "same head"          "head and relation"
    the tail, in its place        "same tail"          "relation and tail"
    both, in their places         "head and tail"      "this very triple"
    the head, in the other place  "head as tail"       "relation, head as tail"
    the tail, in the other place  "tail as head"       "relation, tail as head"
    both, in each other's place   "reversed"           "relation, reversed"
    ============================  ===================  ========================

    Where several rows hold, as of self loops, an entity in its own place counts before one in
    the other.

    The columns of tables and files: ``query`` (position in this object), ``head``, ``relation``,
    ``tail``, ``predicted`` ("tail" or "head"), ``prediction``, ``rank`` (from 1),
    ``train_index``, ``train_head``, ``train_relation``, ``train_tail``, ``influence``, ``side``,
    ``coverage``, and ``head_label``, ``train_head_label``, ``relation_label``,
    ``train_relation_label``, ``tail_label``, ``train_tail_label`` where the data have labels.
    Entities and relations are raw ids.
    """

    EXPLAINED = "triple"
    PLACES = (
        Place("head", "heads", "entity"),
        Place("relation", "relations", "relation"),
        Place("tail", "tails", "entity"),
    )
    SIDES = np.array(["", *_SIDES])
    IN_WORDS = _IN_WORDS
    COLORS = _COLORS
    _CHECKED = ("heads", "relations", "tails", "entity_ids", "relation_ids")
    _ROWS = ("predict_head",)
    _OPTIONAL = (*BaseExplanations._OPTIONAL, "amplification")
    _SETTINGS = ("method", "units", "proponents", "quantity")

    heads: npt.NDArray[np.int32]
    relations: npt.NDArray[np.int32]
    tails: npt.NDArray[np.int32]
    predict_head: npt.NDArray[np.bool_]
    data: Triples
    quantity: str
    amplification: npt.NDArray[np.floating[Any]] | None = None

    # ---------------------------------------------------------------- paths

    def paths(self, i: int = 0, max_length: int = MAX_LENGTH) -> list[Path]:
        """Find the ways from head to tail over the triples that explain prediction `i`.

        Only triples that worked in the direction asked for are used, as in `because`, in either
        direction. A way leads through other entities, none of them twice; where several triples
        link the same two entities, the most influential one stands for them. A self loop has
        no paths.

        Parameters
        ----------
        i : int, default 0
        max_length : {2, 3}, default 3
            The most triples in a path.

        Returns
        -------
        list of Path
            The shortest first; of one length, the most influential in sum.

        Raises
        ------
        ParameterError
            Another `max_length`.
        """
        return self[i].paths(max_length)

    def plot_paths(self, i: int = 0, ax: Any = None) -> Any:
        """Draw the paths of prediction `i`: its head on the left, its tail on the right.

        Arrows are training triples, labelled by their relation, as wide as they are
        influential; blue ones raised the prediction, red ones lowered it.

        Parameters
        ----------
        i : int, default 0
        ax : matplotlib Axes, optional
            Where to draw; a new figure by default.

        Returns
        -------
        matplotlib Axes

        Raises
        ------
        MissingExtraError
            matplotlib is not installed.
        """
        one = self[i]
        ends = int(self.heads[i]), int(self.tails[i])
        return draw_paths(one.paths(), ends, self.data, one.headline, ax)

    # ---------------------------------------------------------------- of this family

    def _single(self) -> TripleExplanation:
        return TripleExplanation(self)

    def _common(self, example: npt.NDArray[np.integer[Any]]) -> npt.NDArray[np.int8]:
        data = self.data
        head, tail = self.heads[:, None], self.tails[:, None]
        train_head, train_tail = data.heads[example], data.tails[example]
        same_head, same_tail = train_head == head, train_tail == tail
        as_tail, as_head = train_tail == head, train_head == tail
        entities = np.select(
            [same_head & same_tail, same_head, same_tail, as_tail & as_head, as_tail, as_head],
            [np.int8(number) for number in (3, 1, 2, 6, 4, 5)],
            np.int8(0),
        )
        relation = data.relations[example] == self.relations[:, None]
        side: npt.NDArray[np.int8] = np.int8(1) + entities + np.int8(7) * relation
        return side

    def _query_columns(self, query: npt.NDArray[np.integer[Any]]) -> Columns:
        return {"predicted": tables.encoded(_ENDS, self.predict_head[query].astype(np.int8))}

    def _facts(self) -> list[str]:
        facts = [*super()._facts(), f"quantity={self.quantity!r}"]
        if self.amplification is not None:
            marked = np.count_nonzero(self.amplification > AMPLIFICATION_LIMIT)
            if marked:
                facts.append(f"{marked:,} amplified more than {AMPLIFICATION_LIMIT:g} times")
        return facts
