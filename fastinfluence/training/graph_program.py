"""Training on triples as a deterministic program: same data and recipe, same bits."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fastinfluence import dispatch
from fastinfluence.errors import DataError, DivergenceError
from fastinfluence.kernels.structures import (
    Graph,
    GraphHyper,
    GraphLog,
    GraphSampler,
    GraphTables,
    RowState,
    TripleExamples,
    TripleRecord,
)
from fastinfluence.memory import aligned_zeros
from fastinfluence.training.graph_endpoint import GraphEndpoint
from fastinfluence.training.graph_recipe import GRAPH_LOSSES, GRAPH_OPTIMIZERS, GraphRecipe

if TYPE_CHECKING:
    from fastinfluence.data import Triples

__all__ = ["CREDITS", "GraphProgram", "GraphState"]

CREDITS = ("update", "gradient")  # the position is the kernels' code
Array = npt.NDArray[Any]


class GraphState(NamedTuple):
    """All that training changes; what the optimizer does without has no rows."""

    rows: Array  # (n_rows, d)
    momenta: Array  # (n_rows, d) or (0, d)
    squares: Array  # (n_rows, d) or (0, d)
    clocks: Array  # (n_rows,) int64 or (0,)

    @property
    def tables(self) -> GraphTables:
        """The parameters."""
        return GraphTables(self.rows)

    def copy(self) -> GraphState:
        """Copy every array."""
        copied: GraphState = dispatch.memory().copied(self)
        return copied

    def same_bits(self, other: GraphState) -> bool:
        """Whether both hold the same numbers to the last bit."""
        return all(
            mine.dtype == its.dtype and mine.shape == its.shape and mine.tobytes() == its.tobytes()
            for mine, its in zip(self, other, strict=True)
        )

    @property
    def nbytes(self) -> int:
        """Size in memory."""
        return sum(array.nbytes for array in self)

    def arrays(self) -> dict[str, Array]:
        """Return the arrays by name, for a file."""
        return self._asdict()

    @classmethod
    def from_arrays(cls, arrays: dict[str, Array]) -> GraphState:
        """Rebuild from what `arrays` returned."""
        return cls(**arrays)


class GraphProgram:
    """One training run on triples, ready to start: the order of visits and every constant.

    One sequence of steps: entities are candidates of one another everywhere, so no two steps
    are sure to share no row. Weights change neither the order nor anybody's negatives.

    Parameters
    ----------
    data : Triples
    weights : (n,) float64
    recipe : GraphRecipe

    Attributes
    ----------
    graph : Graph
    order : (n,) int64
        Training index of every visit.
    examples : TripleExamples
    mean : float
        0: scores have no constant part.
    device : "cpu"
        The one backend that has kernels to train on triples.
    """

    mean = 0.0
    device = "cpu"

    def __init__(
        self, data: Triples, weights: npt.NDArray[np.float64], recipe: GraphRecipe
    ) -> None:
        self.data, self.weights, self.recipe = data, weights, recipe
        self.dtype = np.dtype(recipe.dtype)
        if data.n_entities < 2:
            raise DataError("the triples have one entity only: nothing could be told apart from it")
        self.graph = Graph(
            data.n_entities, data.n_relations, recipe.has_reciprocals, recipe.complex
        )
        self.order = np.arange(len(data))
        if recipe.shuffle:
            self.order = np.random.Generator(np.random.PCG64(recipe.seed)).permutation(len(data))
        self.examples = TripleExamples(
            data.heads[self.order],
            data.relations[self.order],
            data.tails[self.order],
            weights[self.order].astype(self.dtype),
            self.order,
        )
        wanted = recipe.n_negatives
        self.sampler = GraphSampler(
            -1 if isinstance(wanted, str) else wanted,
            recipe.seed & (2**63 - 1),
            recipe.fixed_negatives,
        )
        steps = recipe.n_epochs * len(data) * recipe.n_sides
        declines = recipe.learning_rate_decay == "linear"
        self.hyper = GraphHyper(
            recipe.n_sides,
            GRAPH_LOSSES.index(recipe.loss),
            GRAPH_OPTIMIZERS.index(recipe.optimizer),
            recipe.learning_rate,
            recipe.learning_rate / steps if declines else 0.0,
            recipe.regularization,
            recipe.epsilon,
            *recipe.betas,
            recipe.unit_norm,
        )

    @property
    def n_rows(self) -> int:
        """Rows of the table: entities, relations, and their reciprocals."""
        graph = self.graph
        return graph.n_entities + graph.n_relations * (2 if graph.reciprocal else 1)

    def endpoint(self, tables: GraphTables, *, n_threads: int = 1) -> GraphEndpoint:
        """Return the loss this run minimises, at fixed parameters."""
        return GraphEndpoint(self, tables, n_threads=n_threads)

    def rate(self, epoch: int) -> float:
        """Mean learning rate of the steps of an epoch, counted from 0."""
        steps = len(self.data) * self.hyper.sides
        return self.hyper.learning_rate - self.hyper.decline * (steps * (epoch + 0.5) - 0.5)

    def predrawn(self, n_epochs: int, memory_budget: int, n_threads: int = 1) -> GraphProgram:
        """Return the program itself: drawing negatives is a small part of a step here."""
        return self

    def enter(self, state: GraphState) -> GraphState:
        """Copy parameters into working arrays."""
        return state.copy()

    def leave(self, state: GraphState) -> GraphState:
        """Copy working arrays."""
        return state.copy()

    def reweighted(self, weights: npt.NDArray[np.float64]) -> GraphProgram:
        """Return the same program with other weights (n,)."""
        other = copy.copy(self)
        other.weights = weights
        in_order = weights[self.order].astype(self.dtype)
        other.examples = self.examples._replace(weights=in_order)
        return other

    def start(self) -> GraphState:
        """Fresh parameters, drawn as `init` and `init_scale` say; the optimizer's state is 0."""
        recipe, state = self.recipe, self._zeros(self.n_rows)
        # Another stream than the one that shuffles: same seed, one jump ahead.
        generator = np.random.Generator(np.random.PCG64(recipe.seed).jumped())
        if recipe.init == "normal":
            state.rows[...] = generator.standard_normal(state.rows.shape) * recipe.init_scale
        else:
            state.rows[...] = generator.uniform(-1.0, 1.0, state.rows.shape) * recipe.init_scale
        return state

    def _zeros(self, *leading: int) -> GraphState:
        """Zeros for rows of shape ``(*leading, d)`` and what the optimizer keeps beside them."""
        optimizer, d = self.recipe.optimizer, self.recipe.n_factors

        def zeros(kept: bool, *shape: int, dtype: Any = self.dtype) -> Array:
            first = leading[0] if kept else 0
            return aligned_zeros((first, *leading[1:], *shape), np.dtype(dtype))

        return GraphState(
            zeros(True, d),
            zeros(optimizer in ("adam", "adam-dense"), d),
            zeros(optimizer != "sgd", d),
            zeros(optimizer == "adam-dense", dtype=np.int64),
        )

    def on(self, device: str) -> GraphProgram:
        """Return the program itself: `device` is "cpu"."""
        assert device == "cpu"
        return self

    def new_record(self) -> TripleRecord:
        """Room for the row changes of every triple, in the order of visits."""
        slots = 4 if self.graph.reciprocal else 3
        shape = (len(self.data), slots, self.recipe.n_factors)
        return TripleRecord(aligned_zeros(shape, self.dtype))

    @property
    def most_candidates(self) -> int:
        """Candidates a step can have."""
        n_negatives = self.sampler.n_negatives
        return self.graph.n_entities if n_negatives < 0 else n_negatives + 1

    def new_log(self, n_visits: int) -> GraphLog:
        """Room for what the steps of `n_visits` visits see; `slots` are for the caller to fill."""
        m, c = n_visits * self.recipe.n_sides, self.most_candidates
        dense = self.recipe.optimizer == "adam-dense"
        return GraphLog(
            slots=np.full(len(self.data), -1, np.int32),
            n_candidates=np.zeros(m, np.int32),
            candidates=np.zeros((m, c), np.int32),
            counts=np.zeros((m, c), self.dtype),
            **self._zeros(m, c + 2)._asdict(),
            settled=RowState(*self._zeros(self.n_rows if dense else 0)),
        )

    @property
    def log_bytes(self) -> int:
        """Bytes of the log of one visit."""
        c, d = self.most_candidates, self.recipe.n_factors
        arrays = {"sgd": 1, "adagrad": 2}.get(self.recipe.optimizer, 3)
        numbers = arrays * (c + 2) * d + c
        return self.recipe.n_sides * (numbers * self.dtype.itemsize + 12 * c + 24)

    def parts(self, wanted: npt.NDArray[np.bool_], most: int) -> list[tuple[int, int]]:
        """Cut the visits of an epoch into runs that hold at most so many wanted ones."""
        n = len(self.data)
        counts = np.cumsum(wanted)
        bounds = [0]
        while bounds[-1] < n and counts[-1] > (counts[bounds[-1] - 1] if bounds[-1] else 0) + most:
            held = counts[bounds[-1] - 1] if bounds[-1] else 0
            bounds.append(int(np.searchsorted(counts, held + most, side="right")))
        return list(zip(bounds, [*bounds[1:], n], strict=True))

    def visits(self, part: tuple[int, int]) -> tuple[int, int]:
        """First visit of a part, and the one behind it."""
        return part

    def run_epoch(
        self,
        state: GraphState,
        epoch: int,
        *,
        part: tuple[int, int] | None = None,
        record: TripleRecord | None = None,
        log: GraphLog | None = None,
        credit: str = "update",
        n_threads: int = 1,
    ) -> float:
        """Run one epoch on working arrays, in place; the mean loss of its steps.

        `part` is the part of it to run, all of it by default.

        Raises
        ------
        DivergenceError
            A step's loss is not finite; it was not taken.
        """
        total, broken = dispatch.kernels("graph_sgd").graph_epoch(
            RowState(*state),
            self.graph,
            self.examples,
            self.sampler,
            self.hyper,
            epoch,
            *(part or (0, len(self.data))),
            record,
            CREDITS.index(credit),
            log,
        )
        if broken >= 0:
            recipe = self.recipe
            raise DivergenceError(
                f"training diverged: the loss of step {broken:,} (epoch {epoch + 1}) is not "
                f"finite. Lower learning_rate (now {recipe.learning_rate:g}) or raise "
                f"regularization (now {recipe.regularization:g})"
            )
        return float(total / (self.weights.sum() * self.recipe.n_sides))
