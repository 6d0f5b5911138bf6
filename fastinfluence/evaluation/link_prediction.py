"""How well a knowledge-graph model predicts held-out triples: filtered ranks, MRR, Hits@k."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from fastinfluence import dispatch
from fastinfluence.data import Triples
from fastinfluence.errors import DataError, ParameterError, plural
from fastinfluence.evaluation.display import number, text_table
from fastinfluence.kernels.structures import Exclusions, Links
from fastinfluence.models.base import trajectory_of
from fastinfluence.models.knowledge_graph import KnowledgeGraphModel
from fastinfluence.models.link_scores import Counts, count_ranks, pack_entities
from fastinfluence.progress import progress
from fastinfluence.storage import tables
from fastinfluence.training import Trajectory

__all__ = ["LinkPrediction", "RelationTable", "link_prediction"]

Floats = npt.NDArray[np.float64]
Side: TypeAlias = Literal["tail", "head"]

_SIDES: dict[str, tuple[Side, ...]] = {
    "both": ("tail", "head"),
    "tail": ("tail",),
    "head": ("head",),
}
_HITS = (1, 3, 10)
_QUESTIONS_AT_ONCE = 8192
_RELATIONS_SHOWN = 20
_NAME_SHOWN = 40  # characters: the end of a long name tells most


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class LinkPrediction:
    """Ranks of n triples among all entities. Shows itself as a table.

    Attributes
    ----------
    triples : Triples
        The triples asked about, in the codes of the model's data.
    sides : tuple of s str
        What was asked for: ``("tail", "head")``, or one of them.
    ranks : (n, s) float64
        ``1 + candidates with a higher score + half of the others with the same``: the mean over
        all orders of tied candidates, which is called realistic.
    ties : (n, s) int64
        Other candidates with the same score.
    unseen : (n,) bool
        Triples with an entity or relation that no training triple holds: its row is where
        training started.
    filtered : bool
        Whether other known answers were no candidates.
    """

    triples: Triples
    sides: tuple[Side, ...]
    ranks: Floats
    ties: npt.NDArray[np.int64]
    unseen: npt.NDArray[np.bool_]
    filtered: bool

    @property
    def optimistic(self) -> Floats:
        """(n, s): ranks if every tie goes to the right answer."""
        return self.ranks - 0.5 * self.ties

    @property
    def pessimistic(self) -> Floats:
        """(n, s): ranks if every tie goes to the other."""
        return self.ranks + 0.5 * self.ties

    @property
    def n_unseen(self) -> int:
        """Number of triples with an entity or relation that no training triple holds."""
        return int(np.count_nonzero(self.unseen))

    @property
    def mrr(self) -> float:
        """Mean reciprocal rank, of all triples and sides."""
        return float((1.0 / self.ranks).mean())

    def hits(self, k: int) -> float:
        """Share of the questions whose answer ranks among the first k.

        Raises
        ------
        ParameterError
            k < 1.
        """
        if k < 1:
            raise ParameterError(f"k must be at least 1, not {k!r}")
        return float((self.ranks <= k).mean())

    def side(self, side: Side) -> LinkPrediction:
        """The part that asked for ``"tail"`` or for ``"head"``.

        Raises
        ------
        ParameterError
            It was not asked for.
        """
        if side not in self.sides:
            asked = " and ".join(map(repr, self.sides))
            raise ParameterError(f"side={side!r} was not asked for, only {asked}")
        column = [self.sides.index(side)]
        return replace(self, sides=(side,), ranks=self.ranks[:, column], ties=self.ties[:, column])

    def seen_only(self) -> LinkPrediction:
        """The part whose entities and relations training triples hold.

        Entities that none holds remain candidates.

        Raises
        ------
        DataError
            There is no such triple.
        """
        if self.unseen.all():
            raise DataError("every triple holds an entity or relation that no training triple has")
        kept = ~self.unseen
        return replace(
            self,
            triples=self.triples.select(kept),
            ranks=self.ranks[kept],
            ties=self.ties[kept],
            unseen=self.unseen[kept],
        )

    def per_relation(self) -> RelationTable:
        """MRR and Hits@k of each relation, the one with most triples first."""
        relations = self.triples.relations
        counts = np.bincount(relations, minlength=self.triples.n_relations)
        codes = np.argsort(-counts, kind="stable")[: np.count_nonzero(counts)]

        def mean(values: npt.NDArray[Any]) -> Floats:
            totals = np.bincount(relations, values.mean(axis=1), len(counts))
            return totals[codes] / counts[codes]

        columns = {"mrr": mean(1.0 / self.ranks)}
        columns |= {f"hits_{k}": mean(self.ranks <= k) for k in _HITS}
        if len(self.sides) > 1:
            for place, side in enumerate(self.sides):
                columns[f"mrr_{side}"] = mean(1.0 / self.ranks[:, [place]])
        names = [self.triples.relation_name(code) for code in codes]
        ids = self.triples.relation_ids[codes]
        return RelationTable(names, {"relation": ids, "triples": counts[codes]} | columns)

    def __repr__(self) -> str:
        n, how = len(self.triples), "filtered" if self.filtered else "not filtered"
        parts: dict[str, LinkPrediction] = {side: self.side(side) for side in self.sides}
        if len(parts) > 1:
            parts = {"both": self} | parts
        lines = [
            [name, number(part.mrr), *(number(part.hits(k)) for k in _HITS)]
            for name, part in parts.items()
        ]
        among = f"{n:,} {plural('triple', n)} among {self.triples.n_entities:,} entities"
        heads = ["asked for", "MRR", *(f"Hits@{k}" for k in _HITS)]
        text = [f"Link prediction of {among}, {how}", text_table(heads, lines)]
        if self.n_unseen:
            text.append(
                f"{self.n_unseen:,} {plural('triple', self.n_unseen)} with an entity or relation "
                "that no training triple holds: counted here, left out by seen_only()"
            )
        return "\n".join(text)

    def to_dict(self) -> dict[str, npt.NDArray[Any]]:
        """Columns head, relation, tail (raw ids), side and rank: a row a triple and side."""
        s = len(self.sides)
        columns = {name: ids.repeat(s) for name, ids in self.triples.columns().items()}
        side = np.tile(np.array(self.sides), len(self.triples))
        return columns | {"side": side, "rank": self.ranks.ravel()}

    def to_pandas(self) -> Any:
        """Return `to_dict` as a `pandas.DataFrame`."""
        return tables.to_pandas(self.to_dict())


@dataclass(frozen=True, eq=False, repr=False)
class RelationTable:
    """Link prediction relation by relation. Shows itself as a table.

    Attributes
    ----------
    names : list of str
        Of the relations, for people.
    columns : dict of str to array
        ``relation`` (raw ids), ``triples`` (how many), ``mrr``, ``hits_1``, ``hits_3``,
        ``hits_10``, and ``mrr_tail`` and ``mrr_head`` where both were asked for.
    """

    names: list[str]
    columns: dict[str, npt.NDArray[Any]]

    def __repr__(self) -> str:
        figures = {name: column for name, column in self.columns.items() if name != "relation"}
        heads = [n.replace("hits_", "Hits@").replace("mrr", "MRR") for n in figures]
        lines = [
            [_short(name), f"{n:,}", *map(number, numbers)]
            for name, n, *numbers in zip(self.names, *figures.values(), strict=True)
        ]
        text = text_table(
            ["relation", *(head.replace("_", " ") for head in heads)], lines[:_RELATIONS_SHOWN]
        )
        more = len(lines) - _RELATIONS_SHOWN
        return text if more <= 0 else f"{text}\n… and {more:,} more"

    def to_dict(self) -> dict[str, npt.NDArray[Any]]:
        """Return the columns: numpy arrays by name."""
        return dict(self.columns)

    def to_pandas(self) -> Any:
        """Return the columns as a `pandas.DataFrame`."""
        return tables.to_pandas(self.columns)


def link_prediction(
    model: KnowledgeGraphModel,
    triples: Triples | str | None = None,
    *,
    predict: str = "both",
    filtered: bool = True,
    n_threads: int | None = None,
    device: str = "auto",
    batch_size: int | None = None,
    show_progress: bool | None = None,
) -> LinkPrediction:
    """Rank the missing end of held-out triples among all entities.

    Parameters
    ----------
    model : KnowledgeGraphModel
        Fitted.
    triples : Triples, "test" or "validation", optional
        What to predict: a split of the model's data, by default ``test``, or other triples of
        its entities and relations.
    predict : {"both", "tail", "head"}
        Which end is missing.
    filtered : bool, default True
        Leave out what is known, from training, validation and test together, to be another
        right answer.
    n_threads : int, optional
        All processors by default; it never changes a rank.
    device : {"auto", "cpu", "cuda"} or "torch:<device>", default "auto"
    batch_size : int, optional
        Questions whose vectors are in memory at a time, 8192 by default.
    show_progress : bool, optional
        None shows a progress bar at a terminal.

    Returns
    -------
    LinkPrediction

    Raises
    ------
    NotFittedError
    ParameterError
        No model of a knowledge graph, or one that was trained to predict tails alone and is
        asked for heads; an argument out of range.
    DataError
        The data have no such split.
    UnknownIdError
        An entity or relation the model's data do not have.
    DeviceError
        The device is not there, or has not memory enough for all entities and a batch.

    Notes
    -----
    One question costs ``n_entities * d`` multiplications, and no matrix of scores exists.
    Ties count half, as in PyKEEN's realistic rank (Berrendorf et al., On the ambiguity of
    rank-based evaluation of entity alignment or link prediction methods, 2020). Where held-out
    triples have strangers to the training data PyKEEN drops them, and the strangers as
    candidates: ``seen_only()`` comes closest.
    """
    _check(model, predict, batch_size)
    trajectory = trajectory_of(model, "evaluating it")
    asked, sides = _resolve(trajectory.data, triples), _SIDES[predict]
    codes = asked.heads, asked.relations, asked.tails
    questions = {side: model.links(*codes, predict=side) for side in sides}
    backend, _ = dispatch.choose(device, ("cpu", "cuda", "torch"))
    threads, step = dispatch.thread_count(n_threads), batch_size or _QUESTIONS_AT_ONCE
    counts = _count(trajectory, asked, questions, filtered, threads, backend, step, show_progress)
    greater, ties = (np.stack(columns, axis=1) for columns in zip(*counts, strict=True))
    return LinkPrediction(
        triples=asked,
        sides=sides,
        ranks=1.0 + greater + 0.5 * ties,
        ties=ties,
        unseen=_unseen(trajectory.data, asked),
        filtered=filtered,
    )


def _count(
    trajectory: Trajectory,
    asked: Triples,
    questions: dict[Side, Links],
    filtered: bool,
    threads: int,
    backend: str,
    step: int,
    show_progress: bool | None,
) -> list[Counts]:
    """Counts of every side, in the order of `questions`."""
    data, graph, rows = trajectory.data, trajectory.program.graph, trajectory.end.tables
    packed = dispatch.memory(backend).put(pack_entities(graph, rows, threads))
    total = len(asked) * len(questions)
    sides = []
    with progress(total, description="ranking", show=show_progress, unit="question") as bar:
        for side, links in questions.items():
            blocks = []
            for start in range(0, len(asked), step):
                block = slice(start, min(start + step, len(asked)))
                some = Links(*(column[block] for column in links))
                known = _known(data, asked, block, side) if filtered else None
                found = count_ranks(
                    graph, rows, packed, some, excluded=known, n_threads=threads, device=backend
                )
                blocks.append(found)
                bar.update(block.stop - start)
            sides.append(Counts(*map(np.concatenate, zip(*blocks, strict=True))))
    return sides


def _short(name: str) -> str:
    return name if len(name) <= _NAME_SHOWN else "…" + name[1 - _NAME_SHOWN :]


def _check(model: object, predict: str, batch_size: int | None) -> None:
    if not isinstance(model, KnowledgeGraphModel):
        raise ParameterError(
            f"link prediction needs a DistMult or ComplEx, not {type(model).__name__}"
        )
    if predict not in _SIDES:
        raise ParameterError(f"predict={predict!r} is not known: use 'both', 'tail' or 'head'")
    if batch_size is not None and batch_size < 1:
        raise ParameterError(f"batch_size must be at least 1, not {batch_size!r}")


def _resolve(data: Triples, triples: Triples | str | None) -> Triples:
    """The triples to predict, in the codes of `data`."""
    if isinstance(triples, Triples):
        return _recoded(data, triples)
    name = "test" if triples is None else triples
    if name not in ("test", "validation"):
        raise ParameterError(f"triples={name!r} is not known: use 'test', 'validation' or Triples")
    split: Triples | None = getattr(data, name)
    if split is None:
        raise DataError(
            f"the data of the model have no {name} triples: give them to Triples.from_arrays or "
            f"fi.read_triples as {name}=..., or pass Triples to predict"
        )
    return split


def _recoded(data: Triples, triples: Triples) -> Triples:
    raw = triples.columns()
    return Triples(
        data.entity_index(raw["head"]),
        data.relation_index(raw["relation"]),
        data.entity_index(raw["tail"]),
        data.entity_map,
        data.relation_map,
    )


def _known(data: Triples, asked: Triples, block: slice, side: Side) -> Exclusions:
    """Known answers of the questions of a block."""
    given = asked.heads if side == "tail" else asked.tails
    starts, stops = data.answers(side, given[block], asked.relations[block])
    return Exclusions(starts, stops, data.known(side).answers)


def _unseen(data: Triples, asked: Triples) -> npt.NDArray[np.bool_]:
    entity = np.zeros(data.n_entities, bool)
    entity[data.unseen_entities] = True
    relation = np.zeros(data.n_relations, bool)
    relation[data.unseen_relations] = True
    unseen: npt.NDArray[np.bool_] = (
        entity[asked.heads] | relation[asked.relations] | entity[asked.tails]
    )
    return unseen
