"""Damped matrices with their preconditioners, as conjugate gradients iterate on them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from fastinfluence import dispatch
from fastinfluence.attribution.lanczos import Ritz
from fastinfluence.errors import NegativeCurvature
from fastinfluence.kernels.structures import LANES

if TYPE_CHECKING:
    from fastinfluence.attribution.solve import BlockJacobi

__all__ = ["ReducedSystem", "System", "row_parts"]

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]


class System:
    """A damped matrix with its preconditioner, and the passes over rows of an iteration."""

    first = 0  # of the rows that are iterated on

    def __init__(
        self,
        endpoint: Any,
        damping: float,
        full: bool,
        preconditioner: BlockJacobi | None,
        n_threads: int,
    ) -> None:
        self.endpoint, self.damping, self.full = endpoint, damping, full
        self.n_threads = n_threads
        self.memory = dispatch.memory(endpoint.device)
        self.kernels = dispatch.kernels("conjugate_gradients", endpoint.device)
        self.factors = None if preconditioner is None else preconditioner.factors
        self.divisors = None if preconditioner is None else preconditioner.divisors
        self._squares, self._products = (
            self.memory.zeros((endpoint.n_rows, LANES), np.float64) for _ in range(2)
        )

    def panel(self) -> Array:
        """Zeros (n_rows, d, LANES)."""
        shape = self.endpoint.n_rows, self.endpoint.d, LANES
        found: Array = self.memory.zeros(shape, self.endpoint.dtype)
        return found

    def _by_row(
        self,
        function: Any,
        before: tuple[Any, ...],
        after: tuple[Any, ...],
        rows: tuple[int, int] | None = None,
    ) -> None:
        """Call ``function(*before, start, stop, *after)`` for the rows iterated on, or others."""
        first, stop = rows or (self.first, self.endpoint.n_rows)

        def part(start: int, stop: int) -> None:
            function(*before, first + start, first + stop, *after)

        parts = row_parts(stop - first, self.n_threads, self.endpoint.device)
        dispatch.run_parts(part, parts, self.n_threads)

    def _total(self, products: Array, first: int) -> Floats:
        """Sum (LANES,) of what the rows from a first one on have, in their order."""
        total: Floats = self.kernels.total(products, first, self.endpoint.n_rows)
        return total

    def squares(self, panel: Array) -> Floats:
        """Squared norms (LANES,), of all rows."""
        everywhere = 0, self.endpoint.n_rows
        self._by_row(self.kernels.inner_products, (panel, panel), (self._squares,), everywhere)
        return self._total(self._squares, 0)

    def image(self, panel: Array, out: Array) -> Floats:
        """Write ``(H + damping I) panel`` to `out`; the inner products (LANES,) of both."""
        self.endpoint.product(panel, out, full=self.full)
        return self._damped(panel, out)

    def _damped(self, panel: Array, out: Array) -> Floats:
        self._by_row(self.kernels.damp, (self.damping, panel), (out, self._products))
        return self._total(self._products, self.first)

    def residual_of(self, x: Array, right: Array, residual: Array) -> Floats:
        """Write ``b - (H + damping I) x`` to `residual`; its squared norms (LANES,)."""
        self.endpoint.product(x, residual, full=self.full)
        everywhere = 0, self.endpoint.n_rows
        damped = residual, self._products
        self._by_row(self.kernels.damp, (self.damping, x), damped, everywhere)
        self._by_row(self.kernels.subtract_from, (right,), (residual,), everywhere)
        return self.squares(residual)

    def settle(self, x: Array, residual: Array, waiting: npt.NDArray[np.bool_]) -> None:
        """Solve what can be solved at once, for the lanes in `waiting`."""

    def move(self, steps: Array, direction: Array, x: Array) -> None:
        """Take along what follows from a step in the rows that are iterated on."""

    def iterate(
        self,
        x: Array,
        residual: Array,
        waiting: npt.NDArray[np.bool_],
        goals: Floats,
        most: npt.NDArray[np.int64],
        lanczos: Ritz,
    ) -> npt.NDArray[np.int64]:
        """Iterate the lanes in `waiting` until none is; how often each took part."""
        dtype, sums = self.endpoint.dtype, (self._squares, self._products)
        target, image, direction = self.panel(), self.panel(), self.panel()
        self.settle(x, residual, waiting)
        preconditioned = self.factors, self.divisors, residual
        self._by_row(self.kernels.precondition_rows, preconditioned, (target,))
        self.memory.store(direction, target)
        self._by_row(self.kernels.inner_products, (residual, target), (self._products,))
        products = self._total(self._products, self.first)
        waiting, done = waiting & (products > 0), np.zeros(LANES, np.int64)
        keeps = np.zeros(LANES)
        while waiting.any():
            curvatures = self.image(direction, image)
            self._check(curvatures, waiting, direction)
            waiting &= curvatures > 0  # p is 0 to rounding: nothing is left to do
            steps = np.divide(products, curvatures, out=np.zeros(LANES), where=waiting)
            done += waiting
            rounded = steps.astype(dtype)
            self._by_row(
                self.kernels.advance,
                (self.factors, self.divisors, rounded, direction, image),
                (x, residual, target, *sums),
            )
            self.move(rounded, direction, x)
            squares, after = (self._total(of_rows, self.first) for of_rows in sums)
            lanczos.add(waiting, steps, keeps)
            keeps = np.divide(after, products, out=np.zeros(LANES), where=waiting & (products > 0))
            waiting &= (np.sqrt(squares) > goals) & (done < most) & (after > 0)
            products = after
            self._by_row(self.kernels.turn, (keeps.astype(dtype), target), (direction,))
        return done

    def _check(self, curvatures: Floats, waiting: npt.NDArray[np.bool_], direction: Array) -> None:
        """Raise NegativeCurvature where a direction bends the other way, beyond rounding."""
        if not (waiting & (curvatures <= 0)).any():
            return
        squares = self.squares(direction)
        quotients = np.divide(curvatures, squares, out=np.zeros(LANES), where=squares > 0)
        lowest = float(quotients[waiting].min())
        if lowest < 0:
            raise NegativeCurvature(_indefinite(lowest - self.damping, self.damping))


class ReducedSystem(System):
    """The system with the rows of users eliminated, which no entry of H joins with one another.

    With their part A of the matrix factored, ``(H_ii - H_iu A^-1 H_ui) x_i`` is iterated on, and
    x_u follows: a product takes as long as one with all of H, and half as many are needed (Reid,
    The use of conjugate gradients for systems of linear equations possessing "property A", 1972).
    """

    def __init__(self, endpoint: Any, *arguments: Any) -> None:
        super().__init__(endpoint, *arguments)
        self.first = endpoint.n_users

    def _users(self, function: Any, before: tuple[Any, ...], after: tuple[Any, ...]) -> None:
        self._by_row(function, before, after, (0, self.first))

    def _solve_users(self, right: Array, x: Array) -> None:
        self._users(self.kernels.precondition_rows, (self.factors, self.divisors, right), (x,))

    def image(self, panel: Array, out: Array) -> Floats:
        self.endpoint.reduced_product(self._solve_users, panel, out, full=self.full)
        return self._damped(panel, out)

    def settle(self, x: Array, residual: Array, waiting: npt.NDArray[np.bool_]) -> None:
        """Move the users to where their residual is 0, the items being where they are."""
        kernels, dtype, ones = self.kernels, self.endpoint.dtype, np.ones(LANES)
        step, image = self.panel(), self.panel()
        self._solve_users(residual, step)
        self._users(kernels.scale, (waiting.astype(dtype),), (step,))
        self.endpoint.coupling(step, image, full=self.full)
        self._users(kernels.take_steps, (ones.astype(dtype), step), (x,))
        self._by_row(kernels.take_steps, (-ones.astype(dtype), image), (residual,))
        self._users(kernels.scale, ((~waiting).astype(dtype),), (residual,))

    def move(self, steps: Array, direction: Array, x: Array) -> None:
        self._users(self.kernels.take_steps, (steps, direction), (x,))


def row_parts(n_rows: int, n_parts: int, device: str) -> list[tuple[int, int]]:
    """Runs of rows for the threads of the CPU; a device takes all at once."""
    if device != "cpu":
        return [(0, n_rows)]
    return dispatch.even_parts(np.ones(n_rows), n_parts)


def _indefinite(eigenvalue: float, damping: float) -> str:
    return (
        f"the Hessian is not positive definite: it has an eigenvalue of {eigenvalue:.4g} or less, "
        f"and the damping is {damping:.4g}. A solve would mean nothing: give damping > "
        f"{-eigenvalue:.4g}, or on_negative_curvature='lift' (which does) or 'gauss-newton', or "
        "take hessian='gauss-newton'"
    )
