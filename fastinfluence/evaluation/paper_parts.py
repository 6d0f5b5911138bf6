"""What the experiments of the Gradient Rollback paper are made of: predictions, and removals."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fastinfluence.attribution import CurvatureRollback, GradientRollback, Replay
from fastinfluence.attribution.objectives import Probability
from fastinfluence.data import Triples
from fastinfluence.errors import ParameterError
from fastinfluence.evaluation.family import draw
from fastinfluence.evaluation.triples import TRIPLES
from fastinfluence.kernels.structures import GraphTables, Links
from fastinfluence.models import KnowledgeGraphModel
from fastinfluence.models.link_scores import link_vectors
from fastinfluence.training import GraphProgram, Trajectory

__all__ = [
    "CONTROLS",
    "METHODS",
    "SIZES",
    "Condition",
    "Predictions",
    "Questions",
    "SkippingTrajectory",
    "prefix",
    "removals",
]

Codes = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

# In the notation of the paper's tables.
METHODS = {
    "gradient-rollback": "GR",
    "gradient-rollback-own": "GR own",
    "curvature-rollback": "CR",
    "replay": "Replay",
}
CONTROLS = {"nothing": "nothing", "neighbourhood": "NH", "random": "random"}
SIZES = ("1", "10", "all")

_ALL_ROWS = 2**10  # of which Curvature Rollback carries the matrices


class SkippingTrajectory(Trajectory):
    """A run that is trained again as if what is left out had never been there.

    Where dense Adam meets a triple of weight 0 it still takes a step, with gradient 0; here it
    takes none, as in the paper. The others keep their negatives.
    """

    def predrawn(self, *, memory_budget: int, n_threads: int = 1) -> Trajectory:
        """The run itself: drawing negatives is a small part of a step here."""
        return self

    def reweighted(
        self, without: object = (), sample_weight: object = None, *, name: str = "without"
    ) -> GraphProgram:
        """Return the program of this run on what is left of its triples."""
        program: GraphProgram = copy.copy(super().reweighted(without, sample_weight, name=name))
        kept = program.weights > 0
        in_order = kept[program.order]
        program.examples = type(program.examples)(*(c[in_order] for c in program.examples))
        program.data, program.weights = program.data.select(kept), program.weights[kept]
        return program


def prefix(model: KnowledgeGraphModel, n_epochs: int) -> KnowledgeGraphModel:
    """Return the model as it was after so many of its epochs."""
    run = model.trajectory_
    checkpoints = {epoch: state for epoch, state in run.checkpoints.items() if epoch <= n_epochs}
    record = run.record if n_epochs == run.n_epochs else None
    run = SkippingTrajectory(run.program, checkpoints, run.losses[:n_epochs], [], record)
    return type(model)(**model.get_params())._take(run)


@dataclass(frozen=True, eq=False)
class Questions:
    """Questions (head, relation, ?) and the entities that answer them.

    Attributes
    ----------
    heads, relations : (n,) int32
    answers : (a,) int64
        Codes of the entities that a prediction is among, ascending.
    known : (n, a) bool
        Answers that training or validation triples hold: no predictions.
    """

    heads: npt.NDArray[np.int32]
    relations: npt.NDArray[np.int32]
    answers: Codes
    known: Mask

    @classmethod
    def of_test(cls, data: Triples, n: int | None, *, among_tails: bool) -> Questions:
        """Distinct questions of test triples that have an answer left, n of them or all.

        Parameters
        ----------
        data : Triples
        n : int, optional
            Drawn with seed 0: the same in every run.
        among_tails : bool
            Only tails of training triples are answers.

        Raises
        ------
        ParameterError
            There are fewer than n.
        """
        assert data.test is not None
        trained = np.isin(data.test.heads, data.unseen_entities, invert=True)
        trained &= np.isin(data.test.relations, data.unseen_relations, invert=True)
        both = np.stack([data.test.heads, data.test.relations])[:, trained]
        heads, relations = np.unique(both, axis=1)
        answers = np.unique(data.tails) if among_tails else np.arange(data.n_entities)
        known = _known(data, heads, relations, answers.astype(np.int64))
        able = np.flatnonzero(~known.all(axis=1))
        if n is not None:
            if n > len(able):
                raise ParameterError(
                    f"the test triples ask {len(able):,} questions (head, relation, ?) that have "
                    f"an answer left: {n:,} cannot be drawn"
                )
            able = np.sort(draw(able, n, np.random.default_rng(0)))
        return cls(heads[able], relations[able], answers.astype(np.int64), known[able])

    def __len__(self) -> int:
        return len(self.heads)


def _known(
    data: Triples, heads: npt.NDArray[Any], relations: npt.NDArray[Any], answers: Codes
) -> Mask:
    of_entity = np.full(data.n_entities, -1)
    of_entity[answers] = np.arange(len(answers))
    known = data.taught
    starts, stops = known.answers("tail", heads, relations)
    mask = np.zeros((len(heads), len(answers)), bool)
    for row, start, stop in zip(mask, starts, stops, strict=True):
        places = of_entity[known.known("tail").answers[start:stop]]
        row[places[places >= 0]] = True
    return mask


@dataclass(frozen=True, eq=False)
class Predictions:
    """What a model answers to questions: read from any parameters, and explained.

    Attributes
    ----------
    model : DistMult or ComplEx
        Its best answers are the predictions.
    questions : Questions
    """

    model: KnowledgeGraphModel
    questions: Questions

    @cached_property
    def targets(self) -> Codes:
        """(n,) int64: the predicted entities."""
        return self._best(self._scores(self.model.trajectory_.end.tables))

    @property
    def codes(self) -> dict[str, npt.NDArray[Any]]:
        """What the predictions are, for the checksum of a folder of retrainings."""
        of = self.questions
        return {
            "head": of.heads,
            "relation": of.relations,
            "tail": self.targets,
            "among": of.answers,
        }

    def __len__(self) -> int:
        return 2 * len(self.questions)

    def values(self, tables: GraphTables, mean: float) -> Floats:
        """(2 n,) float64: probabilities of the predictions, then codes of the best answers."""
        scores = self._scores(tables)
        at = np.searchsorted(self.questions.answers, self.targets)
        return np.concatenate([_probability(scores, at), self._best(scores)])

    @cached_property
    def objective(self) -> Probability:
        """The probability among all entities."""
        data, of = self.model.data_, self.questions
        codes = (of.heads, of.relations, self.targets)
        ids = (data.entity_ids, data.relation_ids, data.entity_ids)
        raw = (names[some] for names, some in zip(ids, codes, strict=True))
        return Probability([*zip(*(column.tolist() for column in raw), strict=True)])

    @cached_property
    def candidates(self) -> list[Codes]:
        """Triples that share an entity, in any place, or the relation with each prediction."""
        quantity = self.objective.bind(self.model.data_, self.model.trajectory_.recipe)
        return TRIPLES.neighbours(self.model, quantity)

    def explanations(self, method: str, n_threads: int | None) -> list[Codes]:
        """Candidates that by a method did not lower each prediction, the most influential first."""
        influence_on = self._influence(method, n_threads)
        found = []
        for row, candidates in enumerate(self.candidates):
            influence = influence_on(row)[candidates]
            kept = influence >= 0
            order = np.argsort(-influence[kept], kind="stable")
            found.append(candidates[kept][order])
        return found

    # ---------------------------------------------------------------- inner

    def _scores(self, tables: GraphTables) -> Floats:
        """Scores (n, a) of all answers."""
        of = self.questions
        asked = self.model.links(of.heads, of.relations, of.heads)  # the targets are not looked at
        vectors = link_vectors(self.model.graph_, tables, asked)
        scores: Floats = (vectors @ tables.rows[of.answers].T).astype(np.float64)
        return scores

    def _best(self, scores: Floats) -> Codes:
        best: Codes = np.where(self.questions.known, -np.inf, scores).argmax(axis=1)
        return self.questions.answers.take(best)

    def _influence(self, method: str, n_threads: int | None) -> Callable[[int], Floats]:
        """Return what gives the influence (n_train,) on the probability of a prediction."""
        model: Any = self.model
        few = len(self.questions.answers) < model.graph_.n_entities
        options: dict[str, Any] = {"n_threads": n_threads, "show_progress": False}
        if method == "replay":
            if few:
                raise ParameterError("replay explains probabilities among all entities only")
            matrix = Replay(model, **options).influence(self.objective, dense=True)
            return lambda row: matrix[row]
        if method == "curvature-rollback":
            # All rows where they are few: those of other entities are in the normaliser.
            all_rows = model.trajectory_.program.n_rows <= _ALL_ROWS
            rows = None if all_rows else self.objective
            why: Any = CurvatureRollback(model, rows=rows, **options)
        else:
            credit = "gradient" if method == "gradient-rollback-own" else "update"
            why = GradientRollback(model, credit=credit, **options)
        if few:
            changes = why.rows.changes
            return lambda row: self._among_answers(changes, row)
        sparse = why.influence(self.objective)
        return lambda row: sparse[[row]].toarray()[0]

    def _among_answers(self, changes: npt.NDArray[Any], row: int) -> Floats:
        """Influence (n_train,) on a probability among the answers: changes are taken back."""
        data, graph, rows = self.model.data_, self.model.graph_, self.model.trajectory_.end.tables
        near = self.candidates[row]
        of_head, of_tail, of_relation = changes[near].transpose(1, 0, 2)
        heads, relations, tails = (
            codes[near, None] for codes in (data.heads, data.relations, data.tails)
        )

        def without(entity: int) -> npt.NDArray[Any]:
            taken = np.where(heads == entity, of_head, 0) + np.where(tails == entity, of_tail, 0)
            left: npt.NDArray[Any] = rows.rows[entity] - taken
            return left

        head, relation = int(self.questions.heads[row]), int(self.questions.relations[row])
        taken = np.where(relations == relation, of_relation, 0)
        both = [without(head), rows.rows[graph.n_entities + relation] - taken]
        number = np.arange(len(near), dtype=np.int32)
        asked = Links(number, number + np.int32(len(near)), np.zeros(len(near), bool), number)
        vectors = link_vectors(graph, GraphTables(np.concatenate(both)), asked)
        answers = self.questions.answers.tolist()
        scores = [np.einsum("nd,nd->n", vectors, without(answer)) for answer in answers]
        at = np.full(len(near), answers.index(self.targets[row]))
        now = _probability(self._scores(rows)[[row]], at[:1])
        influence = np.zeros(len(data))
        influence[near] = now - _probability(np.stack(scores, axis=1), at)
        return influence


def _probability(scores: Floats, at: Codes) -> Floats:
    """Softmax (n,) of the scores (n, a) in some columns."""
    weights = np.exp(scores - scores.max(axis=1, keepdims=True))
    shares: Floats = weights[np.arange(len(at)), at] / weights.sum(axis=1)
    return shares


class Condition(NamedTuple):
    """What is left out for every prediction."""

    name: str  # a control or a method
    size: str  # "1", "10", "all"; "0" for nothing
    removed: list[Codes]


def removals(
    predictions: Predictions, explanations: Mapping[str, list[Codes]], seed: int
) -> list[Condition]:
    """Nothing, and of every size neighbours, random triples and each method's first.

    Parameters
    ----------
    predictions : Predictions
    explanations : mapping of method to n lists of training indices
        The controls are as large as the first method's.
    seed : int
        Draws the controls.
    """
    n = len(predictions.questions)
    everything = np.arange(len(predictions.model.data_))
    pools = {"neighbourhood": predictions.candidates, "random": [everything] * n}
    conditions = [Condition("nothing", "0", [np.zeros(0, np.int64)] * n)]
    for number, (control, pool) in enumerate(pools.items()):
        generator = np.random.default_rng([seed, number])
        for size in SIZES:
            wanted = [len(_first(ranked, size)) for ranked in next(iter(explanations.values()))]
            drawn = [np.sort(draw(p, k, generator)) for p, k in zip(pool, wanted, strict=True)]
            conditions.append(Condition(control, size, drawn))
    for method, lists in explanations.items():
        for size in SIZES:
            first = [np.sort(_first(ranked, size)) for ranked in lists]
            conditions.append(Condition(method, size, first))
    return conditions


def _first(ranked: Codes, size: str) -> Codes:
    return ranked if size == "all" else ranked[: int(size)]
