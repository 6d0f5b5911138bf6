"""The training loss near single pairs: only the rows of one user and one item may move."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fastinfluence import dispatch
from fastinfluence.training.endpoint import Endpoint

if TYPE_CHECKING:
    from fastinfluence.training.program import Program

__all__ = ["Gradients", "PairEndpoint"]

Array = npt.NDArray[Any]
Codes = npt.NDArray[np.int32]
Numbers = npt.NDArray[np.int64]
Found = npt.NDArray[np.bool_]


class Gradients(NamedTuple):
    """Gradients of single examples by one row each, grouped by that row; on the device."""

    rows: Array  # (n, d - 1)
    biases: Array  # (n,)
    pointers: Array  # (n_groups + 1,)
    places: Array  # (n,): of every training example in the others


class PairEndpoint(Endpoint):
    """An `Endpoint` whose Hessian is cut down to the two rows of a pair, damping included.

    Of the scores that join the two rows only those of examples of that very pair count: that an
    example of the user has drawn the item as a negative is an accident of the last epochs.
    Gradients, blocks and vectors are arrays of the device; codes and what is found definite are in
    CPU memory.

    Parameters
    ----------
    program : Program
    tables : Tables
        By code.
    damping : float
    full : bool
        The Hessian itself, not its Gauss-Newton matrix; on a single row the two are the same.
    n_threads : int
        Of the CPU.
    device : str, default "cpu"
        Backend that holds the arrays and computes: see `dispatch`.
    """

    def __init__(
        self,
        program: Program,
        tables: Any,
        *,
        damping: float,
        full: bool,
        n_threads: int,
        device: str = "cpu",
    ) -> None:
        super().__init__(program, tables, n_threads=n_threads, device=device)
        self.damping, self.full = damping, full
        # A pivot as small as what rounding leaves of a zero is taken for one.
        self._tolerance = float(self.d * np.finfo(self.dtype).eps)
        self._kernels = dispatch.kernels("row_blocks", device)

    @cached_property
    def row_blocks(self) -> Array:
        """Lower triangles (n_rows, d, d) of the blocks of single rows, without damping."""
        return self.blocks()

    def own_gradients(self) -> tuple[Gradients, Gradients]:
        """``w_j grad l_j`` by the rows of the users of all examples, and of their items."""
        data = self._program.data
        sides = []
        for pointers, order in (data.by_user, data.by_item):
            places = np.empty_like(order)
            places[order] = np.arange(self.n)
            rows = self._memory.zeros((self.n, self.d - 1), self.dtype)
            biases = self._memory.zeros((self.n,), self.dtype)
            sides.append(Gradients(rows, biases, *self._memory.put((pointers, places))))
        of_users, of_items = sides
        gradients, l2 = self._derivatives[0], self._shrinkage[0]

        def part(start: int, stop: int) -> None:
            self._kernels.own_gradients(
                self._ends, self.rows, self._edges, self._users, self._items, gradients, l2,
                (of_users.places, of_items.places), start, stop, *of_users[:2], *of_items[:2],
            )  # fmt: skip

        self._by_example(part)
        return of_users, of_items

    def solve(self, gradients: Gradients, first_row: int) -> Found:
        """Multiply gradients with ``-(block + damping)^-1`` of their row, in place.

        Parameters
        ----------
        gradients : Gradients
        first_row : int
            Row of the first group.

        Returns
        -------
        (n_groups,) bool
            Whether the block is positive definite; gradients of others are left alone.
        """
        n_groups = len(gradients.pointers) - 1
        blocks = self.row_blocks[first_row : first_row + n_groups]
        definite = self._memory.zeros((n_groups,), bool)

        def part(start: int, stop: int) -> None:
            self._kernels.solve_rows(
                blocks, self.damping, self._tolerance, gradients.pointers, gradients.rows,
                gradients.biases, start, stop, definite,
            )  # fmt: skip

        parts = [(0, n_groups)]
        if self.device == "cpu":
            # A factorization costs about as much as d / 3 solves.
            work = np.diff(gradients.pointers) + self.d / 3
            parts = dispatch.even_parts(work, 4 * self._n_threads)
        dispatch.run_parts(part, parts, self._n_threads)
        found: Found = self._memory.fetch(definite)
        return found

    def couplings(self, examples: Numbers, starts: Numbers, stops: Numbers) -> Array:
        """Blocks (q, d, d) float64 of the Hessian between the two rows of pairs.

        Parameters
        ----------
        examples : (n,) int64
            Training indices sorted by pair.
        starts, stops : (q,) int64
            Bounds of each pair's examples among them.
        """
        gradients, curvatures, _ = self._derivatives
        blocks: Array = self._memory.empty((len(starts), self.d, self.d), np.float64)
        # Only the examples of these pairs: there may be many calls for few pairs each.
        first, last = (int(starts.min()), int(stops.max())) if len(starts) else (0, 0)
        owns, starts, stops = self._memory.put(
            (self._positions[examples[first:last]], starts - first, stops - first)
        )
        self._kernels.couple(
            self._program.recipe.loss_code, self.full, self._ends, self._edges, self._users,
            self._items, gradients, curvatures, owns, starts, stops, blocks,
        )  # fmt: skip
        return blocks

    @cached_property
    def _positions(self) -> Numbers:
        """(n,): place of every training example in the order of the edges."""
        positions = np.empty(self.n, np.int64)
        positions[self._memory.fetch(self._edges.examples)] = np.arange(self.n)
        return positions

    def link(
        self, users: Codes, items: Codes, couplings: Array, by_user: Array, by_item: Array
    ) -> Found:
        """Write what changes of the rows of pairs are multiplied with, the rows being coupled.

        Parameters
        ----------
        users, items : (q,) int32
        couplings : (q, d, d) float64
        by_user, by_item : (q, d)
            For changes of the users' rows, and of the items'; overwritten.

        Returns
        -------
        (q,) bool
            Whether the Hessian on both rows is positive definite; vectors of others mean nothing.
        """
        definite = self._memory.zeros((len(users),), bool)
        rows = users.astype(np.int64), items.astype(np.int64) + self.n_users
        self._kernels.link_pairs(
            self.row_blocks, self.damping, self._tolerance, self._ends, couplings,
            *self._memory.put(rows), by_user, by_item, definite,
        )  # fmt: skip
        found: Found = self._memory.fetch(definite)
        return found

    def spectrum(self, rows: list[int], coupling: Array | None = None) -> tuple[float, float]:
        """Smallest eigenvalue on one row, or on two and their coupling; damping that lifts it."""
        blocks = [self._memory.fetch(self.row_blocks[row]).astype(np.float64) for row in rows]
        whole = blocks[0]
        if coupling is not None:
            coupling = self._memory.fetch(coupling)
            whole = np.block([[blocks[0], coupling], [coupling.T, blocks[1]]])
        values = np.linalg.eigvalsh(whole)  # reads the lower triangle
        # Well clear of what is taken for zero, and of the rounding of a printed number.
        lifted = 1.05 * max(0.0, -values[0]) + 4 * self.d * self._tolerance * abs(values[-1])
        return float(values[0] + self.damping), float(max(lifted, np.finfo(self.dtype).tiny))
