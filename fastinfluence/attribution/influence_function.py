"""Influence functions: the derivative of a minimum by the weight of every example."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from numbers import Integral, Real
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt

from fastinfluence import dispatch
from fastinfluence.attribution.damping import check_damping
from fastinfluence.attribution.dense import DenseAttribution
from fastinfluence.attribution.influence_factors import InfluenceFactors
from fastinfluence.attribution.lanczos import smallest_eigenvalue
from fastinfluence.attribution.method import check_result
from fastinfluence.attribution.objectives import as_objective
from fastinfluence.attribution.solve import (
    BlockJacobi,
    SolveReport,
    block_bytes,
    solve,
    solve_queries,
    warn_of_unsolved,
)
from fastinfluence.errors import DataError, NegativeCurvature, ParameterError
from fastinfluence.kernels.structures import LANES
from fastinfluence.memory import aligned_zeros
from fastinfluence.models.base import Model
from fastinfluence.progress import progress
from fastinfluence.training.trajectory import training_indices

__all__ = ["InfluenceFunction"]

Array = npt.NDArray[Any]

HESSIANS = ("gauss-newton", "full")
POLICIES = ("raise", "lift", "gauss-newton")

_ITERATED = {"atol", "max_iterations", "memory_budget", "on_negative_curvature", "rtol"}
_LEAST_WORK = 2**22  # numbers that a product with the Hessian reads for each side of the data
_LIFT = 1.1  # times the most negative eigenvalue that was seen


class InfluenceFunction(DenseAttribution):
    """Influence functions (Koh & Liang 2017), solved by conjugate gradients that say how well.

    With phi the explained quantity, ``F = sum_j w_j l_j`` the training loss (regularization is
    part of l_j) and H its Hessian at the model's parameters, the influence of example j is ::

        -grad phi . (H + damping I)^-1 w_j grad l_j

    to first order ``phi(trained with j) - phi(trained without j)`` if training had found the
    minimum of F, in the units of phi (``units = "effect"``). Axes are (n_queries, n_train);
    positive: training on j raised phi. Any objective may be explained, whatever the loss that was
    trained with (cross-loss influence, Silva et al. 2022).

    Training that stops early did not find the minimum; the default damping, one over the
    learning rate times the number of epochs, stands for what it leaves undone (Bae et al. 2024:
    directions that it had no time to learn should not count as learned). Because the Hessian of a
    factorization is indefinite away from a perfect fit, the Gauss-Newton matrix, which leaves out
    the curvature of the scores themselves, is the default.

    Parameters
    ----------
    model : MatrixFactorization, DistMult or ComplEx
        Fitted.
    scope : {"global", "pair"}, default "global"
        ``pair`` holds all but the query's own user and item where they are, which makes a closed
        form of it: `fastinfluence.PairInfluence` (FIA, Cheng et al. 2019).
    hessian : {"gauss-newton", "full"}, default "gauss-newton"
    on_negative_curvature : {"raise", "lift", "gauss-newton"}, default "raise"
        What becomes of a full Hessian that, damped, is not positive definite: an error, a damping
        a tenth above the smallest eigenvalue (estimated by Lanczos' method), or the
        Gauss-Newton matrix. ``damping_`` and ``hessian_`` say what was used.
    damping : float, optional
        See above; ``default_damping`` of the trajectory.
    rtol, atol : float, default 1e-3, 0
        A query is solved when ``|residual| <= max(rtol |grad phi|, atol)``.
    max_iterations : int, default 200
        Further queries that take more are returned as they are, marked in `explain`, and a
        ConvergenceWarning is given.
    n_threads : int, optional
        All processors by default; it never changes a result.
    device : {"auto", "cpu", "cuda"}, default "auto"
        Or "torch:<device>". Models of triples are served on the CPU only.
    memory_budget : int, optional
        Bytes of CPU memory; a quarter of RAM by default.
    show_progress : bool, optional

    Attributes
    ----------
    damping_ : float
    hessian_ : str
    report_ : SolveReport
        Of the queries asked last.

    Raises
    ------
    NotFittedError
    ParameterError
        An option out of range.
    DataError
        Parameters that are not finite.

    Notes
    -----
    An iteration goes through the data once for 16 queries, 8 * n_train * (n_factors + 1)
    floating-point operations for each. There is a Cholesky factor for every row: n_factors^2
    numbers a row, and 2 * n_train * n_factors^2 multiplications once. With those of the users they
    are eliminated, as the Hessian joins no two of them; those of the items precondition.

    References
    ----------
    Koh & Liang, Understanding black-box predictions via influence functions, ICML 2017; Silva,
    Chopra & Gombolay, Cross-loss influence functions, AISTATS 2022, arXiv 2012.01685; Bae et al.,
    Training data attribution via approximate unrolling, NeurIPS 2024, arXiv 2405.12186.

    Examples
    --------
    >>> import fastinfluence as fi
    >>> data = fi.Interactions.from_arrays(["ann", "ann", "bob"], ["x", "y", "x"], [5, 3, 4])
    >>> model = fi.MatrixFactorization(n_factors=4, rng=0).fit(data)
    >>> why = fi.InfluenceFunction(model)
    >>> why.influence([("bob", "y")]).shape
    (1, 3)
    >>> bool(why.report_.converged.all())
    True
    """

    name = "influence-function"
    units: Literal["effect", "rank"] = "effect"  # compressed, it is a rank
    served: ClassVar[tuple[str, ...]] = ("cpu", "cuda", "torch")

    on_negative_curvature: str
    damping_: float
    hessian_: str
    report_: SolveReport
    rtol: float
    atol: float
    max_iterations: int

    def __new__(cls, model: object = None, *, scope: str = "global", **options: Any) -> Any:
        """Make a `PairInfluence` where only a pair's own rows are asked about."""
        if scope == "pair":
            from fastinfluence.attribution.pair_influence import PairInfluence

            if isinstance(model, Model) and not isinstance(model, PairInfluence.explains):
                raise ParameterError(
                    "scope='pair' is of a user and an item: for a model of triples use "
                    "scope='global'"
                )

            if iterated := sorted(_ITERATED & options.keys()):
                raise ParameterError(
                    f"scope='pair' has a closed form: leave out {', '.join(iterated)}"
                )
            return PairInfluence(model, **options)  # type: ignore[arg-type]  # it checks
        return super().__new__(cls, model, **options)

    def __init__(
        self,
        model: Any,
        *,
        scope: str = "global",
        hessian: str = "gauss-newton",
        on_negative_curvature: str = "raise",
        damping: float | None = None,
        rtol: float = 1e-3,
        atol: float = 0.0,
        max_iterations: int = 200,
        n_threads: int | None = None,
        device: str = "auto",
        memory_budget: int | None = None,
        show_progress: bool | None = None,
    ) -> None:
        super().__init__(
            model,
            n_threads=n_threads,
            device=device,
            memory_budget=memory_budget,
            show_progress=show_progress,
        )
        _check_choice("scope", scope, ("global", "pair"))
        _check_choice("hessian", hessian, HESSIANS)
        _check_choice("on_negative_curvature", on_negative_curvature, POLICIES)
        for name, value in (("rtol", rtol), ("atol", atol)):
            if isinstance(value, bool) or not isinstance(value, Real) or not 0 <= value < np.inf:
                raise ParameterError(f"{name} must be a finite number >= 0, not {value!r}")
        if rtol == atol == 0:
            raise ParameterError("rtol and atol are both 0: no residual is that small")
        if (
            isinstance(max_iterations, bool)
            or not isinstance(max_iterations, Integral)
            or max_iterations < 1
        ):
            raise ParameterError(f"max_iterations must be an integer >= 1, not {max_iterations!r}")
        self.on_negative_curvature = on_negative_curvature
        self.rtol, self.atol, self.max_iterations = float(rtol), float(atol), int(max_iterations)
        self.hessian_ = hessian
        self.damping_ = check_damping(damping, model.trajectory_)
        self._lowest: float | None = None  # eigenvalue of the full Hessian, once it is known

    # ---------------------------------------------------------------- the system

    @cached_property
    def _endpoint(self) -> Any:
        trajectory = self.model.trajectory_
        return trajectory.program.endpoint(
            trajectory.end.tables, n_threads=self._within, device=self._device
        )

    @property
    def _memory(self) -> Any:
        """Where panels and blocks are."""
        return dispatch.memory(self._endpoint.device)

    @property
    def _within(self) -> int:
        """Threads that share a block of 16 queries; waking them takes longer than small work."""
        work = len(self.data) * self.model.trajectory_.recipe.n_factors
        return self._n_threads if work >= _LEAST_WORK else 1

    @cached_property
    def _preconditioner(self) -> BlockJacobi:
        return BlockJacobi(self._endpoint, self.damping_, n_threads=self._within)

    def _see_to_curvature(self) -> None:
        """Make the damped Hessian positive definite, as the policy says, or raise."""
        if self._lowest is not None or self.hessian_ != "full":
            return
        eigenvalue = self._lowest = smallest_eigenvalue(self._endpoint)
        if eigenvalue + self.damping_ > 0:
            return
        if self.on_negative_curvature == "raise":
            self._lowest = None
            raise NegativeCurvature(
                f"the Hessian is not positive definite: its smallest eigenvalue is about "
                f"{eigenvalue:.4g}, and the damping is {self.damping_:.4g}. A solve would mean "
                f"nothing: give damping > {-_LIFT * eigenvalue:.4g}, or "
                "on_negative_curvature='lift' (which does) or 'gauss-newton', or take "
                "hessian='gauss-newton'"
            )
        if self.on_negative_curvature == "lift":
            self.damping_ = max(self.damping_, -eigenvalue) * _LIFT
        else:
            self.hessian_ = "gauss-newton"

    @property
    def _options_of_solves(self) -> dict[str, Any]:
        return {
            "damping": self.damping_,
            "rtol": self.rtol,
            "atol": self.atol,
            "max_iterations": self.max_iterations,
            "full": self.hessian_ == "full",
        }

    def _solved(
        self, quantity: Any, show_progress: bool | None
    ) -> Iterator[tuple[int, Array, SolveReport]]:
        """Yield (start, x (n_rows, d, LANES), report of m queries) for every 16 queries."""
        self._see_to_curvature()
        blocks = solve_queries(
            self._endpoint,
            quantity,
            self._preconditioner,
            at_once=min(self._n_threads, self._at_once()),
            n_threads=self._within,
            **self._options_of_solves,
        )
        show = self._shown(show_progress)
        reports = []
        for found in progress(blocks, description=self.name, show=show, unit="block"):
            reports.append(found[-1])
            yield found
        self._conclude(reports)

    def _conclude(self, reports: list[SolveReport]) -> None:
        """Keep the report of all, and say once where it is bad."""
        self.report_ = SolveReport.joined(reports)
        float64 = "train in dtype='float64'" if self._endpoint.dtype == np.float32 else ""
        warn_of_unsolved(self.report_, self.rtol, self.max_iterations, float64, stacklevel=5)

    def _at_once(self) -> int:
        """Blocks of 16 queries that fit the memory budget side by side.

        A device's memory is not the budget's: `solve_queries` sees to it.
        """
        if self._endpoint.device != "cpu":
            return self._n_threads
        return self._fitting(block_bytes(self._endpoint))

    # ---------------------------------------------------------------- influence

    def _blocks(
        self, quantity: Any, show_progress: bool | None
    ) -> Iterator[tuple[int, Array, dict[str, Array]]]:
        for start, x, report in self._solved(quantity, show_progress):
            facts = {"residual": report.residual, "converged": report.converged}
            credit = self._memory.fetch(self._endpoint.credit(x))[:, : len(report)]
            yield start, np.ascontiguousarray(credit.T), facts

    def influence_factors(self, queries: Any) -> InfluenceFactors:
        """Solve for queries once, to multiply with any examples later.

        Parameters
        ----------
        queries : as for `influence`

        Returns
        -------
        InfluenceFactors
            n_rows * d numbers a query; they can be saved and loaded.

        Raises
        ------
        ParameterError
            They would not fit the memory budget.
        """
        quantity = self._bind(as_objective(queries))
        endpoint, n = self._endpoint, len(quantity)
        size = endpoint.n_rows * endpoint.d * endpoint.dtype.itemsize
        check_result(n, n * size, self._budget)
        vectors = np.empty((n, endpoint.n_rows, endpoint.d), endpoint.dtype)
        for start, x, report in self._solved(quantity, None):
            m = len(report)
            vectors[start : start + m] = self._memory.fetch(x)[:, :, :m].transpose(2, 0, 1)
        return InfluenceFactors(
            vectors=vectors,
            report=self.report_,
            method=self.name,
            model=self.model.trajectory_.fingerprint(),
        )

    def influence_from_factors(self, factors: InfluenceFactors, train_index: Any = None) -> Array:
        """Influence (n_queries, m) of training examples, from what `influence_factors` found.

        Parameters
        ----------
        factors : InfluenceFactors
        train_index : (m,) int array-like, optional
            All examples by default.

        Raises
        ------
        DataError
            The factors of another model or method, or an index outside the data.
        """
        if factors.model != self.model.trajectory_.fingerprint():
            raise DataError("these factors were solved for another model")
        if factors.method != self.name:
            raise DataError(f"these are factors of {factors.method!r}, not of {self.name!r}")
        n = len(self.data)
        some: Any = slice(None)
        if train_index is not None:
            some = training_indices(train_index, n, "train_index")
        m = n if train_index is None else len(some)
        endpoint = self._endpoint
        check_result(len(factors), len(factors) * m * endpoint.dtype.itemsize, self._budget)
        found = np.empty((len(factors), m), endpoint.dtype)
        panel = aligned_zeros((endpoint.n_rows, endpoint.d, LANES), endpoint.dtype)
        for start in range(0, len(factors), LANES):
            vectors = factors.vectors[start : start + LANES]
            panel[:, :, : len(vectors)] = vectors.transpose(1, 2, 0)
            credit = self._memory.fetch(endpoint.credit(self._memory.put(panel)))
            found[start : start + len(vectors)] = credit[some, : len(vectors)].T
        return found

    def group_influence(self, queries: Any, groups: Sequence[Any]) -> Array:
        """Influence (n_queries, n_groups) of groups of examples, each left out as a whole.

        A Newton step from the model towards what is left of the loss: ::

            -grad phi . (H - H_group + damping I)^-1 sum of w_j grad l_j over the group

        where the influences of single examples, added up, would leave H as it is. The systems
        are solved anew for every group, from the solution for all the data.

        Parameters
        ----------
        queries : as for `influence`
        groups : sequence of int sequences
            Training indices.

        Raises
        ------
        DataError
            An index outside the data, or an example twice in a group.
        NegativeCurvature
            Without the group the damped Hessian is not positive definite.

        References
        ----------
        Koh, Ang, Teo & Liang, On the accuracy of influence functions for measuring group effects,
        NeurIPS 2019, arXiv 1905.13289 (the same as their Woodbury form).
        """
        n, weights = len(self.data), self.model.trajectory_.program.weights
        members = [training_indices(group, n, "a group") for group in groups]
        for number, group in enumerate(members):
            if len(np.unique(group)) < len(group):
                raise DataError(f"group {number} holds an example twice")
        quantity = self._bind(as_objective(queries))
        result = np.zeros((len(quantity), len(members)), self._endpoint.dtype)
        reports = []
        for start, x, report in self._solved(quantity, None):
            m, right = len(report), self._endpoint.panel(quantity, start)
            reports.append(report)
            for number, group in enumerate(members):
                left = weights.copy()
                left[group] = 0
                endpoint = self._endpoint.reweighted(left)
                blocks = BlockJacobi(endpoint, self.damping_, n_threads=self._within)
                without, found = solve(
                    endpoint,
                    right,
                    preconditioner=blocks,
                    start=x,
                    n_threads=self._within,
                    **self._options_of_solves,
                )
                reports.append(found.first(m))
                credit = self._memory.fetch(self._endpoint.credit(without))[group, :m]
                result[start : start + m, number] = credit.sum(axis=0, dtype=np.float64)
        self._conclude(reports)
        return result


def _check_choice(name: str, value: object, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ParameterError(f"{name}={value!r} is not known: use one of {', '.join(allowed)}")
