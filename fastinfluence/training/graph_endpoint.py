"""The training loss of a model of triples at fixed parameters: its gradients and its Hessian."""

from __future__ import annotations

import copy
import queue
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt

from fastinfluence import dispatch
from fastinfluence.errors import DataError
from fastinfluence.kernels.structures import LANES, GraphPoint, GraphTables
from fastinfluence.memory import aligned_zeros

if TYPE_CHECKING:
    from fastinfluence.training.graph_program import GraphProgram

__all__ = ["GraphEndpoint"]

Array = npt.NDArray[Any]

_MOST_PARTS = 8  # of the triples, the sums of whose products are added up in order
_ROOM = 2**29  # bytes that the sums may take, if all were there at a time


class GraphEndpoint:
    """What training on triples minimises, at fixed parameters: ``F = sum_j w_j l_j``.

    l_j is the sum over the sides that are asked for of the loss of the answer among its candidates
    and of regularization / 2 times the squares of the subject's, the relation's and the answer's
    row: what triple j takes with it when it is left out. Where every epoch draws its own
    negatives it is the mean over those of the last epochs of the recipe.

    Axes of length n_rows are the table's (entities, relations, their reciprocals), those of length
    n are by training index.

    Nothing depends on the number of threads, to the bit. Products share scratch memory: one call
    at a time.

    Parameters
    ----------
    program : GraphProgram
    tables : GraphTables
        Rows (n_rows, d).
    n_threads : int, default 1

    Attributes
    ----------
    n_rows, d, n : int
        Rows, numbers in a row, training triples.
    dtype : numpy.dtype
    rows : (n_rows, d)
        Those of the tables; numbers whose squares are denormal are 0.

    Raises
    ------
    DataError
        Rows of another shape, or that are not finite.
    """

    device: ClassVar[str] = "cpu"
    N_DRAWS: ClassVar[int] = 4
    """Epochs whose negatives are averaged."""

    def __init__(self, program: GraphProgram, tables: GraphTables, *, n_threads: int = 1) -> None:
        self.n_rows, self.d, self.n = program.n_rows, program.recipe.n_factors, len(program.data)
        self.dtype = program.dtype
        self.rows: Array = np.array(tables.rows, self.dtype)
        if self.rows.shape != (self.n_rows, self.d):
            raise DataError(
                f"the parameters are of shape {self.rows.shape}, but this model's are "
                f"{(self.n_rows, self.d)}"
            )
        if not np.isfinite(self.rows).all():
            row = int((~np.isfinite(self.rows)).any(1).argmax())
            raise DataError(
                f"row {row} of the parameters holds NaN or infinity: the loss has no derivatives "
                "there; train again with a lower learning_rate"
            )
        # Their products would be denormal numbers: dense Adam leaves such rows, and everything
        # took three times as long.
        self.rows[np.abs(self.rows) < np.sqrt(np.finfo(self.dtype).tiny)] = 0
        self._program, self._n_threads = program, n_threads
        sampler, behind = program.sampler, program.recipe.n_epochs
        draws = 1 if sampler.fixed or sampler.n_negatives < 0 else self.N_DRAWS
        self._point = GraphPoint(
            self.rows,
            program.graph,
            program.examples,
            sampler,
            program.hyper,
            max(0, behind - draws),
            behind,
        )

    def at(self, tables: GraphTables) -> GraphEndpoint:
        """Return the same loss, negatives and all, at other parameters."""
        return GraphEndpoint(self._program, tables, n_threads=self._n_threads)

    def twin(self) -> GraphEndpoint:
        """Return the same loss with scratch memory of its own: for one more thread."""
        other = copy.copy(self)
        vars(other).pop("_sums", None)
        other._n_threads = 1
        return other

    def reweighted(self, weights: npt.NDArray[np.float64]) -> GraphEndpoint:
        """Return the loss with other weights (n,) of the triples."""
        program = self._program.reweighted(weights)
        return GraphEndpoint(program, GraphTables(self.rows), n_threads=self._n_threads)

    def panel(self, quantity: Any, start: int) -> Array:
        """Gradients (n_rows, d, LANES) of the queries from `start` on, one a lane, then zeros."""
        panel = self._zeros()
        stop = min(start + LANES, len(quantity))
        panel[:, :, : stop - start] = quantity.dense_gradient(
            start, stop, GraphTables(self.rows), self._program.mean
        )
        return panel

    # ---------------------------------------------------------------- by triple

    def losses(self) -> npt.NDArray[np.float64]:
        """``w_j l_j`` (n,) float64."""
        return self._by_triple("graph_losses", np.zeros(self.n))

    def norms(self) -> Array:
        """``|w_j grad l_j|`` (n,)."""
        return self._by_triple("graph_norms", np.zeros(self.n, self.dtype))

    def credit(self, panel: Array) -> Array:
        """``-w_j grad l_j . panel`` (n, LANES): the change of phi by a small step along j."""
        found = aligned_zeros((self.n, LANES), self.dtype)
        return self._by_triple("graph_credits", found, panel)

    def _by_triple(self, name: str, found: Array, *arguments: Array) -> Array:
        """Fill `found` by visit; the same by training index."""
        kernel = getattr(dispatch.kernels("graph_hessian"), name)

        def part(start: int, stop: int) -> None:
            kernel(self._point, *arguments, start, stop, found)

        parts = dispatch.even_parts(np.ones(self.n), self._n_threads)
        dispatch.run_parts(part, parts, self._n_threads)
        result = np.empty_like(found)
        result[self._program.order] = found
        return result

    # ---------------------------------------------------------------- Hessian

    def product(self, panel: Array, out: Array, *, full: bool = False) -> None:
        """Write the Hessian of F times each lane of a panel to `out`.

        Parameters
        ----------
        panel : (n_rows, d, LANES)
        out : (n_rows, d, LANES)
            Another array.
        full : bool, default False
            The Hessian itself; otherwise its Gauss-Newton matrix, which has no negative
            eigenvalues.

        Notes
        -----
        O(n * epochs averaged * candidates * d) a lane.
        """
        graph_products = dispatch.kernels("graph_hessian").graph_products
        free: queue.SimpleQueue[Array] = queue.SimpleQueue()
        for room in self._sums:
            free.put(room)

        def product_of(part: tuple[int, int]) -> Array:
            found = free.get()
            found[...] = 0
            graph_products(self._point, panel, full, *part, found)
            return found

        out[...] = 0
        for found in dispatch.in_order(product_of, self._parts, self._n_threads):
            out += found
            free.put(found)

    def blocks(self) -> Array:
        """The diagonal blocks (n_rows, d, d) of the Gauss-Newton matrix, one a row."""
        graph_blocks = dispatch.kernels("graph_hessian").graph_blocks
        blocks = aligned_zeros((self.n_rows, self.d, self.d), self.dtype)

        def part(low: int, high: int) -> None:
            graph_blocks(self._point, low, high, blocks)

        parts = dispatch.even_parts(self._work(), self._n_threads)
        dispatch.run_parts(part, parts, self._n_threads)
        return blocks

    def _zeros(self) -> Array:
        return aligned_zeros((self.n_rows, self.d, LANES), self.dtype)

    @cached_property
    def _parts(self) -> list[tuple[int, int]]:
        """Visits whose products are added up on their own: by sizes alone, so the bits are."""
        size = self.n_rows * self.d * LANES * self.dtype.itemsize
        return dispatch.even_parts(np.ones(self.n), max(1, min(_MOST_PARTS, _ROOM // size)))

    @cached_property
    def _sums(self) -> list[Array]:
        """Room for the sums of as many parts as can be on their way at a time."""
        ahead = 1 if self._n_threads == 1 else self._n_threads + 1
        return [self._zeros() for _ in range(min(ahead, len(self._parts)))]

    def _work(self) -> npt.NDArray[np.float64]:
        """About how many outer products (n_rows,) the block of each row is made of."""
        graph, examples, c = self._point.graph, self._point.examples, self._program.most_candidates
        relations = graph.n_entities + examples.relations
        second = relations + graph.n_relations if graph.reciprocal else relations
        sides = [(examples.heads, relations), (examples.tails, second)]
        work = np.ones(self.n_rows)
        for subjects, asked in sides[: self._point.hyper.sides]:
            work[: graph.n_entities] += self.n * c / graph.n_entities
            for rows in (subjects, asked):
                work += c * np.bincount(rows, minlength=self.n_rows)
        return work
