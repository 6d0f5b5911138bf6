"""The training loss of matrix factorization at fixed parameters: its gradients, its Hessian."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt

from fastinfluence import dispatch
from fastinfluence.kernels.structures import LANES, Tables
from fastinfluence.memory import aligned_zeros
from fastinfluence.training.edges import edges_of, l2_of, negatives_of, rows_of

if TYPE_CHECKING:
    from fastinfluence.training.program import Program

__all__ = ["Endpoint"]

Array = npt.NDArray[Any]

_ROOMS = ("_slope_room", "_bend_room")  # scratch memory
_USERS, _ITEMS, _BOTH = (0,), (1,), (0, 1)  # sides: halves of the rows


class Endpoint:
    """What training minimises, at fixed parameters: ``F = sum_j w_j l_j``.

    l_j is the loss of example j and regularization / 2 times the squares of the rows it touches:
    what j takes with it when it is left out. Where every epoch draws its own negatives it is
    the mean over those of the last epochs of the recipe.

    Axes of length n_rows are the users, then the items; a row is ``(factors, bias)``. Axes of
    length n are by training index.

    Nothing depends on the number of threads, to the bit. Products share scratch memory: one call
    at a time. Panels (n_rows, d, LANES), blocks and credit are arrays of the device; what is one
    number an example is in CPU memory.

    Parameters
    ----------
    program : Program
    tables : Tables
        By code.
    n_threads : int, default 1
        Of the CPU.
    device : str, default "cpu"
        Backend that holds the arrays and computes: see `dispatch`.

    Attributes
    ----------
    n_rows, d, n : int
        Rows, numbers in a row (n_factors + 1), training examples.
    dtype : numpy.dtype
    device : str
    rows : (n_rows, d)
        On the device.
    n_users : int
        Rows, the first, that the Hessian does not join with one another.
    identity : object
        The same of endpoints that have the same Hessian.

    Raises
    ------
    DataError
        Tables of another shape, or that are not finite.
    """

    N_DRAWS: ClassVar[int] = 4
    """Epochs whose negatives are averaged."""

    BIAS_END = 1
    """What the bias at one end of an edge is multiplied with; 0 in a model without biases."""

    def __init__(
        self, program: Program, tables: Tables, *, n_threads: int = 1, device: str = "cpu"
    ) -> None:
        data = program.data
        self.device, self._memory = device, dispatch.memory(device)
        self.n_users, self.n_rows = data.n_users, data.n_users + data.n_items
        self.d, self.n, self.dtype = program.recipe.n_factors + 1, len(data), program.dtype
        self._program, self._n_threads = program, n_threads if device == "cpu" else 1
        self._take(tables)
        negatives, self._share = negatives_of(program, self.N_DRAWS)
        edges, users, items = edges_of(data, negatives)
        values, weights = data.values[edges.examples], program.weights[edges.examples]
        self._edges, self._users, self._items = self._memory.put((edges, users, items))
        self._values = self._memory.put(values.astype(self.dtype))
        self._weights = self._memory.put(weights.astype(self.dtype))

    def _take(self, tables: Tables) -> None:
        self._tables = tables
        self.identity = object()  # the same of those that have the same Hessian
        n_items = self.n_rows - self.n_users
        rows = rows_of(tables, self.n_users, n_items, self.d, self.dtype)
        self._asked: tuple[Any, Any] | None = None
        ends = rows.copy()  # what scores are made of at the other end
        ends[:, -1] = self.BIAS_END
        self.rows, self._ends = self._memory.put((rows, ends))

    def at(self, tables: Tables) -> Endpoint:
        """Return the same loss, negatives and all, at other parameters."""
        other = copy.copy(self)
        for name in ("_derivatives", *_ROOMS):
            vars(other).pop(name, None)
        other._take(tables)
        return other

    def twin(self) -> Endpoint:
        """Return the same loss with scratch memory of its own: for one more thread."""
        self._derivatives, self._shrinkage  # noqa: B018  (shared, so computed only once)
        other = copy.copy(self)
        for name in ("_parts", *_ROOMS):
            vars(other).pop(name, None)
        other._n_threads = 1
        return other

    def reweighted(self, weights: npt.NDArray[np.float64]) -> Endpoint:
        """Return the loss with other weights (n,) of the examples."""
        other = self.at(self._tables)
        examples = self._memory.fetch(self._edges.examples)
        other._weights = self._memory.put(weights[examples].astype(self.dtype))
        vars(other).pop("_shrinkage", None)
        return other

    # ---------------------------------------------------------------- by example

    @cached_property
    def _derivatives(self) -> tuple[Array, Array, Array]:
        """dL/df and curvature (m,) of every edge, weighted losses (n,) in the order of the edges.

        The arrays are of the parameters and weights as they are.
        """
        empty, m, program = self._memory.empty, self._items.shape[0], self._program
        gradients, curvatures = (empty((m,), self.dtype) for _ in range(2))
        losses = empty((self.n,), np.float64)
        kernel = dispatch.kernels("edge_losses", self.device).edge_losses

        def part(start: int, stop: int) -> None:
            kernel(
                program.recipe.loss_code, self.rows, self._edges, self._users, self._items,
                self._values, self._weights, self._share, program.mean,
                program.recipe.regularization, start, stop, gradients, curvatures, losses,
            )  # fmt: skip

        self._by_example(part)
        return gradients, curvatures, losses

    def _by_example(self, part: Any) -> None:
        parts = [(0, self.n)]
        if self.device == "cpu":
            parts = dispatch.equal_parts(self.n, 4 * self._n_threads)
        dispatch.run_parts(part, parts, self._n_threads)

    @cached_property
    def _shrinkage(self) -> tuple[Array, Array]:
        """L2 of the item of every edge (m,), and of every row (n_rows,), weights included."""
        edges, users, items, weights = self._memory.fetch(
            (self._edges, self._users, self._items, self._weights)
        )
        strength = self._program.recipe.regularization
        of_edges, rows = l2_of(edges, users, items, weights, self._share, strength, self.n_rows)
        found: tuple[Array, Array] = self._memory.put(
            (of_edges.astype(self.dtype), rows.astype(self.dtype))
        )
        return found

    def losses(self) -> npt.NDArray[np.float64]:
        """``w_j l_j`` (n,) float64."""
        found, fetch = np.empty(self.n), self._memory.fetch
        found[fetch(self._edges.examples)] = fetch(self._derivatives[2])
        return found

    def loss_drops(
        self, changes: npt.NDArray[np.float64], moved: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.float64]:
        """How far ``w_j l_j`` (n,) falls when some rows move; 0 where an example has none of them.

        Parameters
        ----------
        changes : (n_rows, d)
        moved : (a,)
            Rows that are not zero in `changes`.

        Notes
        -----
        O(d) for every edge of the examples that touch a moved row, and with no cancellation:
        changes may be as small as they like. Computed on the CPU, whatever the device.
        """
        found, program = np.zeros(self.n), self._program
        rows, *loss = self._memory.fetch(
            (self.rows, self._edges, self._users, self._items, self._values, self._weights)
        )
        dispatch.kernels("loss_drops").loss_drops(
            program.recipe.loss_code, rows, changes, moved, *loss, self._share,
            float(self.dtype.type(program.mean)), program.recipe.regularization, self.n_users,
            found,
        )  # fmt: skip
        return found

    def panel(self, quantity: Any, start: int) -> Array:
        """Gradients (n_rows, d, LANES) of the queries from `start` on, one a lane, then zeros."""
        panel = aligned_zeros((self.n_rows, self.d, LANES), self.dtype)
        found = self._gradients(quantity)
        for offset, (queries, codes, rows) in ((0, found[:3]), (self.n_users, found[3:])):
            ours = (queries >= start) & (queries < start + LANES)
            at: Any = (codes[ours] + offset, slice(None), queries[ours] - start)
            np.add.at(panel, at, rows[ours])
        if not self.BIAS_END:
            panel[:, -1] = 0
        there: Array = self._memory.put(panel)
        return there

    def _gradients(self, quantity: Any) -> Any:
        """Gradients of all queries of a quantity, computed once for all of its panels."""
        if self._asked is None or self._asked[0] is not quantity:
            self._asked = quantity, quantity.gradients(self._tables, self._program.mean)
        return self._asked[1]

    def credit(self, panel: Array) -> Array:
        """``-w_j grad l_j . panel`` (n, LANES): the change of phi by a small step along j."""
        hessian = self._hessian
        slopes = self._slopes(panel)
        dots = self._memory.empty((self.n_rows, LANES), self.dtype)
        hessian.row_dots(self.rows, panel, 0, self.n_rows, dots)
        found: Array = self._memory.zeros((self.n, LANES), self.dtype)
        gradients, l2 = self._derivatives[0], self._shrinkage[0]

        def part(start: int, stop: int) -> None:
            hessian.credit(
                self._edges, self._users, self._items, gradients, l2, slopes, dots, start, stop,
                found,
            )  # fmt: skip

        self._by_example(part)
        return found

    def norms(self) -> Array:
        """``|w_j grad l_j|`` (n,)."""
        return self._of_gradients("gradient_norms")

    def own_credit(self) -> Array:
        """`credit` (n,) of every example along the gradient of its own pair's score."""
        return self._of_gradients("own_credit")

    def _of_gradients(self, name: str) -> Array:
        """A number (n,) from the gradient of every example."""
        kernel = getattr(self._hessian, name)
        found = self._memory.empty((self.n,), self.dtype)
        gradients, l2 = self._derivatives[0], self._shrinkage[0]

        def part(start: int, stop: int) -> None:
            kernel(
                self.rows, self._ends, self._edges, self._users, self._items, gradients, l2,
                start, stop, found,
            )  # fmt: skip

        self._by_example(part)
        numbers: Array = self._memory.fetch(found)
        return numbers

    # ---------------------------------------------------------------- Hessian

    @property
    def _hessian(self) -> Any:
        """The kernels."""
        return dispatch.kernels("hessian", self.device)

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
        O(edges * d) a lane: 8 floating-point operations for every number of a row.
        """
        bends = self._bends(self._slopes(panel), in_place=True)
        self._pull(panel, bends, out, full, _BOTH)

    def coupling(self, panel: Array, out: Array, *, full: bool = False) -> None:
        """Write the rows of items of the Hessian times a panel that is zero there to `out`."""
        bends = self._bends(self._slopes(panel, _USERS), in_place=True)
        self._pull(panel, bends, out, full, _ITEMS)

    def reduced_product(
        self, solve_users: Callable[[Array, Array], None], panel: Array, out: Array, *, full: bool
    ) -> None:
        """Write the Hessian with the users eliminated, times a panel of items, to `out`.

        ``H_ii V - H_iu A^-1 H_ui V`` with A the users' damped part of the Hessian, which has no
        entry between two users: rows of items of `out`, those of users are scratch. The rows of
        users of the panel become ``-A^-1 H_ui V``, what users do when items move along V.

        Parameters
        ----------
        solve_users : callable
            ``solve_users(right, x)`` writes ``A^-1 right`` to the rows of users of x.
        panel : (n_rows, d, LANES)
            V in its rows of items.
        out : (n_rows, d, LANES)
        full : bool

        Notes
        -----
        It takes as long as `product`.
        """
        passes, users = dispatch.kernels("conjugate_gradients", self.device), (0, self.n_users)
        passes.clear(*users, panel)
        slopes = self._slopes(panel, _ITEMS)
        self._pull(panel, self._bends(slopes), out, full, _USERS)
        passes.scale(np.full(LANES, -1, self.dtype), *users, out)
        solve_users(out, panel)
        slopes = self._slopes(panel, _USERS, added=True)
        self._pull(panel, self._bends(slopes), out, full, _ITEMS)

    def blocks(self) -> Array:
        """The diagonal blocks (n_rows, d, d) of the Gauss-Newton matrix, one a row."""
        row_blocks = self._hessian.row_blocks
        blocks: Array = self._memory.zeros((self.n_rows, self.d, self.d), self.dtype)
        curvatures, l2 = self._derivatives[1], self._shrinkage[1]

        def part(start: int, stop: int) -> None:
            row_blocks(
                self._program.recipe.loss_code, self._ends, self._edges, self._items, curvatures,
                l2, self.n_users, start, stop, blocks,
            )  # fmt: skip

        dispatch.run_parts(part, self._parts[0] + self._parts[1], self._n_threads)
        return blocks

    def _slopes(
        self, panel: Array, sides: tuple[int, ...] = _BOTH, *, added: bool = False
    ) -> Array:
        """Slopes (m, LANES) of all scores along some sides' rows of the panel.

        Overwritten by the next call, or added to by it.
        """
        kernel, out = self._hessian.slopes, self._slope_room
        for side in sides:

            def part(start: int, stop: int, added: bool = added) -> None:
                kernel(self._ends, self._edges, panel, start, stop, added, out)

            dispatch.run_parts(part, self._parts[side], self._n_threads)
            added = True
        return out

    def _bends(self, slopes: Array, *, in_place: bool = False) -> Array:
        """Change (m, LANES) of dL/df of every score along the slopes."""
        bend, bends = self._hessian.bend, slopes if in_place else self._bend_room
        loss, curvatures = self._program.recipe.loss_code, self._derivatives[1]

        def part(start: int, stop: int) -> None:
            bend(loss, self._edges.first, curvatures, start, stop, slopes, bends)

        self._by_example(part)
        return bends

    def _pull(
        self, panel: Array, bends: Array, out: Array, full: bool, sides: tuple[int, ...]
    ) -> None:
        """Bring the changes of dL/df back to some sides' rows of `out`."""
        pull, gradients = self._hessian.pull, self._derivatives[0] if full else None

        def part(start: int, stop: int) -> None:
            l2 = self._shrinkage[1]
            pull(self._ends, self._edges, bends, gradients, panel, l2, start, stop, out)

        parts = [part for side in sides for part in self._parts[side]]
        dispatch.run_parts(part, parts, self._n_threads)

    @property
    def scratch_bytes(self) -> int:
        """Memory that products take besides what they are given."""
        return len(_ROOMS) * int(self._items.shape[0]) * LANES * self.dtype.itemsize

    @cached_property
    def _slope_room(self) -> Array:
        return self._room()

    @cached_property
    def _bend_room(self) -> Array:
        return self._room()

    def _room(self) -> Array:
        room: Array = self._memory.zeros((self._items.shape[0], LANES), self.dtype)
        return room

    @cached_property
    def _parts(self) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
        """Runs of users and of items of nearly equal work; all at once on a device."""
        if self.device != "cpu":
            return [(0, self.n_users)], [(self.n_users, self.n_rows)]
        work = np.diff(self._edges.pointers) + 1.0
        users, items = (
            dispatch.even_parts(part, 4 * self._n_threads)
            for part in (work[: self.n_users], work[self.n_users :])
        )
        return users, [(a + self.n_users, b + self.n_users) for a, b in items]
